//! Line plots as SVG, written by hand: a dozen elements need no library.
//!
//! The background is left out and every colour is of middle lightness, so that a plot reads on a
//! white page and on a dark one: an image on a page is not told which of the two it is on.

use crate::report::push;

/// A plot.
#[derive(Debug, Clone)]
pub(crate) struct Plot {
    /// Above it.
    pub title: String,
    /// Along the bottom.
    pub x: Axis,
    /// Along the left.
    pub y: Axis,
    /// What is drawn.
    pub lines: Vec<Line>,
}

/// One of the two axes.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    /// What it counts.
    pub label: String,
    /// How values are spread.
    pub scale: Scale,
    /// Where it begins and ends.
    pub range: (f64, f64),
    /// Values with a line and a word.
    pub ticks: Vec<(f64, String)>,
}

/// How values are spread along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Evenly.
    Linear,
    /// Each tenfold is as long as the next.
    Log,
    /// Shares below 1: 0.9, 0.99, 0.999 are as far from each other, so that a tail can be seen.
    Nines,
}

/// One line.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// What it shows.
    pub name: String,
    /// In the order of x.
    pub points: Vec<(f64, f64)>,
    /// Whether each point is marked: for few points that were measured one by one.
    pub marked: bool,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 56.0;
/// Middle lightness: legible on white and on GitHub's dark page alike.
const TEXT: &str = "#7d8590";
const COLOURS: [&str; 5] = ["#2f81f7", "#db6d28", "#3fa55b", "#a371f7", "#d6409f"];

impl Scale {
    /// Where a value lies, in a unit in which the axis is even.
    fn even(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => value.max(f64::MIN_POSITIVE).log10(),
            Self::Nines => -(1.0 - value.min(0.999_999)).log10(),
        }
    }
}

impl Axis {
    /// Where a value lies between the ends, from 0 to 1; what is beyond them lies on them.
    fn share(&self, value: f64) -> f64 {
        let (from, to) = (self.scale.even(self.range.0), self.scale.even(self.range.1));
        ((self.scale.even(value) - from) / (to - from)).clamp(0.0, 1.0)
    }
}

impl Plot {
    /// The file's text.
    pub(crate) fn svg(&self) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" \
             font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\" \
             font-size=\"13\" fill=\"{TEXT}\">\n<title>{}</title>\n",
            escaped(&self.title)
        );
        self.words(&mut svg);
        self.grid(&mut svg);
        self.legend(&mut svg);
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            self.line(&mut svg, line, colour);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (
            LEFT + self.x.share(x) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - self.y.share(y) * (HEIGHT - TOP - BOTTOM),
        )
    }

    fn words(&self, svg: &mut String) {
        text(
            svg,
            (LEFT, 22.0),
            "start",
            "font-size=\"15\" font-weight=\"600\"",
            &self.title,
        );
        let middle = LEFT + (WIDTH - LEFT - RIGHT) / 2.0;
        text(svg, (middle, HEIGHT - 12.0), "middle", "", &self.x.label);
        let middle = TOP + (HEIGHT - TOP - BOTTOM) / 2.0;
        let turned = format!("transform=\"rotate(-90 18 {middle})\"");
        text(svg, (18.0, middle), "middle", &turned, &self.y.label);
    }

    fn grid(&self, svg: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, word) in &self.x.ticks {
            let (x, _) = self.at((*value, self.y.range.0));
            rule(svg, (x, TOP), (x, bottom));
            text(svg, (x, bottom + 18.0), "middle", "", word);
        }
        for (value, word) in &self.y.ticks {
            let (_, y) = self.at((self.x.range.0, *value));
            rule(svg, (LEFT, y), (right, y));
            text(svg, (LEFT - 8.0, y + 4.5), "end", "", word);
        }
    }

    fn legend(&self, svg: &mut String) {
        let mut x = LEFT;
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            push(
                svg,
                format_args!(
                    "<rect x=\"{x:.1}\" y=\"37\" width=\"16\" height=\"4\" rx=\"2\" fill=\"{colour}\"/>\n"
                ),
            );
            text(svg, (x + 22.0, 44.0), "start", "", &line.name);
            // Letters of this size are seven units wide on average.
            let letters = u32::try_from(line.name.chars().count()).unwrap_or(0);
            x += 46.0 + 7.0 * f64::from(letters);
        }
    }

    fn line(&self, svg: &mut String, line: &Line, colour: &str) {
        let at = line.points.iter().map(|point| self.at(*point));
        let at: Vec<(f64, f64)> = at.collect();
        let points: Vec<_> = at.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        push(
            svg,
            format_args!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" \
             stroke-linejoin=\"round\"/>\n",
                points.join(" ")
            ),
        );
        if line.marked {
            for (x, y) in at {
                push(
                    svg,
                    format_args!(
                        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>\n"
                    ),
                );
            }
        }
    }
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, more: &str, word: &str) {
    push(
        svg,
        format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {more}>{}</text>\n",
            escaped(word)
        ),
    );
}

fn rule(svg: &mut String, from: (f64, f64), to: (f64, f64)) {
    push(
        svg,
        format_args!(
            "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"{TEXT}\" stroke-opacity=\"0.25\"/>\n",
            from.0, from.1, to.0, to.1
        ),
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(scale: Scale, range: (f64, f64)) -> Axis {
        Axis {
            label: "a & b".into(),
            scale,
            range,
            ticks: vec![(range.0, "first".into())],
        }
    }

    #[track_caller]
    fn check(scale: Scale, range: (f64, f64), value: f64, expected: f64) {
        let got = axis(scale, range).share(value);
        assert!((got - expected).abs() < 1e-6, "{scale:?} {value}: {got}");
    }

    #[test]
    fn values_lie_where_their_scale_says() {
        check(Scale::Linear, (0.0, 10.0), 2.5, 0.25);
        check(Scale::Log, (10.0, 1000.0), 100.0, 0.5);
        check(Scale::Nines, (0.0, 0.9999), 0.99, 0.5);
        check(Scale::Log, (10.0, 1000.0), 0.0, 0.0);
        check(Scale::Nines, (0.0, 0.999), 1.0, 1.0);
    }

    #[test]
    fn a_plot_has_its_lines_words_and_no_background() {
        let line = |name: &str, marked| Line {
            name: name.into(),
            points: vec![(10.0, 0.0), (100.0, 0.9), (1000.0, 0.999)],
            marked,
        };
        let plot = Plot {
            title: "x < y".into(),
            x: axis(Scale::Log, (10.0, 1000.0)),
            y: axis(Scale::Nines, (0.0, 0.999)),
            lines: vec![line("one", false), line("two", true)],
        };
        let svg = plot.svg();
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("points=\"72.0,344.0 "), "{svg}");
        assert!(svg.contains("x &lt; y") && svg.contains("a &amp; b"));
        assert!(!svg.contains("width=\"100%\""));
    }
}
