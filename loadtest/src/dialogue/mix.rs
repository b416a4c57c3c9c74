//! Which clients ask, and how often each: `boto3`, `js-v3=3`.

use std::fmt::Write as _;
use std::str::FromStr;

use clap::ValueEnum as _;

use super::script::Shape;

/// A client and its weight among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weighted {
    shape: Shape,
    weight: u16,
}

/// No mix needs finer shares, and the list of turns stays short.
const WEIGHT_MAX: u16 = 100;

impl FromStr for Weighted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, weight) = match text.split_once('=') {
            Some((name, weight)) => (name, weight.parse().unwrap_or(0)),
            None => (text, 1),
        };
        if !(1..=WEIGHT_MAX).contains(&weight) {
            return Err(format!("a weight is a number from 1 to {WEIGHT_MAX}"));
        }
        let shape = Shape::from_str(name, false);
        let shape = shape.map_err(|_unknown| format!("there is {}", names().join(", ")))?;
        Ok(Self { shape, weight })
    }
}

/// Clients that take turns, each as often as its weight says.
#[derive(Debug, Clone)]
pub(crate) struct Mix(Vec<Shape>);

impl Mix {
    /// These, or the default ones when there are none.
    pub(crate) fn new(weighted: &[Weighted]) -> Self {
        let mut turns: Vec<Shape> = Vec::new();
        for Weighted { shape, weight } in weighted {
            turns.extend(std::iter::repeat_n(*shape, usize::from(*weight)));
        }
        if turns.is_empty() {
            turns.extend(Shape::ALL);
        }
        Self(turns)
    }

    /// Who asks first in a pod that has just started.
    pub(crate) fn first(&self) -> Shape {
        self.at(0)
    }

    /// Whose turn it is.
    pub(crate) fn at(&self, index: usize) -> Shape {
        let turn = index.checked_rem(self.0.len()).unwrap_or(0);
        self.0.get(turn).copied().unwrap_or(Shape::Boto3)
    }
}

fn names() -> Vec<String> {
    let shapes = Shape::value_variants().iter();
    let names = shapes.filter_map(|shape| Some(shape.to_possible_value()?.get_name().to_owned()));
    names.collect()
}

/// For --help: every client and what it does.
pub(crate) fn help() -> String {
    let mut text = String::from(
        "How SDKs ask, as NAME or NAME=WEIGHT; may be given several times, and then they take \
         turns.\nWithout it: boto3, js-v3, go-v2, java-v2 and v1.\n",
    );
    for shape in Shape::value_variants() {
        let Some(value) = shape.to_possible_value() else {
            continue;
        };
        let about = value
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        // Writing to a string cannot fail.
        let _written = write!(text, "\n  {:<13}{about}", value.get_name());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(Shape, u16), &str>) {
        let got = text.parse::<Weighted>();
        let got = got.as_ref().map(|w| (w.shape, w.weight));
        let got = got.map_err(|error| error.split(' ').next().unwrap());
        assert_eq!(got, expected, "for {text:?}");
    }

    #[test]
    fn a_client_has_a_name_and_a_weight() {
        check("boto3", Ok((Shape::Boto3, 1)));
        check("js-v3=3", Ok((Shape::Js, 3)));
        check("js", Ok((Shape::Js, 1)));
        check("boto3=0", Err("a"));
        check("boto3=101", Err("a"));
        check("boto3=x", Err("a"));
        check("cobol", Err("there"));
    }

    #[test]
    fn clients_take_turns_by_weight() {
        let weighted = ["boto3=2", "v1"].map(|text| text.parse().unwrap());
        let mix = Mix::new(&weighted);
        let turns: Vec<_> = (0..4).map(|index| mix.at(index)).collect();
        assert_eq!(turns, [Shape::Boto3, Shape::Boto3, Shape::V1, Shape::Boto3]);
        assert_eq!(Mix::new(&[]).at(1), Shape::Js);
    }

    #[test]
    fn help_names_every_client_and_says_what_it_does() {
        let help = help();
        for name in names() {
            let line = help
                .lines()
                .find(|line| line.trim_start().starts_with(&name));
            assert!(line.is_some_and(|line| line.len() > 30), "{name}");
        }
    }
}
