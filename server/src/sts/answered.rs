//! What an error answer says, when the SDK finds no code in it.
//!
//! Pure. The SDK reads the error document of STS and no other. Stand-ins for STS and gateways in
//! front of it nest the same words differently, or say them in JSON. Without the code a refusal
//! would pass for a broken network, and be asked about again and again.

use serde_json::Value;

/// The code and the message in an answer's body; the code is empty when there is none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) code: String,
    pub(super) message: String,
}

/// More of a body is not looked at.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// More of a message is not kept.
const MESSAGE_CHARS_MAX: usize = 1_000;

/// Reads `<Code>` and `<Message>` at any depth of XML, or their likes in JSON.
pub(super) fn read(body: &[u8]) -> Said {
    let body = body.get(..BODY_BYTES_MAX).unwrap_or(body);
    let text = String::from_utf8_lossy(body);
    let (code, message) = match serde_json::from_str::<Value>(&text) {
        Ok(json) => in_json(&json),
        Err(_not_json) => (in_xml(&text, "Code"), in_xml(&text, "Message")),
    };
    let mut said = Said {
        code: bare(&code.unwrap_or_default()),
        message: message.unwrap_or_default(),
    };
    if let Some((end, _more)) = said.message.char_indices().nth(MESSAGE_CHARS_MAX) {
        said.message.truncate(end);
    }
    said
}

/// JSON protocols write `namespace#Code` and `Code:more`.
fn bare(code: &str) -> String {
    let code = code.rsplit('#').next().unwrap_or(code);
    let code = code.split(':').next().unwrap_or(code);
    code.trim().to_owned()
}

fn in_xml(text: &str, tag: &str) -> Option<String> {
    let (_before, rest) = text.split_once(&format!("<{tag}>"))?;
    let (inner, _after) = rest.split_once(&format!("</{tag}>"))?;
    // The ampersand last, or what it escapes would be taken for an escape itself.
    let plain = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
    ]
    .into_iter()
    .fold(inner.trim().to_owned(), |text, (from, to)| {
        text.replace(from, to)
    });
    Some(plain.replace("&amp;", "&"))
}

/// The object that carries a code, outermost first, and the message beside it.
fn in_json(json: &Value) -> (Option<String>, Option<String>) {
    let mut object = json;
    loop {
        let text = |keys: &[&str]| {
            let mut found = keys.iter().filter_map(|key| object.get(key)?.as_str());
            found.next().map(str::to_owned)
        };
        let code = text(&["__type", "Code", "code"]);
        if code.is_some() {
            return (code, text(&["Message", "message"]));
        }
        let mut inner = ["ErrorResponse", "Error", "error"]
            .iter()
            .filter_map(|key| object.get(key));
        match inner.next() {
            Some(inner) => object = inner,
            None => return (None, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(body: &str, code: &str, message: &str) {
        let expected = Said {
            code: code.into(),
            message: message.into(),
        };
        assert_eq!(read(body.as_bytes()), expected, "for {body}");
    }

    #[test]
    fn the_code_is_found_however_it_is_wrapped() {
        let words = "<Code>AccessDenied</Code><Message>a &amp;lt; b &lt;c&gt;</Message>";
        for body in [
            format!("<ErrorResponse><Error>{words}</Error></ErrorResponse>"),
            format!("<ErrorResponse><Errors><Error>{words}</Error></Errors></ErrorResponse>"),
            format!(
                "<?xml version=\"1.0\"?>\n<Response><Errors>\n<Error>{words}</Error></Errors></Response>"
            ),
            format!("<Error>{words}</Error>"),
        ] {
            check(&body, "AccessDenied", "a &lt; b <c>");
        }
        check(
            r#"{"__type":"com.amazon#AccessDenied:x","message":"no"}"#,
            "AccessDenied",
            "no",
        );
        check(
            r#"{"ErrorResponse":{"Error":{"Code":"AccessDenied","Message":"no"}}}"#,
            "AccessDenied",
            "no",
        );
    }

    #[test]
    fn what_has_no_code_says_none() {
        for body in [
            "",
            "<html>no</html>",
            "<Code>",
            "{}",
            "[1]",
            "null",
            "<Code></Message>",
        ] {
            check(body, "", "");
        }
        assert_eq!(read(&[0xff, 0xfe]), Said::default());
        let long = format!(
            "<Code>C</Code><Message>{}</Message>",
            "\u{e9}".repeat(2_000)
        );
        assert_eq!(
            read(long.as_bytes()).message.chars().count(),
            MESSAGE_CHARS_MAX
        );
    }
}
