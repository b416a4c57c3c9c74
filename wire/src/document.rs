//! Credentials as the JSON documents that SDKs expect.
//!
//! Three documents, one per contract: the EC2 instance metadata service, its extended form, and the
//! container credentials provider. Names, order and the form of times are pinned by golden tests,
//! because clients are strict in different places: Go and PHP want `Code`, the Rust SDK breaks on
//! an offset in `Expiration`, botocore on a fraction (EC2 user guide, "Retrieve security
//! credentials from instance metadata"; SDK sources).

use std::fmt::Write as _;

use zeroize::Zeroizing;

use crate::credentials::Credentials;

/// Which contract a document is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contract {
    /// `meta-data/iam/security-credentials/ROLE`.
    InstanceMetadata,
    /// `meta-data/iam/security-credentials-extended/ROLE`: the same and `AccountId`.
    InstanceMetadataExtended,
    /// `AWS_CONTAINER_CREDENTIALS_FULL_URI`: no `Code`, `Type` or `LastUpdated`.
    Container,
}

/// Renders `credentials`. The result holds secrets and wipes itself when dropped.
pub fn credentials(credentials: &Credentials, contract: Contract) -> Zeroizing<String> {
    let mut json = Zeroizing::new(String::with_capacity(capacity(credentials)));
    json.push('{');
    if matches!(
        contract,
        Contract::InstanceMetadata | Contract::InstanceMetadataExtended
    ) {
        field(&mut json, "Code", "Success");
        field(
            &mut json,
            "LastUpdated",
            &credentials.issued_at().to_string(),
        );
        field(&mut json, "Type", "AWS-HMAC");
    }
    field(&mut json, "AccessKeyId", credentials.access_key_id());
    field(
        &mut json,
        "SecretAccessKey",
        credentials.secret_access_key(),
    );
    field(&mut json, "Token", credentials.session_token());
    if matches!(
        contract,
        Contract::InstanceMetadataExtended | Contract::Container
    ) {
        field(&mut json, "AccountId", credentials.account_id());
    }
    field(
        &mut json,
        "Expiration",
        &credentials.expires_at().to_string(),
    );
    json.push('}');
    json
}

/// Renders `meta-data/iam/info`, which says which role an instance has without its secrets. The
/// instance profile is named after the role; there is none, so its id is empty.
pub fn info(credentials: &Credentials) -> String {
    let mut json = String::with_capacity(256);
    json.push('{');
    field(&mut json, "Code", "Success");
    field(
        &mut json,
        "LastUpdated",
        &credentials.issued_at().to_string(),
    );
    let profile = credentials
        .role_arn()
        .replacen(":role/", ":instance-profile/", 1);
    field(&mut json, "InstanceProfileArn", &profile);
    field(&mut json, "InstanceProfileId", "");
    json.push('}');
    json
}

/// Enough for the whole document, so that a growing string never leaves an unwiped copy behind.
fn capacity(credentials: &Credentials) -> usize {
    // Every byte of a value may need two when escaped; names and punctuation are under 256.
    256 + 2
        * (credentials.access_key_id().len()
            + credentials.secret_access_key().len()
            + credentials.session_token().len()
            + credentials.account_id().len())
}

/// Appends `"name":"value"`, and a comma before it when it is not the first.
fn field(json: &mut String, name: &str, value: &str) {
    if !json.ends_with('{') {
        json.push(',');
    }
    json.push('"');
    json.push_str(name);
    json.push_str("\":\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => {
                json.push('\\');
                json.push(c);
            }
            // Cannot be in checked credentials; were one to be, the document must still be JSON.
            c if c.is_control() => {
                // Writing to a String cannot fail.
                write!(json, "\\u{:04x}", u32::from(c)).unwrap_or_default();
            }
            c => json.push(c),
        }
    }
    json.push('"');
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::credentials::Unchecked;
    use crate::identity::CredentialId;
    use crate::time::UnixSeconds;

    fn example(secret: &str) -> Credentials {
        Credentials::try_new(Unchecked {
            id: CredentialId::new([0; 32]),
            role_name: "reader".into(),
            role_arn: "arn:aws:iam::123456789012:role/path/reader".into(),
            access_key_id: "ASIAIOSFODNN7EXAMPLE".into(),
            secret_access_key: Zeroizing::new(secret.into()),
            session_token: Zeroizing::new("IQoJb3JpZ2luX2VjEXAMPLE==".into()),
            issued_at: UnixSeconds::new(1_700_000_000),
            expires_at: UnixSeconds::new(1_700_003_600),
        })
        .unwrap()
    }

    #[test]
    fn the_instance_metadata_document_is_exact() {
        let got = credentials(
            &example("wJalrXUtnFEMI/K7MDENG"),
            Contract::InstanceMetadata,
        );
        let expected = concat!(
            r#"{"Code":"Success","LastUpdated":"2023-11-14T22:13:20Z","Type":"AWS-HMAC","#,
            r#""AccessKeyId":"ASIAIOSFODNN7EXAMPLE","SecretAccessKey":"wJalrXUtnFEMI/K7MDENG","#,
            r#""Token":"IQoJb3JpZ2luX2VjEXAMPLE==","Expiration":"2023-11-14T23:13:20Z"}"#,
        );
        assert_eq!(*got, expected);
    }

    #[test]
    fn the_extended_document_adds_the_account() {
        let got = credentials(&example("s"), Contract::InstanceMetadataExtended);
        assert!(
            got.ends_with(r#","AccountId":"123456789012","Expiration":"2023-11-14T23:13:20Z"}"#),
            "{}",
            *got
        );
        assert!(got.starts_with(r#"{"Code":"Success","LastUpdated":"#));
    }

    #[test]
    fn the_container_document_is_exact() {
        let got = credentials(&example("s"), Contract::Container);
        let expected = concat!(
            r#"{"AccessKeyId":"ASIAIOSFODNN7EXAMPLE","SecretAccessKey":"s","#,
            r#""Token":"IQoJb3JpZ2luX2VjEXAMPLE==","AccountId":"123456789012","#,
            r#""Expiration":"2023-11-14T23:13:20Z"}"#,
        );
        assert_eq!(*got, expected);
    }

    #[test]
    fn the_info_document_is_exact() {
        let expected = concat!(
            r#"{"Code":"Success","LastUpdated":"2023-11-14T22:13:20Z","#,
            r#""InstanceProfileArn":"arn:aws:iam::123456789012:instance-profile/path/reader","#,
            r#""InstanceProfileId":""}"#,
        );
        assert_eq!(info(&example("s")), expected);
    }

    #[test]
    fn values_are_escaped_and_never_outgrow_the_first_allocation() {
        let secret = "\"\\".repeat(100);
        let example = example(&secret);
        let got = credentials(&example, Contract::InstanceMetadataExtended);
        let parsed: serde_json::Value = serde_json::from_str(&got).unwrap();
        assert_eq!(parsed["SecretAccessKey"], secret);
        assert!(got.len() <= capacity(&example));
    }
}
