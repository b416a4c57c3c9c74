//! Expressions as Go reads them.

use super::*;

/// Whether the whole of `text` is matched.
#[track_caller]
fn check(expression: &str, text: &str, expected: bool) {
    let translated = translate(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
    let compiled = regex::bytes::RegexBuilder::new(&format!(r"\A(?:{translated})\z"))
        .unicode(false)
        .build()
        .unwrap_or_else(|error| panic!("{expression} as {translated}: {error}"));
    assert_eq!(
        compiled.is_match(text.as_bytes()),
        expected,
        "{expression:?} as {translated:?} on {text:?}"
    );
}

#[track_caller]
fn refused(expression: &str, expected: &str) {
    assert_eq!(
        translate(expression).unwrap_err().to_string(),
        expected,
        "for {expression:?}"
    );
}

/// Each line is an expression made at random, with what Go's own `regexp` says of some texts. Of half
/// a million more that it took, none was read in another way.
const GO: &str = include_str!("go.jsonl");

#[test]
fn expressions_match_what_they_match_in_go() {
    #[derive(serde::Deserialize)]
    struct Case {
        expression: String,
        matches: Vec<String>,
        others: Vec<String>,
    }

    for line in GO.lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        assert!(
            !case.matches.is_empty() && !case.others.is_empty(),
            "{line}"
        );
        for text in &case.matches {
            check(&case.expression, text, true);
        }
        for text in &case.others {
            check(&case.expression, text, false);
        }
    }
}

#[test]
fn operators_inside_classes_are_literals_as_in_go() {
    check("[a&&b]", "&", true);
    check("[a&&b]", "a", true);
    check("[a~~b]", "~", true);
    check("[[a]", "[", true);
    check("[a[b]]", "[]", true);
    check("[]a]", "]", true);
    check("[^]a]", "]", false);
    check("[a-]", "-", true);
    check(r"[\d-z]", "-", true);
    check(r"[\d-z]", "y", false);
    check(r"[\w.]+", "a_9.", true);
    check("[[:alpha:]-]+", "a-b", true);
    check("[[:^digit:]]", "a", true);
    check("[[:alpha]+", ":[ahlp", true);
    for class in POSIX_CLASSES {
        let class = format!("[[:{class}:]]|[[:^{class}:]]");
        check(&class, "a", true);
    }
    check("[+--]", ",", true);
    check(r"[\x41-\x43]", "B", true);
    check(r"[\]\\]+", r"]\", true);
}

#[test]
fn braces_that_count_nothing_are_literals() {
    check("a{01}", "a{01}", true);
    check("a{01}", "a", false);
    check("a{2}", "aa", true);
    check("a{2,}", "aaa", true);
    check("a{1,2}", "aaa", false);
    check("a{,2}", "a{,2}", true);
    check("{", "{", true);
    check("a{b}", "a{b}", true);
    check("{namespace}", "{namespace}", true);
    check(r"\b{start}a", "a", false);
}

#[test]
fn quoted_text_is_literal() {
    check(r"\Qa.b\E.", "a.bc", true);
    check(r"\Qa.b\E.", "axbc", false);
    check(r"\Qa+", "a+", true);
    check(r"\Qab\E+", "abb", true);
}

#[test]
fn escapes_mean_what_they_mean_in_go() {
    check(r"\<", "<", true);
    check(r"\/\-\_", "/-_", true);
    check(r"\x41\x{42}", "AB", true);
    check(r"\101", "A", true);
    check(r"\d\D\w\W", "1aa-", true);
    check(r"\bab\b", "ab", true);
}

#[test]
fn groups_and_flags() {
    check("(?i)ROLE", "role", true);
    check("(?i:RO)le", "role", true);
    check("(?P<first>a)(?<second>b)", "ab", true);
    check("a|b", "b", true);
    check("(?:a|b)+?", "ab", true);
    check("(?s).", "\n", true);
    check(".", "\n", false);
}

#[test]
fn characters_beyond_ascii_never_match() {
    check("[\u{e9}]", "e", false);
    check("[^\u{e9}]", "e", true);
    check("[a\u{e9}]", "a", true);
    check("[a-\u{e9}]", "z", true);
    check("\u{e9}?a", "a", true);
}

#[test]
fn what_cannot_be_rewritten_is_refused_by_name() {
    refused("a)(b", "it has a parenthesis without its partner");
    refused("(a", "it has a parenthesis without its partner");
    refused("[a", "it has a [ without a ]");
    refused("[", "it has a [ without a ]");
    refused("[]", "it has a [ without a ]");
    refused("[z-a]", "it has a range whose end comes before its start");
    let classes = "it has a [:class:] that is none of alnum, alpha, ascii, blank, cntrl, digit, \
                   graph, lower, print, punct, space, upper, word, xdigit";
    for class in [
        "[[:alfa:]]",
        "[a[:^alfa:]]",
        "[[::]]",
        "[[:^:]]",
        "[[:ALPHA:]]",
        "[[:^^alpha:]]",
    ] {
        refused(class, classes);
    }
    refused("[a--b]", "it has a range whose end comes before its start");
    refused(r"\1", r"\1 means nothing in it");
    refused("a\\", r"\ means nothing in it");
    refused(r"\y", r"\y means nothing in it");
    refused(r"[\Q]", r"\Q means nothing in it");
    refused(r"\x4", r"\x means nothing in it");
    refused(r"\x{+41}", r"\x means nothing in it");
    refused(
        r"\pL",
        "it has \\p, which is not supported; ARNs are ASCII, so [A-Za-z] does the same",
    );
    for group in [
        "(?=a)", "(?!a)", "(?x)a", "(?u)a", "(?", "(?P=a)", "(?P<>a)",
    ] {
        assert_eq!(translate(group), Err(Untranslatable::Group), "{group}");
    }
}
