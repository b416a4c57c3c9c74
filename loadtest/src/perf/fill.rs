//! Templates: text with `{{words}}` that are looked up, and paragraphs that are there only when
//! something was measured.
//!
//! `{{if NAME}}` and `{{end}}` stand on lines of their own around what needs the run NAME. There is
//! nothing else: what is more than filling in is done in Rust.

use anyhow::Context as _;

/// Fills a template in. `has` says whether a run was taken; `look_up` is asked for everything else, and
/// `None` is an error, so that no page has holes.
pub(crate) fn fill(
    template: &str,
    has: impl Fn(&str) -> bool,
    look_up: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<String> {
    let mut page = String::new();
    let mut shown = true;
    for (number, line) in template.lines().enumerate() {
        let at = || format!("line {} of the template", number + 1);
        if let Some(name) = only(line, "if ") {
            shown = has(name);
        } else if only(line, "end").is_some() {
            shown = true;
        } else if shown {
            page.push_str(&filled(line, &look_up).with_context(at)?);
            page.push('\n');
        }
    }
    Ok(page)
}

/// What follows `word` when a line is nothing but `{{word …}}`.
fn only<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    let inner = line.strip_prefix("{{")?.strip_suffix("}}")?;
    inner.strip_prefix(word)
}

fn filled(line: &str, look_up: impl Fn(&str) -> Option<String>) -> anyhow::Result<String> {
    let mut parts = line.split("{{");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (words, rest) = part.split_once("}}").context("a brace is not closed")?;
        let value = look_up(words).with_context(|| format!("nothing is called {words}"))?;
        text.push_str(&value);
        text.push_str(rest);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(template: &str, expected: &str) {
        let look_up = |words: &str| (words == "figure one").then(|| "1".to_owned());
        let got = fill(template, |name| name == "there", look_up);
        let got = got.unwrap_or_else(|error| format!("{error:#}"));
        assert_eq!(got, expected);
    }

    #[test]
    fn words_are_replaced() {
        check("a {{figure one}} and {{figure one}}.", "a 1 and 1.\n");
        check(
            "a {{figure two}}",
            "line 1 of the template: nothing is called figure two",
        );
        check(
            "a {{figure",
            "line 1 of the template: a brace is not closed",
        );
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        check("a\n{{if there}}\nb\n{{end}}\nc", "a\nb\nc\n");
        check("a\n{{if absent}}\nb {{figure two}}\n{{end}}\nc", "a\nc\n");
    }
}
