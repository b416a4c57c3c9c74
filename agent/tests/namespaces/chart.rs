//! What the chart renders, run as a container runtime would run it: the init container's arguments and
//! capabilities, then the agent's, from the golden render itself.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use crate::program::{HANDOVER, PROGRAM, Running, admin, leave_snapshot, until_verified};
use crate::world::{Got, HOST, Metadata, Pod, V4, build, eventually, sh};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/tests/golden/");
/// Where the chart puts the admin port.
const ADMIN: u16 = 9620;

/// One container of the agent's pods.
struct Container {
    arguments: Vec<String>,
    capabilities: Vec<String>,
}

impl Container {
    /// The container `name` of the `DaemonSet` in `render`. It knows as much of YAML as the chart uses.
    fn read(render: &str, name: &str) -> Self {
        let (_, pods) = render.split_once("kind: DaemonSet").unwrap();
        let (_, container) = pods.split_once(&format!("- name: {name}\n")).unwrap();
        let lines = container.lines().skip_while(|line| line.trim() != "args:");
        let arguments = lines
            .skip(1)
            .map_while(|line| line.trim().strip_prefix("- "))
            .map(|word| word.trim_matches('"'))
            .map(|word| word.replace("$(HOST_IP)", HOST))
            .collect();
        let (_, after) = container.split_once("drop: [\"ALL\"]\n").unwrap();
        let added = after.lines().next().unwrap().trim();
        let capabilities = added
            .strip_prefix("add: ")
            .map(|list| serde_json::from_str(list).unwrap())
            .unwrap_or_default();
        Self {
            arguments,
            capabilities,
        }
    }

    /// Root with these capabilities and no way to more.
    fn command(&self) -> Command {
        let kept = ["-all".to_owned()]
            .into_iter()
            .chain(
                self.capabilities
                    .iter()
                    .map(|name| format!("+{}", name.to_lowercase())),
            )
            .collect::<Vec<_>>()
            .join(",");
        let mut command = Command::new("setpriv");
        command
            .args(["--no-new-privs", "--inh-caps=-all"])
            .arg(format!("--bounding-set={kept}"))
            .arg(PROGRAM)
            .args(&self.arguments)
            .env("NODE_NAME", "node-a")
            .env("HOST_IP", HOST);
        command
    }

    fn run(&self) {
        let output = self.command().output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        println!("{said}");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{complaint}");
    }
}

/// The node as the kubelet leaves it to the containers.
fn prepare(golden: &str) -> (Metadata, Container, Container) {
    let render = std::fs::read_to_string(format!("{GOLDEN}{golden}.yaml")).unwrap();
    let metadata = build();
    sh(&format!(
        "mkdir -m 0755 {HANDOVER}; mkdir -p /run/secrets/kiam; echo none > /run/secrets/kiam/token
         mount -t tmpfs tmpfs /etc; mkdir -p /etc/kiam/tls; : > /etc/kiam/tls/ca.crt"
    ));
    let init = Container::read(&render, "intercept");
    let agent = Container::read(&render, "agent");
    assert_eq!(init.arguments[..2], ["intercept", "install"]);
    for words in [
        "--intercept=",
        "--port=",
        "--host-interface=",
        "--handover-dir=",
    ] {
        let of = |container: &Container| {
            let mut words = container
                .arguments
                .iter()
                .filter(|word| word.starts_with(words));
            (words.next().cloned(), words.next().is_none())
        };
        assert_eq!(of(&init), of(&agent), "both are given the same {words}");
    }
    (metadata, init, agent)
}

/// The default: the agent has no privilege, and says when the rules are gone.
pub(crate) fn an_agent_without_privileges_misses_the_rules() {
    let (metadata, init, agent) = prepare("default");
    init.run();
    leave_snapshot(&[(1, "s")]);
    let running = Running::spawn(agent.command());
    // No pod has asked anything: the installer's probe and the agent's telltale are enough.
    until_verified(ADMIN, true);
    is_hardened(running.pid(), 0);
    let pod = Pod::create(1);
    assert_eq!(pod.call(V4, 80), Got::Agent);

    sh("nft delete table inet kiam");
    until_verified(ADMIN, false);
    assert!(running.has_said("the interception rules are gone"));
    assert_ne!(pod.call(V4, 80), Got::Metadata);

    // What the message says helps, and what a new pod of the agent does first.
    init.run();
    until_verified(ADMIN, true);
    assert_eq!(pod.call(V4, 80), Got::Agent);

    // The second wall alone: of that the kernel tells everybody.
    sh("ip rule del pref 51");
    until_verified(ADMIN, false);
    init.run();
    until_verified(ADMIN, true);
    assert_eq!(metadata.seen_from_pods(), 0);
}

/// With `agent.host.reconcile`: it has `NET_ADMIN`, and puts the rules back.
pub(crate) fn an_agent_with_net_admin_puts_the_rules_back() {
    let (metadata, init, mut agent) = prepare("everything");
    // What this kernel, or the tests' one processor, may not have.
    agent.arguments.retain(|word| {
        ![
            "--driver=",
            "--workers=",
            "--scheduling=",
            "--container-credentials",
        ]
        .iter()
        .any(|part| word.starts_with(part))
    });
    init.run();
    leave_snapshot(&[(1, "s")]);
    let running = Running::spawn(agent.command());
    until_verified(ADMIN, true);
    is_hardened(running.pid(), 1 << 12);
    let restored = || {
        let (_, metrics) = admin(ADMIN, "/metrics").unwrap();
        let values: BTreeMap<&str, &str> = metrics
            .lines()
            .filter_map(|line| line.rsplit_once(' '))
            .collect();
        values["kiam_agent_interception_restored_total"]
            .parse::<usize>()
            .unwrap()
    };
    for removal in [
        "nft delete table inet kiam",
        "ip rule del pref 51",
        "ip -6 rule del pref 51",
        "nft flush ruleset",
    ] {
        let before = restored();
        sh(removal);
        // Counted once they were found in place again.
        eventually(&format!("{removal} is undone"), || restored() > before);
        assert!(sh("nft list tables").contains("kiam"), "{removal}");
        for family in ["-4", "-6"] {
            let standing = sh(&format!("ip {family} rule list pref 51"));
            assert!(standing.contains("unreachable"), "{removal}: {standing}");
        }
    }
    until_verified(ADMIN, true);

    // A later agent that never came to serve: its rules are left to it until it is certain that nobody
    // answers where they lead.
    let before = restored();
    let mut later = init;
    for word in &mut later.arguments {
        if word.starts_with("--port=") {
            "--port=9".clone_into(word);
        }
    }
    later.command().output().unwrap();
    until_verified(ADMIN, false);
    // It looks every half a minute.
    std::thread::park_timeout(Duration::from_secs(20));
    eventually("the rules are taken back", || restored() > before);
    until_verified(ADMIN, true);
    assert_eq!(metadata.seen_from_pods(), 0);
}

/// Every thread of the process may do what `capabilities` says and no more, and cannot get more.
/// Nobody without privileges of their own may look into it.
fn is_hardened(pid: u32, capabilities: u64) {
    let mut threads = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let mut lines = status.lines();
            let line = lines.find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        assert_eq!(field("NoNewPrivs:"), 1, "{status}");
        for set in ["CapPrm:", "CapEff:"] {
            let name = status.lines().next().unwrap();
            let worker = !name.contains("control") && !name.contains("kiam-agent");
            let expected = if worker { 0 } else { capabilities };
            assert_eq!(field(set), expected, "{status}");
        }
        assert_eq!((field("CapInh:"), field("CapAmb:")), (0, 0));
        threads += 1;
    }
    assert!(threads >= 2, "the control thread and a worker");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let read = |pid: u32| {
        Command::new("setpriv")
            .args(["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"])
            .args(["cat", &format!("/proc/{pid}/environ")])
            .output()
            .unwrap()
            .status
            .success()
    };
    // The same user, just as unprivileged: only that it is not dumpable keeps it out.
    let mut other = Command::new("setpriv")
        .args([
            "--no-new-privs",
            "--inh-caps=-all",
            "--bounding-set=-all",
            "sleep",
            "60",
        ])
        .spawn()
        .unwrap();
    eventually("an ordinary process can be looked into", || {
        read(other.id())
    });
    assert!(!read(pid), "the agent can be looked into");
    other.kill().unwrap();
    other.wait().unwrap();
}
