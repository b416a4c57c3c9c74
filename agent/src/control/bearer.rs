//! The agent's ServiceAccount token, as servers with `--agent-auth token` want to see it.
//!
//! The kubelet replaces the file before the token ends, so it is read again for each stream.

use std::path::Path;

use tonic::metadata::{Ascii, MetadataValue};
use zeroize::Zeroizing;

use super::tls::{self, Unusable};

/// `Bearer` and the token in a file, marked as sensitive so that no library logs it.
pub fn read(path: &Path) -> Result<MetadataValue<Ascii>, Unusable> {
    let bytes = tls::read(path)?;
    let no_token = || Unusable::Content {
        path: path.to_owned(),
        what: "token",
    };
    let token = str::from_utf8(&bytes)
        .map_err(|_not_text| no_token())?
        .trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(no_token());
    }
    let value = Zeroizing::new(format!("Bearer {token}"));
    let mut value: MetadataValue<Ascii> = value.parse().map_err(|_not_ascii| no_token())?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[track_caller]
    fn check(content: &[u8], expected: &str) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let got = read(file.path()).map_or_else(
            |_| "refused".to_owned(),
            |value| {
                assert!(!format!("{value:?}").contains("eyJ"), "a token was printed");
                value.to_str().unwrap().to_owned()
            },
        );
        assert_eq!(got, expected);
    }

    #[test]
    fn a_token_is_one_word() {
        check(b"eyJh.eyJi.c2ln", "Bearer eyJh.eyJi.c2ln");
        check(b"eyJh.eyJi.c2ln\n", "Bearer eyJh.eyJi.c2ln");
        check(b"", "refused");
        check(b"\n", "refused");
        check(b"two words", "refused");
        check(b"forged\r\nheader: x", "refused");
        check(&[0xff, 0xfe], "refused");
    }
}
