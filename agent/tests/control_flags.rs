//! What command lines mean: each of kiam's flags, each of ours, and what is refused.

#![expect(clippy::panic, reason = "a test may end here")]

use std::ffi::OsString;
use std::io::Write;
use std::num::NonZeroUsize;

use kiam_agent::config::{self, Config, Intercept, Interceptor, Invalid, Task};

/// A file that is there: what it holds is looked at only when a connection is made.
const FILE: &str = env!("CARGO_MANIFEST_PATH");

fn parse(flags: &[&str]) -> Result<Task, Invalid> {
    let args = std::iter::once("kiam-agent").chain(flags.iter().copied());
    config::parse(
        args.map(OsString::from),
        NonZeroUsize::MIN.saturating_add(3),
    )
}

/// The configuration that `flags` make, beside the few that must be given.
fn config(flags: &[&str]) -> Result<Config, String> {
    let (ca, cert, key) = (
        format!("--ca={FILE}"),
        format!("--cert={FILE}"),
        format!("--key={FILE}"),
    );
    let mut all = vec!["--node-name=node-a", ca.as_str(), &cert, &key];
    all.extend(flags);
    match parse(&all) {
        Ok(Task::Serve(config)) => Ok(*config),
        Ok(other) => Err(format!("{other:?}")),
        Err(invalid) => Err(invalid.to_string()),
    }
}

/// `show` names a part of the configuration, so that the tables below are data.
#[track_caller]
fn check<T: std::fmt::Debug>(flags: &[&str], show: impl Fn(&Config) -> T, expected: &str) {
    let got = config(flags).map_or_else(|error| error, |config| format!("{:?}", show(&config)));
    assert_eq!(got, expected, "for {flags:?}");
}

#[track_caller]
fn refused(flags: &[&str], expected: &str) {
    match config(flags) {
        Ok(_) => panic!("{flags:?} was accepted"),
        Err(error) => assert!(
            error.contains(expected),
            "{flags:?} was refused with: {error}"
        ),
    }
}

#[test]
fn kiams_flags_about_pods() {
    let listen = |config: &Config| config.pods.listen;
    check(&[], listen, "[::]:3100");
    check(&["--port=8181"], listen, "[::]:8181");
    check(&["--port", "8181"], listen, "[::]:8181");
    check(
        &["--port=1", "--listen-addr=10.0.0.1"],
        listen,
        "10.0.0.1:1",
    );
    let ip_query = |config: &Config| config.pods.allow_ip_query;
    check(&[], ip_query, "false");
    check(&["--allow-ip-query"], ip_query, "true");
    check(&["--no-allow-ip-query"], ip_query, "false");
    check(&["--allow-ip-query=false"], ip_query, "false");
    let routes = |config: &Config| {
        let allow = config.pods.passthrough.as_ref();
        allow.map(|allow| allow.allow.as_str().to_owned())
    };
    check(&[], routes, "None");
    check(&["--allow-route-regexp="], routes, "None");
    check(&["--allow-route-regexp=^$"], routes, "None");
    check(&["--allow-route-regexp=^/a"], routes, "Some(\"^/a\")");
    check(&["--whitelist-route-regexp=^/a"], routes, "Some(\"^/a\")");
    refused(
        &["--allow-route-regexp=("],
        "--allow-route-regexp is no regular expression",
    );
    refused(&["--port=65536"], "--port");
}

#[test]
fn kiams_flags_about_interception() {
    let with = |config: &Config| {
        let Intercept {
            with,
            remove_at_exit,
            rules,
        } = &config.intercept;
        let rules = rules.as_ref().map_or_else(String::new, |rules| {
            let hosts: Vec<String> = rules.hosts().map(|host| host.to_string()).collect();
            format!(
                "{} {} {}",
                hosts.join(","),
                rules.port(),
                rules.interfaces()
            )
        });
        let with = with.map_or_else(|| "None".to_owned(), |with| format!("{with:?}"));
        format!("{with} {remove_at_exit} {rules}")
    };
    let check = |flags: &[&str], expected: &str| {
        check(flags, with, &format!("{expected:?}"));
    };
    let host = "--host=10.0.0.5";
    check(&[], "None false ");
    check(
        &["--iptables", host],
        "Iptables false 10.0.0.5 3100 docker0",
    );
    check(&["--no-iptables"], "None false ");
    check(
        &[
            "--iptables",
            "--iptables-remove",
            host,
            "--host-interface=!eth0",
        ],
        "Iptables true 10.0.0.5 3100 !eth0",
    );
    check(
        &[
            "--iptables",
            "--no-iptables-remove",
            host,
            "--host-interface",
            "cali+",
        ],
        "Iptables false 10.0.0.5 3100 cali+",
    );
    check(
        &["--intercept=nftables", host, "--port=8181"],
        "Nftables false 10.0.0.5 8181 docker0",
    );
    check(
        &[
            "--intercept=auto",
            "--host=10.0.0.5,fd00::5",
            "--host-interface=eni+,vlan+",
        ],
        "Auto false 10.0.0.5,fd00::5 3100 eni+,vlan+",
    );
    check(
        &["--intercept=iptables", "--iptables", host],
        "Iptables false 10.0.0.5 3100 docker0",
    );
}

#[test]
fn interception_that_cannot_be_is_refused() {
    let host = "--host=10.0.0.5";
    refused(&["--iptables"], "HOST_IP");
    refused(
        &["--iptables", "--intercept=nftables", host],
        "--iptables contradicts",
    );
    refused(
        &["--iptables", "--intercept=none", host],
        "--iptables contradicts",
    );
    refused(&["--iptables", "--host=0.0.0.0"], "0.0.0.0");
    refused(&["--iptables", "--host=node"], "--host");
    refused(
        &["--iptables", host, "--host-interface=a b"],
        "--host-interface",
    );
    refused(&["--iptables", host, "--port=0"], "--port 0 contradicts");
}

#[test]
fn kiams_flags_about_the_server() {
    let address = |config: &Config| config.server.address.to_string();
    check(&[], address, "\"localhost:9610\"");
    check(
        &["--server-address=kiam-server:443"],
        address,
        "\"kiam-server:443\"",
    );
    refused(&["--server-address=kiam-server"], "expected HOST:PORT");
    let dial = |config: &Config| config.server.connect_timeout;
    check(&[], dial, "1s");
    check(&["--gateway-timeout-creation=50ms"], dial, "50ms");
    refused(
        &["--gateway-timeout-creation=0s"],
        "must be greater than zero",
    );
    refused(&["--gateway-timeout-creation=5"], "the unit is missing");
    let pings = |config: &Config| {
        let keepalive = config.server.keepalive;
        (keepalive.every, keepalive.timeout)
    };
    check(&[], pings, "(10s, 2s)");
    check(
        &[
            "--grpc-keepalive-time-duration=1m",
            "--grpc-keepalive-timeout-duration=1.5s",
        ],
        pings,
        "(60s, 1.5s)",
    );
    check(
        &[
            "--grpc-keepalive-time-ms=20s",
            "--grpc-keepalive-timeout-ms=3s",
        ],
        pings,
        "(20s, 3s)",
    );
}

#[test]
fn kiams_flags_about_operators() {
    let admin = |config: &Config| config.node.admin;
    check(&[], admin, "None");
    check(&["--prometheus-listen-addr="], admin, "None");
    check(
        &["--prometheus-listen-addr=localhost:9620"],
        admin,
        "Some(127.0.0.1:9620)",
    );
    check(
        &["--prometheus-listen-addr=0.0.0.0:9620"],
        admin,
        "Some(0.0.0.0:9620)",
    );
    check(&["--admin-listen-addr=:9620"], admin, "Some([::]:9620)");
    refused(&["--admin-listen-addr=9620"], "expected ADDRESS:PORT");
    let log = |config: &Config| (config.log.json, config.log.level);
    check(&[], log, "(false, Info)");
    check(&["--json-log", "--level=debug"], log, "(true, Debug)");
    check(&["--no-json-log", "--level=warn"], log, "(false, Warn)");
    check(&["--level", "error"], log, "(false, Error)");
    refused(&["--level=trace"], "--level");
    refused(&["--level=INFO"], "--level");
}

#[test]
fn kiams_flags_without_a_meaning_are_named() {
    let ignored = |config: &Config| config.ignored.join(" ");
    check(&[], ignored, "\"\"");
    check(
        &[
            "--server-address-refresh=2s",
            "--grpc-keepalive-permit-without-stream",
            "--prometheus-sync-interval=5s",
            "--pprof-listen-addr=localhost:6060",
            "--statsd=localhost:8125",
            "--statsd-prefix=kiam",
            "--statsd-interval=100ms",
        ],
        ignored,
        "\"--server-address-refresh --grpc-keepalive-permit-without-stream \
         --prometheus-sync-interval --pprof-listen-addr --statsd --statsd-prefix \
         --statsd-interval\"",
    );
}

#[test]
fn a_command_line_of_kiams_chart_starts_this_agent() {
    let config = config(&[
        "--iptables",
        "--no-iptables-remove",
        "--host=10.0.0.5",
        "--host-interface=cali+",
        "--json-log",
        "--level=info",
        "--port=8181",
        "--server-address=kiam-server:443",
        "--prometheus-listen-addr=0.0.0.0:9620",
        "--prometheus-sync-interval=5s",
        "--gateway-timeout-creation=1s",
    ])
    .unwrap();
    assert_eq!(config.intercept.with, Some(Interceptor::Iptables));
    assert_eq!(config.ignored, ["--prometheus-sync-interval"]);
}

#[test]
fn kiams_ways_to_write_a_command_line() {
    // The sub-command of kiam's image.
    let cert = format!("--cert={FILE}");
    let rest = ["--node-name=n", "--ca", FILE, "--key", FILE, &cert];
    let agent: Vec<&str> = std::iter::once("agent").chain(rest).collect();
    assert!(matches!(parse(&agent), Ok(Task::Serve(_))));
    // Arguments in a file.
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "# pods\n--port=8181\n\n  --no-json-log").unwrap();
    let at = format!("@{}", file.path().display());
    check(&[&at], |config| config.pods.listen.port(), "8181");
    refused(
        &["@/nonexistent"],
        "cannot read the arguments in @/nonexistent",
    );
    // Only booleans can be negated.
    refused(&["--no-port"], "--no-port");
}

#[test]
fn who_the_agent_is() {
    let identity = |flags: &[&str]| match parse(flags) {
        Ok(Task::Serve(config)) => format!(
            "certificate {}, token {}",
            config.server.identity.is_some(),
            config.server.token_file.is_some()
        ),
        Ok(_) => "something else".into(),
        Err(invalid) => invalid.to_string(),
    };
    let base = ["--node-name=n", "--ca", FILE];
    let with = |more: &[&str]| identity(&[&base[..], more].concat());
    assert_eq!(
        with(&["--cert", FILE, "--key", FILE]),
        "certificate true, token false"
    );
    assert_eq!(
        with(&["--token-file", FILE]),
        "certificate false, token true"
    );
    assert_eq!(
        with(&["--cert", FILE, "--key", FILE, "--token-file", FILE]),
        "certificate true, token true"
    );
    assert_eq!(with(&["--cert", FILE]), "--cert also needs --key");
    assert_eq!(with(&["--key", FILE]), "--key also needs --cert");
    assert!(with(&[]).starts_with("servers could not tell which agent this is"));
    assert!(with(&["--token-file", "/nonexistent"]).starts_with("cannot read --token-file"));
    assert_eq!(
        with(&["--token-file", "/"]),
        "--token-file / is a directory, not a file"
    );
    assert!(identity(&["--node-name=n", "--token-file", FILE]).contains("--ca"));
}

#[test]
fn our_own_flags() {
    let pods = |config: &Config| {
        let workers = config.pods.workers;
        (
            workers.count.get(),
            workers.pinned,
            workers.driver,
            workers.scheduling,
        )
    };
    check(&[], pods, "(1, false, Auto, Other)");
    check(
        &[
            "--workers=4",
            "--pin-workers",
            "--driver=io_uring",
            "--scheduling=rr",
        ],
        pods,
        "(4, true, IoUring, RoundRobin)",
    );
    check(
        &["--driver=epoll", "--scheduling=nice"],
        pods,
        "(1, false, Epoll, Nice)",
    );
    refused(&["--workers=5"], "--workers 5 is more than the 4 cores");
    refused(&["--workers=0"], "--workers");
    refused(&["--driver=select"], "--driver");
    let doors = |config: &Config| {
        let door = config.pods.container.as_ref();
        door.map(|door| (door.listen.clone(), door.audience.clone()))
    };
    check(&[], doors, "None");
    check(
        &[
            "--container-credentials-listen=169.254.170.23:80",
            "--container-credentials-listen=[fd00:ec2::23]:80",
            "--container-credentials-audience=kiam",
        ],
        doors,
        "Some(([169.254.170.23:80, [fd00:ec2::23]:80], \"kiam\"))",
    );
}

#[test]
fn where_the_node_is() {
    let place = |config: &Config| {
        (
            config.pods.region.clone(),
            config.pods.availability_zone.clone(),
        )
    };
    check(
        &["--region=eu-west-1"],
        place,
        "(Some(\"eu-west-1\"), None)",
    );
    check(
        &["--availability-zone=eu-west-1a"],
        place,
        "(Some(\"eu-west-1\"), Some(\"eu-west-1a\"))",
    );
    refused(
        &["--availability-zone=us-west-2-lax-1a"],
        "also needs --region",
    );
    check(
        &["--availability-zone=us-west-2-lax-1a", "--region=us-west-2"],
        place,
        "(Some(\"us-west-2\"), Some(\"us-west-2-lax-1a\"))",
    );
    refused(
        &["--region=eu-west-1", "--availability-zone=us-east-1a"],
        "contradicts",
    );
    refused(&["--region=a\r\nb"], "--region takes");
}

#[test]
fn limits_that_contradict_each_other_are_refused() {
    let limits = |config: &Config| {
        let limits = &config.limits;
        (
            limits.park_timeout,
            limits.peer_burst,
            limits.connections_max,
        )
    };
    check(&[], limits, "(900ms, 2000, 4096)");
    check(
        &["--requests-per-second-per-peer=5"],
        limits,
        "(900ms, 10, 4096)",
    );
    refused(
        &[
            "--requests-per-second-per-peer=5",
            "--request-burst-per-peer=4",
        ],
        "--request-burst-per-peer must not be smaller than --requests-per-second-per-peer",
    );
    refused(
        &["--connections-max=10"],
        "--connections-max must not be smaller",
    );
    refused(
        &["--parked-max=63"],
        "--parked-max must not be smaller than --parked-per-peer-max",
    );
    refused(
        &["--connections-max=1000", "--connections-per-peer-max=10"],
        "--connections-max must not be smaller than --parked-max",
    );
    refused(
        &["--park-timeout=0s"],
        "--park-timeout must be greater than zero",
    );
    refused(&["--park-timeout=1m"], "--park-timeout must be at most 10s");
    refused(&["--idle-timeout=1s"], "--idle-timeout must be at least 5s");
    refused(
        &["--reconnect-delay=1m"],
        "--reconnect-delay-max must not be smaller",
    );
    refused(
        &["--admin-listen-addr=127.0.0.1:3100"],
        "--admin-listen-addr and --port both listen on 127.0.0.1:3100",
    );
}

#[test]
fn a_node_needs_its_name() {
    refused(&["--node-name=Node_A"], "cannot be used multiple times");
    let flags = ["--node-name=Node_A", "--ca", FILE, "--token-file", FILE];
    assert!(
        parse(&flags)
            .unwrap_err()
            .to_string()
            .contains("spec.nodeName")
    );
}

#[test]
fn the_rules_of_an_init_container() {
    let rules = |flags: &[&str]| match parse(flags) {
        Ok(Task::Rules(task)) => {
            let port = task.intercept.rules.map(|rules| rules.port());
            format!("{:?} {port:?} {:?}", task.action, task.intercept.with)
        }
        Ok(_) => "something else".into(),
        Err(invalid) => invalid.to_string(),
    };
    assert_eq!(
        rules(&["intercept", "install", "--host=10.0.0.5", "--port=8181"]),
        "Install Some(8181) None"
    );
    assert_eq!(
        rules(&[
            "intercept",
            "status",
            "--intercept=iptables",
            "--host=10.0.0.5",
            "--json"
        ]),
        "Status Some(3100) Some(Iptables)"
    );
    assert_eq!(
        rules(&["intercept", "remove", "--kiam-leftovers"]),
        "Remove None None"
    );
    assert_eq!(rules(&["intercept", "probe"]), "Probe None None");
    assert!(rules(&["intercept", "remove"]).contains("HOST_IP"));
    assert!(rules(&["intercept", "install"]).contains("HOST_IP"));
    assert!(rules(&["intercept", "mend"]).contains("mend"));
}

#[test]
fn every_shell_gets_its_script() {
    for shell in ["bash", "zsh", "fish"] {
        let Ok(Task::Completion(shell)) = parse(&["completion", shell]) else {
            panic!("no completion for {shell}");
        };
        let script = String::from_utf8(config::completion(shell)).unwrap();
        assert!(script.contains("park-timeout"), "{shell}: {script}");
    }
    assert!(parse(&["completion", "tcsh"]).is_err());
}
