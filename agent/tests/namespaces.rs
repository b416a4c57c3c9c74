//! Interception, hand-over and fencing as pods see them, in network namespaces made for the test.
//!
//! Each test runs itself again inside an unprivileged user namespace (`unshare`), in which it may do
//! anything and which takes everything with it when it ends. Where the kernel refuses that, or a
//! tool is missing, the test says so in a line that begins with SKIPPED, and passes; with
//! `KIAM_TESTS_REQUIRE=namespaces` it fails.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a test may end here, and says what it measured"
)]
#![expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "counts become averages"
)]
#![expect(
    clippy::clone_on_ref_ptr,
    reason = "each thread of a test gets a handle of everything"
)]

#[path = "namespaces/chart.rs"]
mod chart;
#[path = "namespaces/costs.rs"]
mod costs;
#[path = "namespaces/hops.rs"]
mod hops;
#[path = "namespaces/program.rs"]
mod program;
#[path = "namespaces/real.rs"]
mod real;
#[path = "namespaces/upgrade.rs"]
mod upgrade;
#[path = "namespaces/world.rs"]
mod world;

use std::net::{IpAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use kiam_agent::fence::{Fence, FenceEvent, Signal};
use kiam_agent::intercept::command::{self, Action, Options, Setting};
use kiam_agent::intercept::oversee::{Metrics, Oversight};
use kiam_agent::intercept::probe::{Outcome, from_namespace};
use kiam_agent::intercept::verdict::Verdict;
use kiam_agent::intercept::{Backend, Placement, install, remove, status};
use kiam_wire::UnixSeconds;
use kiam_wire::report::Interception;
use tokio::sync::watch;
use world::{Agent, Got, PORT, Pod, V4, V6, build, eventually, inside, rules, sh};

/// Set for the inner run.
const INNER: &str = "KIAM_TEST_INSIDE_NAMESPACES";
/// What must not be skipped, with commas between.
const REQUIRED: &str = "KIAM_TESTS_REQUIRE";
const TOOLS: [&str; 6] = ["unshare", "setpriv", "ip", "nft", "iptables", "ip6tables"];

/// Whether whoever runs the tests wants to know that these cannot.
fn is_required() -> bool {
    #[expect(clippy::disallowed_methods, reason = "a wish of who runs the tests")]
    let required = std::env::var(REQUIRED).unwrap_or_default();
    required.split(',').any(|what| what == "namespaces")
}

/// Runs `body` in namespaces of its own: the outer run of the test only starts the inner one.
fn in_namespaces(test: &str, body: impl AsyncFnOnce()) {
    #[expect(
        clippy::disallowed_methods,
        reason = "tells the inner run from the outer"
    )]
    let inner = std::env::var(INNER).is_ok();
    if inner {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        return runtime.unwrap().block_on(async {
            tokio::time::timeout(Duration::from_mins(2), body())
                .await
                .unwrap();
        });
    }
    if let Some(reason) = unsupported() {
        assert!(!is_required(), "{test} cannot run: {reason}");
        println!("SKIPPED {test}: {reason}");
        return;
    }
    let output = Command::new("timeout")
        .args([
            "-s",
            "KILL",
            "180",
            "unshare",
            "-Urnm",
            "--fork",
            "--kill-child",
        ])
        .arg(std::env::current_exe().unwrap())
        .args([
            test,
            "--exact",
            "--nocapture",
            "--include-ignored",
            "--test-threads=1",
        ])
        .env(INNER, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{test}:\n{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn unsupported() -> Option<String> {
    for tool in TOOLS {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {tool}")])
            .output();
        if !found.is_ok_and(|output| output.status.success()) {
            return Some(format!("{tool} is not installed"));
        }
    }
    let tried = "mount -t tmpfs tmpfs /run && nft list tables && echo 1 > /proc/sys/net/ipv4/ip_forward
                 ip link add kiama type veth peer name kiamb && iptables-save -t nat && ip6tables-save -t nat";
    let output = Command::new("unshare")
        .args(["-Urnm", "sh", "-ec", tried])
        .output()
        .ok()?;
    (!output.status.success()).then(|| {
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        format!(
            "the kernel refuses namespaces of our own: {}",
            complaint.trim()
        )
    })
}

const AT: UnixSeconds = UnixSeconds::new(1_800_000_000);

#[test]
fn nftables_keep_pods_away_from_the_nodes_metadata_service() {
    in_namespaces(
        "nftables_keep_pods_away_from_the_nodes_metadata_service",
        async || {
            every_phase(Backend::Nftables, "cali+").await;
        },
    );
}

#[test]
fn nftables_with_a_negated_interface_do_so_too() {
    in_namespaces("nftables_with_a_negated_interface_do_so_too", async || {
        every_phase(Backend::Nftables, "!eth0").await;
    });
}

#[test]
fn iptables_keep_pods_away_from_the_nodes_metadata_service() {
    in_namespaces(
        "iptables_keep_pods_away_from_the_nodes_metadata_service",
        async || {
            every_phase(Backend::Iptables, "cali+").await;
        },
    );
}

#[test]
fn iptables_with_a_negated_interface_do_so_too() {
    in_namespaces("iptables_with_a_negated_interface_do_so_too", async || {
        every_phase(Backend::Iptables, "!eth0").await;
    });
}

#[expect(
    clippy::too_many_lines,
    clippy::cognitive_complexity,
    reason = "one story, told from its beginning to its end"
)]
async fn every_phase(backend: Backend, interfaces: &str) {
    let metadata = build();
    let pod = Pod::create(1);
    let ours = rules(PORT, interfaces);

    // Without rules the pod does get there: what follows would otherwise prove nothing.
    for address in [V4, V6] {
        assert_eq!(pod.call(address, 80), Got::Metadata);
    }
    let mut early = [V4, V6].map(|address| pod.open(address));
    eventually("the early connections are counted", || {
        metadata.seen_from_pods() == 6
    });
    assert_eq!(status(backend, &ours).await.unwrap(), Placement::Absent);

    let installed = install(backend, &ours, AT).await.unwrap();
    assert!(installed.cut.unwrap() >= 2, "the early connections are cut");
    assert_eq!(status(backend, &ours).await.unwrap(), Placement::InPlace);
    for stream in &mut early {
        use std::io::{Read, Write};
        drop(stream.write_all(b"GET / HTTP/1.1\r\n\r\n"));
        let mut answer = [0; 16];
        assert!(
            !matches!(stream.read(&mut answer), Ok(1..)),
            "an early connection goes on"
        );
    }
    assert_eq!(metadata.seen_from_pods(), 6, "installed, no agent");

    unreachable_in_every_way(&pod);
    assert_eq!(metadata.seen_from_pods(), 6, "no agent");

    let agent = Agent::start(PORT);
    for address in [V4, V6] {
        assert_eq!(pod.call(address, 80), Got::Agent);
        assert!(is_shut(&pod.call(address, 81)), "other ports stay shut");
    }
    assert!(
        agent.witness.has_seen(),
        "the kernel tells that it came through the rules"
    );
    assert!(
        agent.peers.lock().unwrap().contains(&pod.ip),
        "the pod's own address is seen"
    );
    let before = metadata.seen_from_node();
    for address in [V4, V6] {
        let own = world::call((address.parse::<IpAddr>().unwrap(), 80).into());
        assert_eq!(own, Got::Metadata, "the node itself is left alone");
    }
    assert!(metadata.seen_from_node() >= before + 2);

    agent.stop();
    unreachable_in_every_way(&pod);
    assert_eq!(metadata.seen_from_pods(), 6, "agent gone");

    // Another port replaces the first: nothing stale answers before it.
    let moved = rules(PORT + 1, interfaces);
    assert!(matches!(
        status(backend, &moved).await.unwrap(),
        Placement::Altered(_)
    ));
    install(backend, &moved, AT).await.unwrap();
    assert!(matches!(
        status(backend, &ours).await.unwrap(),
        Placement::Altered(_)
    ));
    let agent = Agent::start(PORT + 1);
    let late = Pod::create(2);
    for pod in [&pod, &late] {
        assert_eq!(pod.call(V4, 80), Got::Agent);
        assert_eq!(pod.call(V6, 80), Got::Agent);
    }

    // The node's firewall is flushed, the agent's with it.
    sh("nft flush ruleset");
    for address in [V4, V6] {
        assert!(is_shut(&pod.call(address, 80)), "flushed");
        pod.send_datagram(address);
        let own = world::call((address.parse::<IpAddr>().unwrap(), 80).into());
        assert_eq!(own, Got::Metadata, "the node itself is left alone");
    }
    assert_eq!(metadata.seen_from_pods(), 6, "flushed");

    // And the other kind of rules replaces these.
    let other = match backend {
        Backend::Nftables => Backend::Iptables,
        Backend::Iptables => Backend::Nftables,
    };
    install(other, &moved, AT).await.unwrap();
    assert_eq!(status(backend, &moved).await.unwrap(), Placement::Absent);
    assert_eq!(pod.call(V4, 80), Got::Agent);
    assert_eq!(metadata.seen_from_pods(), 6, "after every change");
    agent.stop();

    remove(&moved).await.unwrap();
    assert_eq!(status(other, &moved).await.unwrap(), Placement::Absent);
    assert_eq!(pod.call(V4, 80), Got::Metadata, "removed is removed");
}

/// Refused, or not answered at all: iptables can only drop where nobody decides before us, and the
/// kernel sends one "host unreachable" a second at most.
fn is_shut(got: &Got) -> bool {
    matches!(got, Got::Refused | Got::Silence)
}

fn unreachable_in_every_way(pod: &Pod) {
    for address in [V4, V6] {
        assert_eq!(pod.call(address, 80), Got::Refused);
        assert!(is_shut(&pod.call(address, 81)));
        pod.send_datagram(address);
    }
}

#[test]
fn removed_rules_come_back_and_nobody_slips_through() {
    in_namespaces(
        "removed_rules_come_back_and_nobody_slips_through",
        async || {
            let metadata = build();
            let agent = Agent::start(PORT);
            let pod = Pod::create(1);
            let (verdicts, mut verdict) = watch::channel(nothing_said());
            let metrics = Metrics::default();
            let oversight = Oversight {
                backend: Backend::Nftables,
                rules: rules(PORT, "cali+"),
                started_at: AT,
                witness: agent.witness.clone(),
                metrics,
                vouched: None,
            };
            let overseer = tokio::spawn(oversight.run(verdicts));
            verdict.wait_for(|verdict| verdict.ready).await.unwrap();
            assert_eq!(verdict.borrow().interception, Interception::Verified);

            // A pod that never stops asking, while the rules are taken away again and again.
            let stop = Arc::new(AtomicBool::new(false));
            let calls = Arc::new(AtomicUsize::new(0));
            let client = {
                let (stop, calls, pod) = (stop.clone(), calls.clone(), pod.clone());
                std::thread::spawn(move || {
                    let address = format!("{V4}:80").parse().unwrap();
                    inside(&pod.name, move || {
                        while !stop.load(Ordering::Relaxed) {
                            // Short, so that many attempts fall into the time without rules.
                            world::call_within(address, Duration::from_millis(20));
                            calls.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                })
            };
            let mut windows_ms = Vec::new();
            for touch in [
                "delete table inet kiam",
                "flush ruleset",
                "flush chain inet kiam pods",
            ] {
                for _ in 0..5 {
                    let before = tokio::time::Instant::now();
                    tokio::task::spawn_blocking(move || sh(&format!("nft {touch}")))
                        .await
                        .unwrap();
                    loop {
                        let found = status(Backend::Nftables, &rules(PORT, "cali+"))
                            .await
                            .unwrap();
                        if found == Placement::InPlace {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    windows_ms.push(before.elapsed().as_millis());
                }
            }
            stop.store(true, Ordering::Relaxed);
            client.join().unwrap();
            println!("rules were back after {windows_ms:?} ms (with the time to look)");
            assert!(calls.load(Ordering::Relaxed) > 20);
            assert_eq!(metadata.seen_from_pods(), 0, "while the rules were away");
            assert_eq!(pod.call(V4, 80), Got::Agent);
            overseer.abort();
            agent.stop();
        },
    );
}

fn nothing_said() -> Verdict {
    Verdict {
        interception: Interception::Unverified,
        ready: false,
        reason: String::new(),
    }
}

#[test]
fn a_later_agents_rules_are_left_to_it() {
    in_namespaces("a_later_agents_rules_are_left_to_it", async || {
        let _metadata = build();
        let agent = Agent::start(PORT);
        let (verdicts, mut verdict) = watch::channel(nothing_said());
        let old = Oversight {
            backend: Backend::Nftables,
            rules: rules(PORT, "cali+"),
            started_at: AT,
            witness: agent.witness.clone(),
            metrics: Metrics::default(),
            vouched: None,
        };
        let overseer = tokio::spawn(old.run(verdicts));
        verdict.wait_for(|verdict| verdict.ready).await.unwrap();
        let newer = rules(PORT + 1, "cali+");
        install(Backend::Nftables, &newer, AT.after(Duration::from_secs(1)))
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(
            status(Backend::Nftables, &newer).await.unwrap(),
            Placement::InPlace
        );
        // Pods are answered by somebody else, if by anyone.
        verdict
            .wait_for(|verdict| !verdict.ready && verdict.interception == Interception::Unverified)
            .await
            .unwrap();
        // Nobody: the later agent never came to serve. Looked at every half a minute.
        let taken_back = tokio::time::timeout(
            Duration::from_mins(1),
            verdict.wait_for(|verdict| verdict.ready),
        );
        taken_back.await.unwrap().unwrap();
        assert_eq!(
            status(Backend::Nftables, &rules(PORT, "cali+"))
                .await
                .unwrap(),
            Placement::InPlace
        );
        overseer.abort();
        agent.stop();
    });
}

#[test]
fn a_probe_tells_what_pods_would_meet() {
    in_namespaces("a_probe_tells_what_pods_would_meet", async || {
        let _metadata = build();
        for interfaces in ["cali+", "!eth0"] {
            let rules = rules(PORT, interfaces);
            check_probe(&rules, Outcome::Leak).await;
            install(Backend::Nftables, &rules, AT).await.unwrap();
            check_probe(&rules, Outcome::Refused).await;
            let agent = Agent::start(PORT);
            check_probe(&rules, Outcome::Agent).await;
            assert!(agent.witness.has_seen());
            agent.stop();
            remove(&rules).await.unwrap();
        }
        sh("ip link add br0 type bridge; ip link set br0 up");
        let bridged = rules(PORT, "br0");
        install(Backend::Nftables, &bridged, AT).await.unwrap();
        check_probe(&bridged, Outcome::Refused).await;
        assert!(
            !sh("ip link").contains("kiamprobe"),
            "nothing is left behind"
        );
    });
}

async fn check_probe(rules: &kiam_agent::intercept::rules::Rules, expected: Outcome) {
    let outcomes = from_namespace(rules).await.unwrap();
    assert_eq!(outcomes.len(), 2);
    for (metadata, outcome) in outcomes {
        assert_eq!(outcome, expected, "{metadata}");
    }
}

#[test]
fn the_command_says_what_is_and_exits_accordingly() {
    in_namespaces(
        "the_command_says_what_is_and_exits_accordingly",
        async || {
            let _metadata = build();
            let rules = rules(PORT, "cali+");
            let setting = Setting {
                rules: Some(&rules),
                backend: None,
                handover: None,
                now: AT,
            };
            let json = Options {
                json: true,
                kiam_leftovers: false,
            };
            let leftovers = Options {
                json: true,
                kiam_leftovers: true,
            };
            let check = async |action, options, code: u8, contains: &str| {
                let answer = command::run(action, &setting, options).await;
                let text = answer.to_string();
                assert!(
                    answer.code() == code && text.contains(contains),
                    "{code} {contains}: {text}"
                );
            };
            check(Action::Status, json, 3, r#""state":"absent""#).await;
            sh(
                "iptables -t nat -A PREROUTING -p tcp -d 169.254.169.254 --dport 80 -j DNAT \
            --to-destination 10.1.0.2:8181 -i cali+ --wait",
            );
            check(Action::Install, json, 0, r#""kiam_leftovers":1"#).await;
            check(Action::Status, Options::default(), 0, "nftables: in place").await;
            check(Action::Remove, leftovers, 0, "10.1.0.2:8181").await;
            check(Action::Remove, leftovers, 0, "[]").await;
            // As kiam's image wrote it, where the kernel still has such tables.
            let legacy = "xtables-legacy-multi iptables --wait -t nat";
            let written = sh(&format!(
                "{legacy} -A PREROUTING -p tcp -d 169.254.169.254 --dport 80 -j DNAT \
                 --to-destination 10.1.0.2:8181 -i cali+ && echo written || echo none"
            ));
            if written.contains("written") {
                check(Action::Status, json, 0, r#""kiam_leftovers":1"#).await;
                check(Action::Remove, leftovers, 0, "10.1.0.2:8181").await;
                assert!(!sh(&format!("{legacy} -S PREROUTING")).contains("8181"));
                check(Action::Remove, leftovers, 0, "[]").await;
            } else {
                println!("skipped: this kernel has no legacy iptables, or its tool is not here");
            }
            check(Action::Status, json, 0, r#""kiam_leftovers":0"#).await;
            sh("nft flush chain inet kiam guard");
            check(Action::Status, json, 3, r#""state":"altered""#).await;
            check(Action::Install, json, 0, "nftables").await;
            check(Action::Status, json, 0, "in place").await;
            check(Action::Probe, json, 3, "leak").await;
            check(Action::Remove, json, 0, "removed").await;
            check(Action::Status, json, 3, "absent").await;
        },
    );
}

#[test]
fn a_pods_end_is_known_before_anybody_says_so() {
    in_namespaces("a_pods_end_is_known_before_anybody_says_so", async || {
        let _metadata = build();
        let first = Pod::create(1);
        let _other = Pod::create(2);
        let mut fence = Fence::open().await.unwrap();
        let pods = fence.interfaces().into_iter().map(|(ip, _)| ip);
        assert_eq!(fence.signal(pods), Signal::Routes);
        let saved = fence.interfaces();
        assert!(saved.iter().any(|(ip, _)| *ip == first.ip));

        // A route that is taken away and put back is the same pod's.
        sh("ip route del 10.2.0.1/32 dev cali1");
        expect(&mut fence, FenceEvent::Gone(first.ip)).await;
        sh("ip route add 10.2.0.1/32 dev cali1");
        expect(&mut fence, FenceEvent::Back(first.ip)).await;

        // The interface goes: the kernel drops the IPv4 route without a word.
        sh("ip link del cali1");
        expect(&mut fence, FenceEvent::Gone(first.ip)).await;
        let next = Pod::with_interface(1, 9);
        assert_eq!(next.ip, first.ip);
        sh("ip route del 10.2.0.2/32 dev cali2");
        // Had the address's next owner been taken for the first, it would have been said before.
        let said = expect(&mut fence, FenceEvent::Gone([10, 2, 0, 2].into())).await;
        assert!(!said.contains(&FenceEvent::Back(first.ip)), "{said:?}");

        // An agent that starts now sees that the address changed hands meanwhile.
        let fresh = Fence::open().await.unwrap();
        assert!(
            fresh
                .no_longer(&saved)
                .contains(&FenceEvent::Gone(first.ip))
        );
        assert_eq!(fresh.no_longer(&fresh.interfaces()), []);
    });
}

/// Everything said up to and with `event`.
async fn expect(fence: &mut Fence, event: FenceEvent) -> Vec<FenceEvent> {
    let mut said = Vec::new();
    while !said.contains(&event) {
        let next = tokio::time::timeout(Duration::from_secs(5), fence.next());
        said.extend(
            next.await
                .unwrap_or_else(|_| panic!("{event:?} never came: {said:?}"))
                .unwrap()
                .events,
        );
    }
    said
}

#[test]
fn a_bridge_tells_of_its_pods_ends() {
    in_namespaces("a_bridge_tells_of_its_pods_ends", async || {
        let _metadata = build();
        sh(
            "ip link add cni0 type bridge; ip addr add 10.9.0.1/24 dev cni0; ip link set cni0 up
            ip netns add b1
            ip link add veth1 type veth peer name eth0 netns b1
            ip link set veth1 master cni0 up
            ip -n b1 link set eth0 up; ip -n b1 addr add 10.9.0.5/24 dev eth0",
        );
        let mut fence = Fence::open().await.unwrap();
        // The pod speaks to the node, as it must to ask for credentials.
        let listener = TcpListener::bind("10.9.0.1:8181").unwrap();
        inside("b1", || {
            eventually("the bridge forwards", || {
                std::net::TcpStream::connect("10.9.0.1:8181").is_ok()
            });
        });
        drop(listener);
        let pod = [10, 9, 0, 5].into();
        let known = async {
            while !fence.interfaces().iter().any(|(ip, _)| *ip == pod) {
                let wait = tokio::time::timeout(Duration::from_millis(50), fence.next());
                // Nothing follows from learning an address.
                drop(wait.await);
            }
        };
        tokio::time::timeout(Duration::from_secs(5), known)
            .await
            .unwrap();
        sh("ip link del veth1");
        expect(&mut fence, FenceEvent::Gone(pod)).await;
    });
}

#[test]
fn upgrades_under_traffic_fail_nobody() {
    in_namespaces("upgrades_under_traffic_fail_nobody", async || {
        tokio::task::spawn_blocking(upgrade::upgrades_fail_nobody)
            .await
            .unwrap();
    });
}

#[test]
fn the_real_agent_survives_kill_9_without_a_server_and_never_mixes_up_pods() {
    let name = "the_real_agent_survives_kill_9_without_a_server_and_never_mixes_up_pods";
    in_namespaces(name, async || {
        tokio::task::spawn_blocking(real::survives_and_never_mixes_up_pods)
            .await
            .unwrap();
    });
}

#[test]
fn a_probe_decides_whether_the_real_agent_is_ready() {
    let name = "a_probe_decides_whether_the_real_agent_is_ready";
    in_namespaces(name, async || {
        tokio::task::spawn_blocking(real::a_probe_decides_whether_it_is_ready)
            .await
            .unwrap();
    });
}

#[test]
fn what_the_chart_runs_misses_removed_rules() {
    in_namespaces("what_the_chart_runs_misses_removed_rules", async || {
        tokio::task::spawn_blocking(chart::an_agent_without_privileges_misses_the_rules)
            .await
            .unwrap();
    });
}

#[test]
fn what_the_chart_runs_with_reconcile_puts_them_back() {
    let name = "what_the_chart_runs_with_reconcile_puts_them_back";
    in_namespaces(name, async || {
        tokio::task::spawn_blocking(chart::an_agent_with_net_admin_puts_the_rules_back)
            .await
            .unwrap();
    });
}

#[test]
fn what_the_kernel_has_said_is_known_without_waiting() {
    let name = "what_the_kernel_has_said_is_known_without_waiting";
    in_namespaces(name, async || {
        let _metadata = build();
        let first = Pod::create(1);
        let mut fence = Fence::open().await.unwrap();
        for interface in 20..40 {
            assert_eq!(fence.drain().await.unwrap().events, []);
            // The runtime has had no chance to notice that there is something to read.
            sh(&format!(
                "ip link del cali{}",
                if interface == 20 { 1 } else { interface - 1 }
            ));
            let next = Pod::with_interface(1, interface);
            let said = fence.drain().await.unwrap().events;
            assert!(said.contains(&FenceEvent::Gone(first.ip)), "{said:?}");
            assert!(!said.contains(&FenceEvent::Back(first.ip)), "{said:?}");
            assert_eq!(next.ip, first.ip);
        }
    });
}

#[test]
fn a_token_does_not_travel_further_than_it_may() {
    let name = "a_token_does_not_travel_further_than_it_may";
    in_namespaces(name, async || {
        tokio::task::spawn_blocking(hops::a_token_does_not_travel_further)
            .await
            .unwrap();
    });
}

#[test]
fn what_each_way_costs() {
    in_namespaces("what_each_way_costs", async || {
        tokio::task::spawn_blocking(costs::what_each_way_costs)
            .await
            .unwrap();
    });
}
