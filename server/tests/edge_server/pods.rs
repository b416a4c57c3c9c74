//! What the cluster says reaches the right agent.

use kiam_sim::cluster::{Kind, Phase};
use kiam_sim::faults::Reach;
use kiam_wire::report::HeldCredential;
use kiam_wire::{PodState, Refusal, Update};

use super::harness::{Agent, Holding, World, until};

#[tokio::test]
async fn a_pod_is_granted_as_soon_as_it_is_bound_and_before_it_has_an_address() {
    let world = World::new().await;
    let server = world.ready_server(&[]).await;
    let mut agent = world.agent(&server, "a").await;
    let mut other = world.agent(&server, "b").await;
    world
        .kube
        .create_pod(World::pod("web", "a", "reader", None))
        .unwrap();
    agent
        .until("the grant", |agent| agent.role("web") == Some("reader"))
        .await;
    assert!(agent.pods["web"].ips.is_empty());
    world
        .kube
        .run("team", "web", &["10.0.0.7".parse().unwrap()])
        .unwrap();
    agent
        .until("the address", |agent| agent.pods["web"].ips.len() == 1)
        .await;
    // One call, however many pods; the new one is granted at once.
    world
        .kube
        .create_pod(World::pod("web-2", "a", "/reader", None))
        .unwrap();
    agent
        .until("the second grant", |agent| {
            agent.role("web-2") == Some("reader")
        })
        .await;
    assert_eq!(world.sts.total(), 1);
    world.kube.delete(Kind::Pod, "team", "web").unwrap();
    agent
        .until("the removal", |agent| !agent.pods.contains_key("web"))
        .await;
    world
        .kube
        .set_phase("team", "web-2", Phase::Succeeded)
        .unwrap();
    agent
        .until("the end", |agent| {
            agent.pods.is_empty() && agent.credentials.is_empty()
        })
        .await;
    // The other node heard of none of it.
    world
        .kube
        .create_pod(World::pod("b-pod", "b", "", None))
        .unwrap();
    other
        .until("its own pod", |other| !other.pods.is_empty())
        .await;
    assert_eq!(other.pods.keys().collect::<Vec<_>>(), ["b-pod"]);
    assert_eq!(other.pods["b-pod"].state, PodState::NoRole);
}

#[tokio::test]
async fn a_refusal_explains_itself_to_agent_developer_and_operator() {
    let world = World::new().await;
    world.kube.create_namespace("closed", &[]).unwrap();
    let server = world.ready_server(&[]).await;
    let mut agent = world.agent(&server, "a").await;
    let mut pod = World::pod("web", "a", "reader", None);
    world.kube.create_pod(pod.clone()).unwrap();
    agent
        .until("the grant", |agent| agent.role("web").is_some())
        .await;
    pod = kiam_sim::cluster::NewPod::new("closed", "nope")
        .node("a")
        .annotation("iam.amazonaws.com/role", "reader");
    world.kube.create_pod(pod).unwrap();
    agent
        .until("the refusal", |agent| agent.pods.contains_key("nope"))
        .await;
    let PodState::Refused(refused) = &agent.pods["nope"].state else {
        panic!("{:?}", agent.pods["nope"])
    };
    assert_eq!(refused.reason(), Refusal::NamespaceHasNoRule);
    let reasons = || -> Vec<String> {
        let events = world.kube.events();
        events
            .iter()
            .map(|event| event["reason"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    until("the event", async || reasons() == ["KiamRoleForbidden"]).await;
    let event = world.kube.events().remove(0);
    assert_eq!(event["source"]["component"], "kiam.server");
    assert_eq!(event["type"], "Warning");
    let message = event["message"].as_str().unwrap();
    assert!(
        message.starts_with("failed assuming role \"reader\": "),
        "{message}"
    );
    let (status, why) = server.get("/why?pod=closed/nope").await;
    assert_eq!(status, 200);
    assert!(
        why.contains("STOP  decision") && why.contains("permitted"),
        "{why}"
    );
    // A rule lets it in at once, and taking it away shuts it out.
    let permitted = "iam.amazonaws.com/permitted";
    world
        .kube
        .annotate(
            Kind::Namespace,
            "",
            "closed",
            permitted,
            Some(".*:role/reader"),
        )
        .unwrap();
    agent
        .until("the grant", |agent| agent.role("nope") == Some("reader"))
        .await;
    let imds = "iam.amazonaws.com/imds-v2";
    world
        .kube
        .annotate(Kind::Namespace, "", "closed", imds, Some("required"))
        .unwrap();
    agent
        .until("IMDSv2", |agent| agent.pods["nope"].imds_v2_required)
        .await;
    world
        .kube
        .annotate(Kind::Namespace, "", "closed", permitted, Some("writer"))
        .unwrap();
    agent
        .until("the refusal", |agent| agent.role("nope").is_none())
        .await;
    assert_eq!(agent.role("web"), Some("reader"));
}

#[tokio::test]
async fn what_sts_refuses_is_told_and_heals() {
    let world = World::new().await;
    world.sts.deny(&["*role/locked"]);
    let server = world.ready_server(&[]).await;
    let mut agent = world.agent(&server, "a").await;
    world
        .kube
        .create_pod(World::pod("web", "a", "locked", None))
        .unwrap();
    agent
        .until("the refusal", |agent| {
            matches!(agent.pods.get("web").map(|pod| &pod.state),
            Some(PodState::Refused(refused)) if refused.reason() == Refusal::StsRefused)
        })
        .await;
    until("the event", async || {
        world
            .kube
            .events()
            .iter()
            .any(|event| event["reason"] == "KiamCredentialError")
    })
    .await;
    let (_status, why) = server.get("/why?pod=team/web&format=json").await;
    let why: serde_json::Value = serde_json::from_str(&why).unwrap();
    assert!(
        why["answer"].as_str().unwrap().starts_with("refused: "),
        "{why}"
    );
}

#[tokio::test]
async fn a_restart_takes_nothing_away_that_sts_will_not_renew() {
    let world = World::new().await;
    world
        .kube
        .create_pod(World::pod("web", "a", "reader", None))
        .unwrap();
    let before = world.ready_server(&[]).await;
    let mut agent = world.agent(&before, "a").await;
    agent
        .until("the grant", |agent| agent.role("web").is_some())
        .await;
    let held = agent.credentials.values().map(|one| HeldCredential {
        id: one.id(),
        expires_at: one.expires_at(),
    });
    let held: Vec<_> = held.collect();
    drop(before);
    world.sts.deny(&["*role/reader"]);
    let after = world.ready_server(&[]).await;
    until("the refusal", async || {
        let (_status, why) = after.get("/why?pod=team/web").await;
        why.contains("refused: ")
    })
    .await;
    let identity = world.authority.agent(Some("a")).unwrap();
    let channel = world.channel(&after, Some(&identity)).await.unwrap();
    let holding = Holding {
        revision: None,
        held,
    };
    let back = Agent::follow(channel, "a", None, holding).await;
    let mut back = back.unwrap();
    back.next().await.unwrap();
    let state = &back.pods["web"].state;
    assert!(matches!(state, PodState::Pending(_)), "{state:?}");
}

#[tokio::test]
async fn host_network_and_reused_addresses() {
    let world = World::new().await;
    let server = world.ready_server(&[]).await;
    let mut agent = world.agent(&server, "a").await;
    let host = World::pod("host", "a", "reader", Some("10.9.9.9")).host_network();
    world.kube.create_pod(host).unwrap();
    world
        .kube
        .create_pod(World::pod("old", "a", "reader", Some("10.0.0.7")))
        .unwrap();
    agent
        .until("both", |agent| {
            agent.role("host").is_some() && agent.role("old").is_some()
        })
        .await;
    assert!(agent.pods["host"].ips.is_empty() && agent.pods["host"].host_network);
    // The old pod is stopping, and a new one already has its address.
    world
        .kube
        .mark_deleting("team", "old", std::time::Duration::from_secs(30))
        .unwrap();
    world
        .kube
        .create_pod(World::pod("new", "a", "writer", Some("10.0.0.7")))
        .unwrap();
    agent
        .until("the hand-over", |agent| {
            agent.role("new") == Some("writer")
                && agent.pods["new"].ips.len() == 1
                && agent.pods["old"].ips.is_empty()
        })
        .await;
}

#[tokio::test]
async fn service_accounts_carry_defaults_when_told_to() {
    let world = World::new().await;
    let role = [("iam.amazonaws.com/role", "from-account")];
    world
        .kube
        .create_service_account("team", "worker", &role)
        .unwrap();
    let server = world.ready_server(&["--service-account-roles"]).await;
    let mut agent = world.agent(&server, "a").await;
    let pod = |name: &str, role: &str| World::pod(name, "a", role, None).service_account("worker");
    world.kube.create_pod(pod("plain", "")).unwrap();
    world.kube.create_pod(pod("own", "mine")).unwrap();
    agent
        .until("both", |agent| {
            agent.role("plain").is_some() && agent.role("own").is_some()
        })
        .await;
    assert_eq!(agent.role("plain"), Some("from-account"));
    assert_eq!(agent.role("own"), Some("mine"));
    // A refusal names the role, whoever asks for it.
    world.kube.create_namespace("closed", &[]).unwrap();
    let role = [("iam.amazonaws.com/role", "of-the-account")];
    world
        .kube
        .create_service_account("closed", "worker", &role)
        .unwrap();
    let refused = kiam_sim::cluster::NewPod::new("closed", "refused")
        .node("a")
        .service_account("worker");
    world.kube.create_pod(refused).unwrap();
    until("the event", async || !world.kube.events().is_empty()).await;
    let event = world.kube.events().remove(0);
    let message = event["message"].as_str().unwrap();
    let beginning = "failed assuming role \"of-the-account\": ";
    assert!(message.starts_with(beginning), "{message}");
    let role = "iam.amazonaws.com/role";
    world
        .kube
        .annotate(Kind::ServiceAccount, "team", "worker", role, None)
        .unwrap();
    agent
        .until("the loss", |agent| {
            agent.pods["plain"].state == PodState::NoRole
        })
        .await;
}

#[tokio::test]
async fn replicas_give_the_same_ids_and_keep_what_an_agent_holds() {
    let world = World::new().await;
    world
        .kube
        .create_pod(World::pod("web", "a", "reader", None))
        .unwrap();
    let first = world.ready_server(&[]).await;
    let second = world.ready_server(&[]).await;
    let mut one = world.agent(&first, "a").await;
    let mut two = world.agent(&second, "a").await;
    one.until("the grant", |agent| agent.role("web").is_some())
        .await;
    two.until("the grant", |agent| agent.role("web").is_some())
        .await;
    assert_eq!(one.pods["web"].state, two.pods["web"].state);
    let revision = one.revision;
    let held: Vec<HeldCredential> = one
        .credentials
        .values()
        .map(|one| HeldCredential {
            id: one.id(),
            expires_at: one.expires_at(),
        })
        .collect();
    // The same replica again: nothing to say. Another one: everything.
    for (server, full) in [(&first, false), (&second, true)] {
        let identity = world.authority.agent(Some("a")).unwrap();
        let channel = world.channel(server, Some(&identity)).await.unwrap();
        let holding = Holding {
            revision,
            held: held.clone(),
        };
        let mut again = Agent::follow(channel, "a", None, holding).await.unwrap();
        let update = again.next().await.unwrap().unwrap();
        match update {
            Update::Full(_) => assert!(full),
            Update::Delta(delta) => {
                assert!(!full && delta.pods.is_empty() && delta.from == delta.to);
            }
        }
    }
}

#[tokio::test]
async fn the_kubernetes_api_may_go_and_come_back() {
    let world = World::new().await;
    world
        .kube
        .create_pod(World::pod("before", "a", "reader", None))
        .unwrap();
    world
        .kube
        .create_pod(World::pod("goes", "a", "reader", None))
        .unwrap();
    let server = world.ready_server(&[]).await;
    let mut agent = world.agent(&server, "a").await;
    agent
        .until("the grants", |agent| {
            agent.role("before").is_some() && agent.role("goes").is_some()
        })
        .await;
    world.kube.faults().set_reach(Reach::Down);
    world.kube.delete(Kind::Pod, "team", "goes").unwrap();
    world
        .kube
        .create_pod(World::pod("during", "a", "writer", None))
        .unwrap();
    world.kube.faults().set_reach(Reach::Up);
    agent
        .until("what was missed", |agent| {
            agent.role("during") == Some("writer") && !agent.pods.contains_key("goes")
        })
        .await;
    // The history is gone as well: only a new list can tell.
    world.kube.faults().set_reach(Reach::Down);
    world.kube.delete(Kind::Pod, "team", "during").unwrap();
    world
        .kube
        .create_pod(World::pod("after", "a", "reader", None))
        .unwrap();
    world.kube.compact();
    world.kube.faults().set_reach(Reach::Up);
    agent
        .until("what was missed", |agent| {
            agent.role("after").is_some() && !agent.pods.contains_key("during")
        })
        .await;
    world.kube.faults().expire_watches();
    world
        .kube
        .create_pod(World::pod("last", "a", "reader", None))
        .unwrap();
    agent
        .until("the last one", |agent| agent.role("last").is_some())
        .await;
    assert_eq!(agent.role("before"), Some("reader"));
}

#[tokio::test]
async fn a_slow_agent_gets_the_newest_state_and_no_queue() {
    let world = World::new().await;
    let server = world.ready_server(&[]).await;
    let mut slow = world.agent(&server, "a").await;
    slow.acknowledges = false;
    for n in 0..200 {
        world
            .kube
            .create_pod(World::pod(&format!("pod-{n}"), "a", "reader", None))
            .unwrap();
        if n % 2 == 0 {
            world
                .kube
                .delete(Kind::Pod, "team", &format!("pod-{n}"))
                .unwrap();
        }
        tokio::task::yield_now().await;
    }
    until("the server to know them", async || {
        server
            .get("/why?pod=team/pod-199")
            .await
            .1
            .contains("credentials")
    })
    .await;
    // At most eight updates without a word from the agent.
    let mut last = None;
    let mut updates = 0;
    while let Ok(Ok(Some(update))) =
        tokio::time::timeout(std::time::Duration::from_millis(500), slow.next()).await
    {
        last = Some(update.leads_to());
        updates += 1;
    }
    assert!((1..=8).contains(&updates), "{updates}");
    slow.acknowledges = true;
    slow.say(kiam_wire::AgentMessage::Applied(last.unwrap()))
        .await;
    slow.until("the rest", |slow| {
        slow.pods.len() == 100 && slow.role("pod-199").is_some()
    })
    .await;
}

#[tokio::test]
async fn a_kubernetes_api_that_hangs_is_outlasted() {
    let world = World::new().await;
    world.kube.faults().set_reach(Reach::Hanging);
    let server = world.server(&[]).await;
    world
        .kube
        .create_pod(World::pod("web", "a", "reader", None))
        .unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    world.kube.faults().set_reach(Reach::Up);
    let mut agent = world.agent(&server, "a").await;
    agent
        .until("the grant", |agent| agent.role("web").is_some())
        .await;
}
