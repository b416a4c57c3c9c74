use super::*;

fn annotations(pairs: &[(&str, &str)]) -> Annotations {
    pairs
        .iter()
        .map(|(key, value)| (format!("iam.amazonaws.com/{key}"), *value))
        .collect::<Vec<_>>()
        .iter()
        .map(|(key, value)| (key.as_str(), *value))
        .collect()
}

/// A pod with a role and these; the ask or the error as text.
#[track_caller]
fn ask(pairs: &[(&str, &str)]) -> Result<RoleAsk, String> {
    let all: Vec<_> = [("role", "reader")].iter().chain(pairs).copied().collect();
    read(&annotations(&all), None)
        .map(|ask| ask.expect("a role"))
        .map_err(|error| error.to_string())
}

#[track_caller]
fn refused(key: &str, value: &str, expected: &str) {
    let expected = format!("annotation iam.amazonaws.com/{key} of the pod: {expected}");
    assert_eq!(ask(&[(key, value)]).unwrap_err(), expected, "for {value:?}");
}

#[test]
fn only_our_annotations_are_kept() {
    let kept: Annotations = [
        ("iam.amazonaws.com/role", "r"),
        ("kubectl.kubernetes.io/last-applied-configuration", "{...}"),
        ("iam.amazonaws.com/session-tag.Team", "t"),
        ("iam.amazonaws.com/allowed-roles", "[]"),
        ("iam.amazonaws.com/imds-v2", "required"),
    ]
    .into_iter()
    .collect();
    assert_eq!(kept.iter().count(), 3);
    assert_eq!(kept.get(ROLE), Some("r"));
    assert_eq!(kept.get("iam.amazonaws.com/allowed-roles"), None);
}

#[test]
fn a_full_ask_is_read() {
    let got = ask(&[
        ("session-name", "billing run"),
        ("external-id", "partner:42"),
        ("session-tag.Team", "Data platform"),
        ("session-tag.Cost", ""),
        ("session-duration", "1h30m0.5s"),
        (
            "session-policy-arns",
            "arn:aws:iam::aws:policy/ReadOnlyAccess, arn:aws:iam::123456789012:policy/p/q,arn:aws:iam::aws:policy/ReadOnlyAccess",
        ),
    ])
    .unwrap();
    let tag = |key: &str, value: &str| Tag {
        key: key.into(),
        value: value.into(),
    };
    assert_eq!(
        got,
        RoleAsk {
            role: "reader".into(),
            session_name: Some("billing run".into()),
            external_id: Some("partner:42".into()),
            tags: vec![tag("Cost", ""), tag("Team", "Data platform")],
            duration: Some(Duration::from_mins(90)),
            policy_arns: vec![
                "arn:aws:iam::123456789012:policy/p/q".into(),
                "arn:aws:iam::aws:policy/ReadOnlyAccess".into(),
            ],
            origin: Origin::Pod,
        }
    );
}

#[test]
fn empty_annotations_ask_for_nothing() {
    let got = ask(&[
        ("session-name", ""),
        ("external-id", ""),
        ("session-duration", ""),
        ("session-policy-arns", ""),
    ])
    .unwrap();
    assert_eq!(got, ask(&[]).unwrap());
    assert_eq!(read(&annotations(&[("role", "")]), None), Ok(None));
    assert_eq!(
        read(&annotations(&[("session-duration", "x")]), None),
        Ok(None)
    );
}

#[test]
fn every_annotation_is_checked() {
    let range = "write a duration between 15m and 12h, such as 1h or 1h30m";
    refused(
        "session-duration",
        "soon",
        &format!(
            "it is not a duration: expected a number and a unit, such as 15m, 1h30m or 100ms; {range}"
        ),
    );
    refused(
        "session-duration",
        "14m59s",
        &format!("it is shorter than STS allows; {range}"),
    );
    refused(
        "session-duration",
        "12h1s",
        &format!("it is longer than STS allows; {range}"),
    );
    let id = "an external id has 2 to 1224 letters, digits or any of _+=,.@:/-";
    refused("external-id", "x", id);
    refused("external-id", "a b", id);
    refused("external-id", &"x".repeat(1225), id);
    let key = "a tag's key has 1 to 128 letters, digits, spaces or any of _.:/=+-@ and does \
               not start with aws:";
    refused("session-tag.", "v", key);
    refused("session-tag.AWS:x", "v", key);
    refused("session-tag.a*", "v", key);
    refused(&format!("session-tag.{}", "k".repeat(129)), "v", key);
    let value = "a tag's value has at most 256 letters, digits, spaces or any of _.:/=+-@";
    refused("session-tag.k", "a\tb", value);
    refused("session-tag.k", "a;b", value);
    refused("session-tag.k", &"v".repeat(257), value);
    let policy = "every entry must be the ARN of a managed policy, such as \
                  arn:aws:iam::aws:policy/ReadOnlyAccess; separate them with commas";
    for wrong in [
        "ReadOnlyAccess",
        "arn:aws:iam::aws:policy/ReadOnlyAccess,",
        "arn:aws:iam::aws:role/reader-reader",
        "arn:aws:s3::aws:policy/ReadOnlyAccess",
    ] {
        refused("session-policy-arns", wrong, policy);
    }
    let many: Vec<_> = (0..11)
        .map(|i| format!("arn:aws:iam::aws:policy/P{i}"))
        .collect();
    refused(
        "session-policy-arns",
        &many.join(","),
        "a session has at most 10 policies; merge some",
    );
}

#[test]
fn limits_are_allowed_themselves() {
    assert!(ask(&[("session-duration", "15m")]).is_ok());
    assert!(ask(&[("session-duration", "12h")]).is_ok());
    assert!(ask(&[("external-id", &"x".repeat(1224))]).is_ok());
    assert!(ask(&[("session-tag.k", &"\u{e9}".repeat(256))]).is_ok());
}

#[test]
fn tags_are_at_most_fifty_and_differ_by_more_than_case() {
    let keys: Vec<String> = (0..51).map(|i| format!("session-tag.k{i:02}")).collect();
    let pairs: Vec<_> = keys.iter().map(|key| (key.as_str(), "v")).collect();
    assert_eq!(ask(&pairs[..50]).unwrap().tags.len(), 50);
    let error = ask(&pairs).unwrap_err();
    assert!(error.contains("at most 50 tags"), "{error}");
    let error = ask(&[("session-tag.Team", "a"), ("session-tag.team", "b")]).unwrap_err();
    assert!(
        error.starts_with("annotation iam.amazonaws.com/session-tag.team of the pod: two"),
        "{error}"
    );
}

#[test]
fn a_service_account_supplies_defaults_only_to_pods_without_a_role() {
    let account = annotations(&[
        ("role", "account"),
        ("external-id", "from-account"),
        ("session-name", "from-account"),
    ]);
    let read = |pod: &[(&str, &str)]| read(&annotations(pod), Some(&account)).unwrap();
    let own = read(&[("role", "own")]).unwrap();
    assert_eq!(
        (own.role.as_str(), own.external_id, own.origin),
        ("own", None, Origin::Pod)
    );
    let inherited = read(&[("session-name", "own")]).unwrap();
    assert_eq!(inherited.role, "account");
    assert_eq!(inherited.session_name.as_deref(), Some("own"));
    assert_eq!(inherited.external_id.as_deref(), Some("from-account"));
    assert_eq!(inherited.origin, Origin::ServiceAccount);
    assert_eq!(read(&[("role", "")]), None, "an empty role opts out");
}

#[test]
fn an_error_names_the_object_it_is_on() {
    let account = annotations(&[("role", "r"), ("session-duration", "1m")]);
    let error = read(&Annotations::default(), Some(&account)).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("annotation iam.amazonaws.com/session-duration of the ServiceAccount:"),
        "{error}"
    );
}
