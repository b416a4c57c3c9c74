use super::*;

const CERTIFICATES: [&str; 3] = ["--cert=c", "--key=k", "--ca=a"];
const BASE: &str = "--role-base-arn=arn:aws:iam::123456789012:role/";

fn read(args: &[&str]) -> Result<Task, Invalid> {
    let all = std::iter::once("kiam-server").chain(args.iter().copied());
    parse(all.map(OsString::from))
}

/// With the certificates and the base ARN that every server needs.
fn serve(args: &[&str]) -> Result<Config, Invalid> {
    let all: Vec<&str> = CERTIFICATES
        .into_iter()
        .chain([BASE])
        .chain(args.iter().copied())
        .collect();
    let task = read(&all)?;
    let Task::Serve(config) = task else {
        panic!("{task:?}")
    };
    Ok(*config)
}

#[track_caller]
fn refuses(args: &[&str], expected: &str) {
    let error = serve(args).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn kiams_own_command_line_is_understood() {
    // As kiam's manifests and chart have it.
    let task = read(&[
        "server",
        "--json-log",
        "--level=warn",
        "--bind=0.0.0.0:443",
        "--cert=/etc/kiam/tls/tls.crt",
        "--key=/etc/kiam/tls/tls.key",
        "--ca=/etc/kiam/tls/ca.crt",
        "--role-base-arn-autodetect",
        "--assume-role-arn=arn:aws:iam::123456789012:role/kiam-server",
        "--session-duration=15m",
        "--sync=1m",
        "--prometheus-listen-addr=0.0.0.0:9620",
        "--prometheus-sync-interval=5s",
        "--grpc-keepalive-time-duration=10s",
        "--grpc-max-connection-idle-duration=1m",
        "--disable-strict-namespace-regexp",
        "--region",
        "eu-west-1",
        "--session-refresh",
        "5m",
    ]);
    let Ok(Task::Serve(config)) = task else {
        panic!("{task:?}")
    };
    assert_eq!(config.bind, "0.0.0.0:443");
    assert_eq!(config.admin.as_deref(), Some("0.0.0.0:9620"));
    assert_eq!(config.base, Base::Autodetect);
    assert_eq!(config.matching, Matching::Anywhere);
    assert_eq!(config.session_duration, Duration::from_mins(15));
    assert_eq!(config.region.as_deref(), Some("eu-west-1"));
    let warning = "without a meaning here, ignored: --sync, --session-refresh, \
                   --prometheus-sync-interval, --grpc-max-connection-idle-duration";
    assert_eq!(config.warnings, [warning]);
}

#[test]
fn defaults_are_kiams_but_for_the_session() {
    let config = serve(&[]).unwrap();
    assert_eq!(config.bind, "localhost:9610");
    assert_eq!(config.session_name, "kiam");
    assert_eq!(config.session_duration, Duration::from_hours(1));
    assert_eq!(config.limits.fetchers.get(), 8);
    assert_eq!(config.matching, Matching::Whole);
    assert_eq!(config.agent_auth, Mode::Certificate);
    assert_eq!(config.clients, Clients::Certified);
    assert_eq!(config.keeping.age_max, Duration::from_mins(15));
    assert_eq!(config.kubernetes, Source::InCluster);
    assert!(config.assume_role.is_none() && config.admin.is_none());
    assert!(config.warnings.is_empty() && !config.legacy_agents && !config.dry_run);
}

#[test]
fn switches_have_a_no_form_and_the_last_word_counts() {
    assert!(serve(&["--json-log"]).unwrap().json_log);
    assert!(!serve(&["--json-log", "--no-json-log"]).unwrap().json_log);
    assert!(
        serve(&["--no-legacy-agents", "--legacy-agents"])
            .unwrap()
            .legacy_agents
    );
    let config = serve(&["--session-duration=15m", "--session-duration", "1h30m"]).unwrap();
    assert_eq!(config.session_duration, Duration::from_mins(90));
}

#[test]
fn contradictions_are_refused_with_what_to_change() {
    refuses(&["--session-duration=10m"], "at least 15 minutes");
    refuses(&["--session-duration=13h"], "12h");
    refuses(
        &["--session-duration=15m", "--session-refresh=15m"],
        "--session-refresh",
    );
    refuses(&["--session-duration=fast"], "expected a number and a unit");
    refuses(&["--fetchers=0"], "--fetchers");
    refuses(&["--sts-rate=0"], "--sts-rate");
    refuses(&["--sts-rate=nan"], "--sts-rate");
    refuses(&["--agent-auth=token"], "--agent-service-account");
    refuses(&["--agent-service-account=a/b"], "--agent-auth token");
    refuses(
        &["--agent-auth=token", "--agent-service-account=b"],
        "namespace/name",
    );
    refuses(&["--cluster-name=c"], "--session-tags");
    refuses(&["--source-identity={node}"], "--source-identity");
    refuses(&["--role-base-arn=arn:aws:s3:::b"], "--role-base-arn");
    refuses(
        &["--role-base-arn="],
        "please specify or use --role-base-arn-autodetect",
    );
    refuses(&["--grpc-max-connection-age-duration=1s"], "10s");
    refuses(&["--grpc-keepalive-time-ms=0"], "more than zero");
    refuses(&["--grpc-keepalive-timeout-ms=0s"], "more than zero");
    for bad in ["", "-1", "10 s", "99999999999999999999"] {
        let flag = format!("--grpc-keepalive-time-ms={bad}");
        refuses(&[&flag], "--grpc-keepalive-time-ms");
    }
    refuses(&["--level=loud"], "loud");
    refuses(&["--unheard-of"], "--unheard-of");
}

#[test]
fn keepalive_in_ms_is_a_number_or_a_duration() {
    for (every, timeout) in [("15000", "2500"), ("15s", "2500ms")] {
        let every = format!("--grpc-keepalive-time-ms={every}");
        let timeout = format!("--grpc-keepalive-timeout-ms={timeout}");
        let keys = ["--cert=c", "--key=k", "--ca=a"];
        let task = read(&[&[BASE, &every, &timeout][..], &keys[..]].concat());
        let Ok(Task::Serve(config)) = task else {
            panic!("{task:?}")
        };
        assert_eq!(config.keeping.ping_every, Duration::from_secs(15));
        assert_eq!(config.keeping.ping_timeout, Duration::from_millis(2_500));
    }
}

#[test]
fn what_a_server_cannot_do_without_is_asked_for() {
    let error = |args: &[&str]| read(args).unwrap_err().to_string();
    assert!(error(&[BASE]).contains("--cert is missing"));
    assert!(error(&[BASE, "--cert=c"]).contains("--key is missing"));
    assert!(error(&[BASE, "--cert=c", "--key=k"]).contains("--ca is missing"));
    let token = [
        "--cert=c",
        "--key=k",
        "--agent-auth=token",
        "--agent-service-account=kiam/agent",
    ];
    let task = read(&[&[BASE][..], &token].concat());
    let Ok(Task::Serve(config)) = task else {
        panic!("{task:?}")
    };
    assert_eq!(config.clients, Clients::Anonymous);
    let legacy = [&[BASE, "--legacy-agents"][..], &token].concat();
    assert!(error(&legacy).contains("--ca is missing"));
}

#[test]
fn weaker_ways_are_remarked_on() {
    for flag in ["--agent-auth=shared-certificate", "--legacy-agents"] {
        let warnings = serve(&[flag]).unwrap().warnings;
        assert!(
            warnings[0].contains("every pod's credentials"),
            "{warnings:?}"
        );
    }
}

#[test]
fn a_dry_run_needs_no_certificates() {
    assert!(matches!(read(&[BASE, "--dry-run"]), Ok(Task::Serve(config)) if config.tls.is_none()));
}

#[test]
fn the_configuration_can_be_printed() {
    let task = read(&["--cert=c", "--key=k", "--ca=a", BASE, "--print-config"]);
    let Ok(Task::PrintConfig(text)) = task else {
        panic!("{task:?}")
    };
    let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(shown["session_duration"], "3600s");
    assert_eq!(shown["agent_auth"], "certificate");
}

#[test]
fn arguments_may_come_from_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "--session=from-file\n--no-json-log\n").unwrap();
    let config = serve(&["--json-log", &format!("@{}", file.path().display())]).unwrap();
    assert_eq!(
        (config.session_name.as_str(), config.json_log),
        ("from-file", false)
    );
    assert!(matches!(
        serve(&["@/nowhere"]),
        Err(Invalid::ArgumentFile { .. })
    ));
}

#[test]
fn probes_and_questions_are_understood() {
    // As kiam's chart has it.
    let task = read(&[
        "health",
        "--cert=c",
        "--key=k",
        "--ca=a",
        "--server-address=127.0.0.1:443",
        "--server-address-refresh=2s",
        "--timeout=5s",
        "--gateway-timeout-creation=1s",
    ]);
    let Ok(Task::Health(health)) = task else {
        panic!("{task:?}")
    };
    assert_eq!(
        (health.server_address.as_str(), health.timeout()),
        ("127.0.0.1:443", Duration::from_secs(5))
    );
    let task = read(&["why", "default/web-0", "--json"]);
    assert!(matches!(task, Ok(Task::Why(why)) if why.pod == "default/web-0" && why.json));
    assert!(matches!(
        read(&["completion", "bash"]),
        Ok(Task::Completion(_))
    ));
    let script = String::from_utf8(shell_completion(clap_complete::Shell::Bash)).unwrap();
    assert!(script.contains("--role-base-arn"));
}
