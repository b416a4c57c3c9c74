use super::*;

fn policy() -> Policy {
    Policy {
        base: BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap(),
        session_name: "kiam".into(),
        session_duration: Duration::from_hours(1),
        service_account_roles: false,
        session_tags: None,
        source_identity: None,
    }
}

fn decide(policy: &Policy, pairs: &[(&str, &str)]) -> Decision {
    decide_for(policy, pairs, false)
}

fn decide_for(policy: &Policy, pairs: &[(&str, &str)], is_static: bool) -> Decision {
    let annotations: Annotations = pairs.iter().copied().collect();
    let account: Annotations = [(annotations::ROLE, "account")].into_iter().collect();
    let pod = PodFacts {
        namespace: "shop",
        name: "web-0",
        uid: "6f1a",
        service_account: "web",
        is_static,
        annotations: &annotations,
        service_account_annotations: Some(&account),
        permitted: Some(".*:role/(reader|account)"),
    };
    policy.decide(pod, &mut Rules::new(Matching::Whole))
}

#[track_caller]
fn granted(policy: &Policy, pairs: &[(&str, &str)]) -> Session {
    match decide(policy, pairs) {
        Decision::Grant(request) => request.session().clone(),
        other @ (Decision::Refuse(_) | Decision::NoRole) => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(policy: &Policy, pairs: &[(&str, &str)]) -> (Refusal, String) {
    match decide(policy, pairs) {
        Decision::Refuse(refused) => (refused.reason(), refused.text().to_owned()),
        other @ (Decision::Grant(_) | Decision::NoRole) => panic!("{other:?}"),
    }
}

const READER: (&str, &str) = (annotations::ROLE, "reader");

#[test]
fn no_annotation_no_role() {
    assert_eq!(decide(&policy(), &[]), Decision::NoRole);
    let with_accounts = Policy {
        service_account_roles: true,
        ..policy()
    };
    assert_eq!(granted(&with_accounts, &[]).role.name(), "account");
    assert_eq!(
        decide(&with_accounts, &[(annotations::ROLE, "")]),
        Decision::NoRole
    );
}

/// Its namespace permits the role: that does not help.
#[test]
fn a_static_pod_gets_no_role() {
    let with_accounts = Policy {
        service_account_roles: true,
        ..policy()
    };
    for (policy, pairs) in [(&policy(), &[READER][..]), (&with_accounts, &[])] {
        match decide_for(policy, pairs, true) {
            Decision::Refuse(refused) => {
                assert_eq!(refused.reason(), Refusal::StaticPod);
                assert_eq!(refused.text(), STATIC_POD, "none of it is cut off");
            }
            other @ (Decision::Grant(_) | Decision::NoRole) => panic!("{other:?}"),
        }
    }
    assert_eq!(decide_for(&policy(), &[], true), Decision::NoRole);
}

#[test]
fn a_plain_role_is_granted_with_the_defaults() {
    let session = granted(&policy(), &[READER]);
    assert_eq!(
        session.role.as_str(),
        "arn:aws:iam::123456789012:role/reader"
    );
    assert_eq!(session.name, "kiam-kiam");
    assert_eq!(session.duration, Duration::from_hours(1));
    assert_eq!((session.tags, session.transitive_keys), (vec![], vec![]));
}

#[test]
fn refusals_carry_their_reason() {
    let (reason, text) = refused(&policy(), &[(annotations::ROLE, "writer")]);
    assert_eq!(reason, Refusal::NamespaceForbids, "{text}");
    let (reason, text) = refused(&policy(), &[(annotations::ROLE, "arn:aws:iam")]);
    assert_eq!(reason, Refusal::AnnotationInvalid);
    assert_eq!(
        text,
        "annotation iam.amazonaws.com/role of the pod: it is not of the form \
         arn:aws:iam::ACCOUNT:role/NAME; write a role name, path/name, or a full role ARN"
    );
    let (reason, _) = refused(&policy(), &[READER, (annotations::SESSION_DURATION, "1s")]);
    assert_eq!(reason, Refusal::AnnotationInvalid);
}

#[test]
fn session_names_are_kiams() {
    let named = |name: &str| {
        let pairs = [READER, (annotations::SESSION_NAME, name)];
        granted(&policy(), &pairs).name
    };
    assert_eq!(named("testing"), "kiam-testing");
    assert_eq!(named("testing@#&-test%"), "kiam-testing@---test-");
    assert_eq!(named(&"n".repeat(59)).len(), 64);
    assert_eq!(named(&"n".repeat(60)).len(), 63);
    assert_eq!(named("\u{e9}"), "kiam--");
    assert_eq!(named(""), "kiam-kiam");
    assert!(named(&"\u{e9}".repeat(60)).len() <= 64);
}

#[test]
fn tags_that_say_where_a_pod_runs_are_the_servers_alone() {
    let key = "iam.amazonaws.com/session-tag.Kubernetes-Namespace";
    let (reason, text) = refused(&policy(), &[READER, (key, "other")]);
    assert_eq!(reason, Refusal::AnnotationInvalid);
    assert!(
        text.starts_with(&format!("annotation {key} of the pod: this tag")),
        "{text}"
    );
}

#[test]
fn session_tags_are_those_of_eks() {
    let tagging = Policy {
        session_tags: Some(ClusterTags {
            arn: None,
            name: Some("prod".into()),
        }),
        ..policy()
    };
    let session = granted(
        &tagging,
        &[READER, ("iam.amazonaws.com/session-tag.team", "x")],
    );
    let tags: Vec<_> = session
        .tags
        .iter()
        .map(|tag| (tag.key.as_str(), tag.value.as_str()))
        .collect();
    assert_eq!(
        tags,
        [
            ("eks-cluster-name", "prod"),
            ("kubernetes-namespace", "shop"),
            ("kubernetes-pod-name", "web-0"),
            ("kubernetes-pod-uid", "6f1a"),
            ("kubernetes-service-account", "web"),
            ("team", "x"),
        ]
    );
    assert_eq!(session.transitive_keys.len(), 5);
    assert!(!session.transitive_keys.contains(&"team".to_owned()));
    let keys: Vec<_> = (0..46)
        .map(|i| format!("iam.amazonaws.com/session-tag.k{i}"))
        .collect();
    let pairs: Vec<_> = keys
        .iter()
        .map(|key| (key.as_str(), "v"))
        .chain([READER])
        .collect();
    let (_, text) = refused(&tagging, &pairs);
    assert!(text.contains("at most 50 tags"), "{text}");
}
