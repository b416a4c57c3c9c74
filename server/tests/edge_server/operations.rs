//! Running it: certificates that change, an end in good order, probes, metrics, taints, dry runs.

use std::process::Command;
use std::time::Duration;

use kiam_sim::certificates::{Authority, Name, Validity};
use kiam_sim::cluster::Kind;
use kiam_sim::faults::{Failures, Reach};

use super::harness::{Agent, Holding, World, until, within};

#[tokio::test]
async fn it_ends_well_when_told_to() {
    let world = World::new().await;
    let mut server = world.ready_server(&[]).await;
    let mut agent = world.agent(&server, "a").await;
    agent.next().await.unwrap();
    server.signal("-TERM");
    // Not an error: the agent is to come back, to whoever is there.
    let last = within("the stream's end", async {
        loop {
            match agent.next().await {
                Ok(Some(_update)) => {}
                other => break other,
            }
        }
    })
    .await;
    assert!(matches!(last, Ok(None)), "{last:?}");
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());
}

/// What forbids new privileges is each thread's own: one that was there before would be left out.
#[tokio::test]
async fn no_thread_of_it_gains_privileges() {
    let world = World::new().await;
    let server = world.ready_server(&[]).await;
    let threads = server.threads();
    assert!(threads.len() > 1, "{threads:?}");
    for status in threads {
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    }
}

#[tokio::test]
async fn certificates_and_authority_are_replaced_without_a_restart() {
    let world = World::new().await;
    let server = world.ready_server(&[]).await;
    let mut agent = world.agent(&server, "a").await;
    agent.next().await.unwrap();
    let next = Authority::new("next").unwrap();
    // Nonsense first: the old certificate stays, and the metric says so.
    std::fs::write(world.path("key.pem"), "nonsense").unwrap();
    let metric = async |line: &str| {
        until(line, async || server.get("/metrics").await.1.contains(line)).await;
    };
    metric("grpc_server_tls_certificate_update_error 1").await;
    let identity = world.authority.agent(Some("b")).unwrap();
    world.channel(&server, Some(&identity)).await.unwrap();
    world.install(&next.server(&["kiam-server"]).unwrap());
    std::fs::write(world.path("ca.pem"), next.certificate_pem()).unwrap();
    metric("grpc_server_tls_certificate_update_error 0").await;
    let identity = next.agent(Some("b")).unwrap();
    until("the new certificate", async || {
        let pem = next.certificate_pem();
        world
            .channel_trusting(pem, &server, Some(&identity))
            .await
            .is_ok()
    })
    .await;
    // The stream from before goes on.
    world
        .kube
        .create_pod(World::pod("web", "a", "reader", None))
        .unwrap();
    agent
        .until("the grant", |agent| agent.role("web").is_some())
        .await;
}

#[tokio::test]
async fn a_node_loses_its_startup_taint_when_its_agent_is_ready() {
    const KEY: &str = "kiam.example/agent-not-ready";
    let world = World::new().await;
    world.kube.create_node("new", &["other", KEY]).unwrap();
    let server = world
        .ready_server(&[&format!("--startup-taint={KEY}")])
        .await;
    let mut agent = world.agent(&server, "new").await;
    agent.next().await.unwrap();
    let taints = || -> Vec<String> {
        let node = world.kube.get(Kind::Node, "", "new").unwrap();
        let taints = node["spec"]["taints"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        taints
            .iter()
            .map(|taint| taint["key"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(taints(), ["other", KEY]);
    agent.report_ready().await;
    until("the taint to go", async || taints() == ["other"]).await;
}

#[tokio::test]
async fn metrics_and_health_tell_what_is_going_on() {
    let world = World::new().await;
    world
        .kube
        .create_pod(World::pod("web", "a", "reader", None))
        .unwrap();
    let server = world.ready_server(&[]).await;
    let mut agent = world.agent(&server, "a").await;
    agent
        .until("the grant", |agent| agent.role("web").is_some())
        .await;
    agent
        .until("the token keys", |agent| agent.issuer.is_some())
        .await;
    assert_eq!(agent.issuer.as_deref(), Some(world.kube.issuer()));
    for line in [
        "kiam_push_streams 1",
        "kiam_pods{state=\"granted\"} 1",
        "kiam_decisions_total{decision=\"granted\"} 1",
        "kiam_sts_assumerole_calls_total 1",
        "kiam_k8s_lists_total{kind=\"pods\"} 1",
        "kiam_agent_auth_total{outcome=\"accepted\"} 1",
        "kiam_push_revisions_behind 0",
    ] {
        until(line, async || server.get("/metrics").await.1.contains(line)).await;
    }
    assert_eq!(server.get("/ping").await, (200, "pong".to_owned()));
    assert_eq!(server.get("/livez").await.0, 200);
    assert_eq!(server.get("/why").await.0, 400);
    let path = |name: &str| world.path(name).display().to_string();
    // kiam's probe, with the server's own certificate; and `why` from the command line.
    let mut probe = Command::new(env!("CARGO_BIN_EXE_kiam-server"));
    probe
        .args(["health", "--server-address-refresh=2s", "--timeout=30s"])
        .arg(format!("--server-address={}", server.grpc.unwrap()))
        .arg(format!("--cert={}", path("server.pem")))
        .arg(format!("--key={}", path("key.pem")))
        .arg(format!("--ca={}", path("ca.pem")));
    let output = tokio::task::spawn_blocking(move || probe.output().unwrap())
        .await
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "healthy: ok\n",
        "{output:?}"
    );
    let admin = server.admin.unwrap();
    let nowhere = "127.0.0.1:1";
    // The flag, or what the chart tells the container; the flag wins.
    for (flag, told) in [
        (Some(admin), None),
        (None, Some(admin)),
        (Some(admin), nowhere.parse().ok()),
    ] {
        let mut why = Command::new(env!("CARGO_BIN_EXE_kiam-server"));
        why.args(["why", "team/web"])
            .env_remove("KIAM_ADMIN_ADDRESS");
        why.args(flag.map(|admin| format!("--admin-address={admin}")));
        why.envs(told.map(|admin| ("KIAM_ADMIN_ADDRESS", admin.to_string())));
        let output = tokio::task::spawn_blocking(move || why.output().unwrap())
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("arn:aws:iam::123456789012:role/reader"),
            "{flag:?} {told:?}: {output:?}"
        );
    }
}

#[tokio::test]
async fn a_dry_run_decides_and_touches_nothing() {
    let world = World::new().await;
    world.kube.create_namespace("closed", &[]).unwrap();
    world
        .kube
        .create_pod(World::pod("web", "a", "reader", None))
        .unwrap();
    let closed = kiam_sim::cluster::NewPod::new("closed", "nope")
        .node("a")
        .annotation("iam.amazonaws.com/role", "reader");
    world.kube.create_pod(closed).unwrap();
    let server = world.ready_server(&["--dry-run"]).await;
    assert!(server.grpc.is_none());
    for line in [
        "would grant",
        "would refuse",
        r#""granted":1,"refused":1,"no_role":0"#,
    ] {
        until(line, async || server.log().contains(line)).await;
    }
    let (_status, why) = server.get("/why?pod=team/web").await;
    assert!(
        why.contains("allowed: arn:aws:iam::123456789012:role/reader"),
        "{why}"
    );
    assert_eq!(world.sts.total(), 0);
    assert!(world.kube.events().is_empty());
}

#[tokio::test]
async fn it_is_not_ready_before_it_knows_the_cluster() {
    let world = World::new().await;
    world.kube.faults().set_unauthorized(true);
    let server = world.server(&[]).await;
    let (status, text) = server.get("/readyz").await;
    assert_eq!(
        (status, text.as_str()),
        (503, "not ready: kubernetes caches\n")
    );
    world
        .kube
        .create_pod(World::pod("web", "a", "reader", None))
        .unwrap();
    // An agent that comes too early is told nothing, rather than that it has no pods.
    let mut agent = world.agent(&server, "a").await;
    world.kube.faults().clear();
    let first = agent.next().await.unwrap().unwrap();
    assert!(agent.pods.contains_key("web"), "{first:?}");
    until("readiness", async || server.get("/readyz").await.0 == 200).await;
}

/// It does not end, and come back, and end: that would keep it away long after STS is back.
#[tokio::test]
async fn an_sts_that_is_away_at_the_start_is_waited_for() {
    let world = World::new().await;
    let pod = World::pod("web", "a", "reader", None);
    world.kube.create_pod(pod).unwrap();
    world.sts.faults().set_reach(Reach::Down);
    let mut server = world.server(&["--role-base-arn-autodetect"]).await;
    let said = "not yet: --role-base-arn-autodetect";
    until(said, async || server.log().contains(said)).await;
    let (status, text) = server.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(text.contains("role base ARN"), "{text}");
    // There is nobody yet who could answer this.
    assert_eq!(server.get("/why?pod=team/web").await.0, 503);
    // Another kind of no.
    world.sts.faults().set_failures(Some(Failures {
        status: 503,
        share: 1.0,
    }));
    world.sts.faults().set_reach(Reach::Up);
    let times = server.log().matches(said).count();
    until("another no", async || {
        server.log().matches(said).count() > times
    })
    .await;
    world.sts.faults().clear();
    server.ready().await;
    let mut agent = world.agent(&server, "a").await;
    agent
        .until("the grant", |agent| agent.role("web") == Some("reader"))
        .await;
    server.signal("-TERM");
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());
    assert!(!server.log().contains("leaving anyway"), "{}", server.log());
}

#[tokio::test]
async fn it_ends_when_told_to_also_while_it_waits_for_sts() {
    let world = World::new().await;
    world.sts.faults().set_reach(Reach::Hanging);
    let mut server = world.server(&["--role-base-arn-autodetect"]).await;
    server.signal("-TERM");
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());
}

#[test]
fn wrong_usage_is_2_and_failure_is_1() {
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiam-server"));
        command.env_clear().args(args).output().unwrap()
    };
    let output = run(&["--unheard-of"]);
    assert_eq!(output.status.code(), Some(2));
    let output = run(&["--cert=c", "--key=k", "--ca=a"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--role-base-arn-autodetect"));
    let base = "--role-base-arn=arn:aws:iam::123456789012:role/";
    let output = run(&[
        "--cert=c",
        "--key=k",
        "--ca=a",
        base,
        "--kubeconfig=/nowhere",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere"));
    assert_eq!(run(&["--version"]).status.code(), Some(0));
    assert_eq!(run(&["--help"]).status.code(), Some(0));
}

#[tokio::test]
async fn a_stream_ends_by_itself_when_it_is_old_or_its_identity_has_run_out() {
    let world = World::new().await;
    let server = world
        .ready_server(&["--grpc-max-connection-age-duration=10s"])
        .await;
    let mut old = world.agent(&server, "a").await;
    let names = [Name::uri("kiam-node:b")];
    // Whole seconds from now, so that it is at least four.
    let short = Validity::For(Duration::from_secs(5));
    let identity = world.authority.issue(&names, short).unwrap();
    let channel = world.channel(&server, Some(&identity)).await.unwrap();
    let mut expiring = Agent::follow(channel, "b", None, Holding::default())
        .await
        .unwrap();
    for (agent, reason) in [(&mut expiring, "identity"), (&mut old, "age")] {
        // Perhaps the token keys come in between.
        while agent.next().await.unwrap().is_some() {}
        let line = format!("kiam_push_streams_ended_total{{reason=\"{reason}\"}} 1");
        until(&line, async || {
            server.get("/metrics").await.1.contains(&line)
        })
        .await;
    }
}

#[tokio::test]
async fn a_server_that_is_behind_sends_agents_on_and_keeps_who_finds_no_better() {
    let world = World::new().await;
    let server = world.ready_server(&[]).await;
    let mut before = world.agent(&server, "before").await;
    before.next().await.unwrap();
    world.kube.faults().set_reach(Reach::Down);
    // Each of these is another node: none is asked twice.
    let mut nodes = 0..;
    let mut sent_on = None;
    within("an agent to be sent on", async {
        while sent_on.is_none() {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let node = format!("node-{}", nodes.next().unwrap());
            let mut agent = world.agent(&server, &node).await;
            if let Err(status) = agent.next().await {
                assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
                sent_on = Some(node);
            }
        }
    })
    .await;
    // It is well all the same: there may be no better one, and then no agent would find any.
    assert_eq!(server.get("/readyz").await.0, 200);
    let mut again = world.agent(&server, &sent_on.unwrap()).await;
    assert!(again.next().await.unwrap().is_some());
    world.kube.faults().clear();
    let pod = World::pod("web", "before", "reader", None);
    world.kube.create_pod(pod).unwrap();
    before
        .until("the grant", |agent| agent.role("web").is_some())
        .await;
    // The other watch may take a while longer. Nobody is asked twice here either.
    until("newcomers are let in", async || {
        let node = format!("node-{}", nodes.next().unwrap());
        let mut newcomer = world.agent(&server, &node).await;
        newcomer.next().await.is_ok()
    })
    .await;
}
