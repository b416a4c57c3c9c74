//! What a pod and a connection cost the server, from clusters of several sizes.

use super::record::Record;
use super::series::SIZES;

/// Memory of a server at rest.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(clippy::struct_field_names, reason = "the unit is part of the name")]
pub(crate) struct Model {
    /// With nothing to do, in KiB.
    pub empty_kib: f64,
    /// For each pod of the cluster, in KiB.
    pub pod_kib: f64,
    /// For each connected node, in KiB.
    pub node_kib: f64,
}

/// The model that fits the sizes that were run best; `None` when they do not determine one.
pub(crate) fn model(record: &Record) -> Option<Model> {
    let measured = SIZES.iter().filter_map(|(run, nodes, pods, _)| {
        let mib = record.figure(run, "server_rss_quiet_mib")?;
        Some(([1.0, f64::from(*pods), f64::from(*nodes)], mib * 1024.0))
    });
    let measured: Vec<_> = measured.collect();
    let [empty_kib, pod_kib, node_kib] = least_squares(&measured)?;
    Some(Model {
        empty_kib,
        pod_kib,
        node_kib,
    })
}

/// The coefficients that fit best; `None` when the rows do not determine them.
fn least_squares(rows: &[([f64; 3], f64)]) -> Option<[f64; 3]> {
    // Normal equations: three rows of three, and the right-hand side.
    let mut system = [[0.0_f64; 4]; 3];
    for (values, result) in rows {
        for (line, left) in system.iter_mut().zip(values) {
            let right = values.iter().chain([result]);
            for (cell, right) in line.iter_mut().zip(right) {
                *cell += left * right;
            }
        }
    }
    let [first, second, third] = system;
    let second = minus(second, first, 0)?;
    let third = minus(minus(third, first, 0)?, second, 1)?;
    // A pivot that is nothing but rounding means that the rows were not independent.
    let scale = rows
        .iter()
        .map(|(values, _)| values[2] * values[2])
        .sum::<f64>();
    if third[2].abs() < scale * 1e-6 {
        return None;
    }
    let node = third[3] / third[2];
    let pod = (second[3] - second[2] * node) / second[1];
    let base = (first[3] - first[2] * node - first[1] * pod) / first[0];
    [base, pod, node]
        .iter()
        .all(|value| value.is_finite())
        .then_some([base, pod, node])
}

/// `line` without its part in column `column`, by way of `pivot`.
fn minus(line: [f64; 4], pivot: [f64; 4], column: usize) -> Option<[f64; 4]> {
    let share = line.get(column)? / pivot.get(column)?;
    let mut line = line;
    for (cell, pivot) in line.iter_mut().zip(pivot) {
        *cell -= share * pivot;
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_model_is_found_again() {
        let rows = [
            (500.0, 15_000.0),
            (5_000.0, 150_000.0),
            (5_000.0, 5_000.0),
            (500.0, 150_000.0),
        ];
        let rows =
            rows.map(|(nodes, pods)| ([1.0, pods, nodes], 20_000.0 + 2.0 * pods + 60.0 * nodes));
        let [base, pod, node] = least_squares(&rows).unwrap();
        assert!(
            (base - 20_000.0).abs() < 1.0 && (pod - 2.0).abs() < 1e-3 && (node - 60.0).abs() < 1e-3
        );
        // Thirty pods to every node: nothing tells one from the other.
        let alike = [1.0, 2.0, 5.0].map(|n| ([1.0, 30.0 * n, n], 60.0 * n));
        assert_eq!(least_squares(&alike), None);
    }
}
