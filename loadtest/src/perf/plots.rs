//! The plots of the page.

use super::record::Record;
use super::series::SIZES;
use super::svg::{Axis, Line, Plot, Scale};

/// Each plot that the record has data for, with its file's name.
pub(crate) fn all(record: &Record) -> Vec<(&'static str, String)> {
    let plots = [
        ("latency.svg", latency(record)),
        ("first-credentials.svg", first(record)),
        ("hogs.svg", hogs(record)),
        ("server-memory.svg", memory(record)),
    ];
    let there = plots.into_iter();
    there
        .filter_map(|(name, plot)| Some((name, plot?.svg())))
        .collect()
}

fn latency(record: &Record) -> Option<Plot> {
    distribution(
        "Latency of one request, 500 dialogues/s while pods come and go",
        vec![
            curve(record, "churn500", "agent", "agent")?,
            curve(record, "churn500", "null", "null server")?,
        ],
    )
}

fn first(record: &Record) -> Option<Plot> {
    let lines = [
        curve(record, "churn500", "first", "10 pods/s, quiet otherwise"),
        curve(
            record,
            "faults",
            "first",
            "500 pods/min, everything fails in turn",
        ),
    ];
    distribution(
        "From a pod's address in the API to its first credentials",
        lines.into_iter().flatten().collect(),
    )
}

fn hogs(record: &Record) -> Option<Plot> {
    let lines = [
        curve(record, "hogs_other", "agent", "left alone"),
        curve(record, "hogs_other", "hogged", "--scheduling other"),
        curve(record, "hogs_rr", "hogged", "--scheduling rr"),
    ];
    distribution(
        "Latency of one request beside three CPU-bound threads on its core",
        lines.into_iter().flatten().collect(),
    )
}

fn curve(record: &Record, run: &str, curve: &str, name: &str) -> Option<Line> {
    let points = record.curve(run, curve)?;
    (!points.is_empty()).then(|| Line {
        name: name.to_owned(),
        points: points.to_vec(),
        marked: false,
    })
}

/// Powers of ten, in microseconds, with words.
const DECADES: [(f64, &str); 7] = [
    (10.0, "10 µs"),
    (100.0, "100 µs"),
    (1e3, "1 ms"),
    (1e4, "10 ms"),
    (1e5, "100 ms"),
    (1e6, "1 s"),
    (1e7, "10 s"),
];

/// The latencies between the decades around them, and the share that was as fast, by nines.
fn distribution(title: &str, lines: Vec<Line>) -> Option<Plot> {
    let all = lines.iter().flat_map(|line| &line.points);
    let (mut least, mut most) = (f64::MAX, 0.0_f64);
    for (at, _share) in all {
        (least, most) = (least.min(*at), most.max(*at));
    }
    if most <= 0.0 {
        return None;
    }
    let decade = |value: f64| DECADES.iter().map(|(at, _)| *at).find(|at| *at >= value);
    let to = decade(most).unwrap_or(1e7);
    let mut below = DECADES.iter().map(|(at, _)| *at).filter(|at| *at <= least);
    let from = below.next_back().unwrap_or(10.0).min(to / 10.0);
    let ticks = DECADES.iter().filter(|(at, _)| (from..=to).contains(at));
    let shares = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999];
    let words = ["0", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"];
    Some(Plot {
        title: title.into(),
        x: Axis {
            label: "latency".into(),
            scale: Scale::Log,
            range: (from, to),
            ticks: ticks.map(|(at, word)| (*at, (*word).to_owned())).collect(),
        },
        y: Axis {
            label: "share that was as fast".into(),
            scale: Scale::Nines,
            range: (0.0, 0.9999),
            ticks: shares.into_iter().zip(words.map(str::to_owned)).collect(),
        },
        lines,
    })
}

/// Memory of the server in clusters of growing size.
fn memory(record: &Record) -> Option<Plot> {
    // Thirty pods to a node; the other two sizes are for the cost model.
    let proportional = SIZES
        .iter()
        .filter(|(_, nodes, pods, _)| pods / nodes == 30);
    let measured = |figure: &str| -> Vec<(f64, f64)> {
        let points = proportional.clone().filter_map(|(run, _, pods, _)| {
            let mib = record.figure(run, figure)?;
            Some((f64::from(*pods) / 1e3, mib))
        });
        points.collect()
    };
    let line = |figure, name: &str| Line {
        name: name.into(),
        points: measured(figure),
        marked: true,
    };
    let lines = vec![
        line("server_rss_mib", "under 500 changes/s"),
        line("server_rss_quiet_mib", "at rest"),
    ];
    let most = lines.iter().flat_map(|line| &line.points);
    let (pods, mib) = most.fold((0.0_f64, 0.0_f64), |(x, y), point| {
        (x.max(point.0), y.max(point.1))
    });
    (pods > 0.0).then(|| Plot {
        title: "Memory of one server, thirty pods to a node".into(),
        x: even("thousand pods in the cluster", pods),
        y: even("MiB", mib),
        lines,
    })
}

/// An even axis from nothing to a round number above `most`, in steps a person would choose.
fn even(label: &str, most: f64) -> Axis {
    let decade = 10.0_f64.powf((most / 5.0).max(f64::MIN_POSITIVE).log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * decade);
    let step = steps.into_iter().find(|step| most / step <= 6.0);
    let step = step.unwrap_or(10.0 * decade);
    let count = (most / step).ceil();
    let ticks = (0..=10)
        .map(|n| f64::from(n) * step)
        .take_while(|at| *at <= count * step + step / 2.0);
    Axis {
        label: label.into(),
        scale: Scale::Linear,
        range: (0.0, count * step),
        ticks: ticks.map(|at| (at, format!("{at}"))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(most: f64, expected: &[&str]) {
        let axis = even("", most);
        let words: Vec<_> = axis.ticks.iter().map(|(_, word)| word.as_str()).collect();
        assert_eq!(words, expected, "for {most}");
        assert!(axis.range.1 >= most);
    }

    #[test]
    fn axes_have_round_steps() {
        check(150.0, &["0", "25", "50", "75", "100", "125", "150"]);
        check(577.0, &["0", "100", "200", "300", "400", "500", "600"]);
        check(3.0, &["0", "0.5", "1", "1.5", "2", "2.5", "3"]);
    }

    #[test]
    fn a_distribution_lies_between_the_decades_around_it() {
        let line = Line {
            name: String::new(),
            points: vec![(40.0, 0.1), (2_500.0, 1.0)],
            marked: false,
        };
        let plot = distribution("", vec![line]).unwrap();
        assert_eq!(plot.x.range, (10.0, 1e4));
        assert!(distribution("", vec![]).is_none());
    }
}
