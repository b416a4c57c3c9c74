//! Which paths a regular expression names, letter by letter.

/// The literal paths of `regexp`: its alternatives of the form `^/path$`, where every character
/// stands for itself.
pub(super) fn paths(regexp: &str) -> Vec<String> {
    // Inside a group or a class a bar or a caret means something else; such an expression names
    // nothing.
    if regexp.contains(['(', '[']) {
        return Vec::new();
    }
    regexp.split('|').filter_map(literal).collect()
}

fn literal(alternative: &str) -> Option<String> {
    let inner = alternative.strip_prefix('^')?.strip_suffix('$')?;
    let mut path = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => {
                // An escaped letter or digit is a class or a position.
                let escaped = characters.next()?;
                if !escaped.is_ascii_punctuation() {
                    return None;
                }
                path.push(escaped);
            }
            '.' | '*' | '+' | '?' | '{' | '}' | ')' | ']' | '^' | '$' => return None,
            c => path.push(c),
        }
    }
    path.starts_with('/').then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_for_itself_is_named() {
        for (regexp, expected) in [
            ("^/latest/user-data$", vec!["/latest/user-data"]),
            (r"^/latest/user\-data\.txt$", vec!["/latest/user-data.txt"]),
            ("^/a$|^/b$|/c", vec!["/a", "/b"]),
            ("/a", vec![]),
            ("^/a", vec![]),
            ("^/a.b$", vec![]),
            (r"^/\d$", vec![]),
            (r"^/a\$", vec![]),
            ("^[/a|^/b$|]", vec![]),
            ("^(/a|^/b$)", vec![]),
            ("^a$", vec![]),
        ] {
            assert_eq!(paths(regexp), expected, "for {regexp}");
        }
    }
}
