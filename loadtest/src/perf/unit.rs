//! How figures are written.

/// How a figure is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// `1.04`.
    Ratio,
    /// Microseconds: `104 µs`.
    Micros,
    /// Milliseconds: `1.2 ms`.
    Millis,
    /// Seconds: `23.0 s`.
    Seconds,
    /// `22.6 MiB`.
    Mebibytes,
    /// `1,234 B`.
    Bytes,
    /// KiB as they are read best: `43.5 KiB`, `34.4 MiB`.
    Kibibytes,
    /// A number of things.
    Count,
    /// A share of all: `3.1 %`.
    Percent,
}

impl Unit {
    /// By the word that templates use.
    pub(crate) fn named(word: &str) -> Option<Self> {
        Some(match word {
            "ratio" => Self::Ratio,
            "us" => Self::Micros,
            "ms" => Self::Millis,
            "s" => Self::Seconds,
            "mib" => Self::Mebibytes,
            "bytes" => Self::Bytes,
            "count" => Self::Count,
            "percent" => Self::Percent,
            _ => return None,
        })
    }

    /// A value as a person reads it.
    pub(crate) fn text(self, value: f64) -> String {
        match self {
            Self::Ratio => format!("{value:.2}"),
            Self::Micros if value < 10.0 => format!("{value:.1} µs"),
            Self::Micros => format!("{} µs", thousands(value)),
            Self::Millis if value < 10.0 => format!("{value:.2} ms"),
            Self::Millis => format!("{value:.0} ms"),
            Self::Seconds => format!("{value:.1} s"),
            Self::Mebibytes if value < 100.0 => format!("{value:.1} MiB"),
            Self::Mebibytes => format!("{value:.0} MiB"),
            Self::Bytes => format!("{} B", thousands(value)),
            Self::Kibibytes if value < 1024.0 => format!("{value:.1} KiB"),
            Self::Kibibytes => Self::Mebibytes.text(value / 1024.0),
            Self::Count => thousands(value),
            Self::Percent => format!("{:.1} %", value * 100.0),
        }
    }
}

/// A whole number, in groups of three digits.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(unit: &str, value: f64, expected: &str) {
        assert_eq!(Unit::named(unit).unwrap().text(value), expected);
    }

    #[test]
    fn figures_are_written_as_people_read_them() {
        check("ratio", 1.044, "1.04");
        check("us", 2.04, "2.0 µs");
        check("us", 12_345.0, "12,345 µs");
        check("ms", 6.2, "6.20 ms");
        check("count", 1_234_567.0, "1,234,567");
        check("count", 100.0, "100");
        check("percent", 0.031, "3.1 %");
        check("mib", 22.63, "22.6 MiB");
        assert_eq!(Unit::Kibibytes.text(43.52), "43.5 KiB");
        assert_eq!(Unit::Kibibytes.text(35_188.1), "34.4 MiB");
        assert_eq!(Unit::named("furlong"), None);
    }
}
