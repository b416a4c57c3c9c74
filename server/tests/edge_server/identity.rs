//! Who may follow which node: every way we could think of to get another node's pods.

use std::time::Duration;

use kiam_sim::certificates::{Authority, Name, Validity};
use kiam_sim::cluster::{Kind, NewPod};
use kiam_wire::report::AgentMessage;
use tonic::Code;
use tonic::transport::Channel;

use super::harness::{Agent, Holding, Server, World, until, within};

const HOUR: Duration = Duration::from_hours(1);
const TOKEN_MODE: [&str; 2] = ["--agent-auth=token", "--agent-service-account=kiam/agent"];

/// What becomes of someone who asks for `node`: the first update, or a refusal.
async fn outcome(channel: Channel, node: &str, token: Option<&str>) -> Code {
    match Agent::follow(channel, node, token, Holding::default()).await {
        Err(status) => status.code(),
        Ok(mut agent) => match agent.next().await {
            Ok(Some(_update)) => Code::Ok,
            Ok(None) => panic!("ended without a word"),
            Err(status) => {
                assert!(agent.pods.is_empty(), "refused after it was told pods");
                status.code()
            }
        },
    }
}

#[tokio::test]
async fn a_certificate_is_good_for_its_own_node() {
    let world = World::new().await;
    world
        .kube
        .create_pod(World::pod("secret", "b", "reader", None))
        .unwrap();
    let server = world.ready_server(&[]).await;
    let check = async |names: &[Name], node: &str, expected: Code| {
        let identity = world.authority.issue(names, Validity::default()).unwrap();
        let channel = world.channel(&server, Some(&identity)).await.unwrap();
        assert_eq!(
            outcome(channel, node, None).await,
            expected,
            "{names:?} as {node}"
        );
    };
    check(&[Name::uri("kiam-node:a")], "a", Code::Ok).await;
    check(&[Name::dns("kiam-node:a")], "a", Code::Ok).await;
    check(&[Name::uri("kiam-node:a")], "b", Code::PermissionDenied).await;
    check(&[Name::uri("kiam-node:a")], "A", Code::PermissionDenied).await;
    check(&[Name::dns("kiam-agent")], "b", Code::Unauthenticated).await;
    check(&[Name::dns("b")], "b", Code::Unauthenticated).await;
    check(&[Name::uri("kiam-node:")], "b", Code::Unauthenticated).await;
}

#[tokio::test]
async fn strangers_do_not_get_past_the_handshake() {
    let world = World::new().await;
    let server = world.ready_server(&[]).await;
    let stranger = Authority::new("stranger")
        .unwrap()
        .agent(Some("a"))
        .unwrap();
    let expired = world
        .authority
        .issue(&[Name::uri("kiam-node:a")], Validity::Expired)
        .unwrap();
    for identity in [None, Some(&stranger), Some(&expired)] {
        // TLS 1.3 tells a client of its certificate's refusal with the first answer.
        let refused = match world.channel(&server, identity).await {
            Err(_handshake) => true,
            Ok(channel) => outcome(channel, "a", None).await != Code::Ok,
        };
        assert!(refused);
    }
}

#[tokio::test]
async fn a_shared_certificate_is_anyones_when_asked_for() {
    let world = World::new().await;
    let server = world
        .ready_server(&["--agent-auth=shared-certificate"])
        .await;
    let identity = world.authority.agent(None).unwrap();
    for node in ["a", "b"] {
        let channel = world.channel(&server, Some(&identity)).await.unwrap();
        assert_eq!(outcome(channel, node, None).await, Code::Ok);
    }
    assert!(server.log().contains("every pod's credentials"));
}

/// A world with an agent's pod on each node, and a pod of someone else.
async fn with_agents() -> (World, Server) {
    let world = World::new().await;
    world.kube.create_namespace("kiam", &[]).unwrap();
    for account in ["agent", "other"] {
        world
            .kube
            .create_service_account("kiam", account, &[])
            .unwrap();
    }
    world
        .kube
        .create_service_account("team", "agent", &[])
        .unwrap();
    let pod = |namespace: &str, name: &str, account: &str, node: &str| {
        NewPod::new(namespace, name)
            .service_account(account)
            .node(node)
    };
    for (namespace, name, account, node) in [
        ("kiam", "agent-a", "agent", "a"),
        ("kiam", "agent-b", "agent", "b"),
        ("kiam", "other-a", "other", "a"),
        ("team", "agent-a", "agent", "a"),
    ] {
        world
            .kube
            .create_pod(pod(namespace, name, account, node))
            .unwrap();
    }
    let server = world.ready_server(&TOKEN_MODE).await;
    (world, server)
}

#[tokio::test]
async fn a_token_is_good_for_the_node_of_its_pod() {
    let (world, server) = with_agents().await;
    let token = |namespace: &str, account: &str, pod: Option<&str>, audience: &str, life| {
        world
            .kube
            .issue_token(namespace, account, pod, audience, life)
            .unwrap()
    };
    let check = async |token: Option<String>, node: &str, expected: Code, what: &str| {
        let channel = world.channel(&server, None).await.unwrap();
        let got = outcome(channel, node, token.as_deref()).await;
        assert_eq!(got, expected, "{what}\n{}", server.log());
    };
    let ours = "kiam-server";
    let good = token("kiam", "agent", Some("agent-a"), ours, HOUR);
    check(Some(good.clone()), "a", Code::Ok, "the node's own agent").await;
    check(
        Some(good.clone()),
        "b",
        Code::PermissionDenied,
        "a forged node name",
    )
    .await;
    let other = token("kiam", "agent", Some("agent-b"), ours, HOUR);
    check(
        Some(other),
        "a",
        Code::PermissionDenied,
        "another node's agent",
    )
    .await;
    let other = token("kiam", "other", Some("other-a"), ours, HOUR);
    check(
        Some(other),
        "a",
        Code::PermissionDenied,
        "another ServiceAccount",
    )
    .await;
    let other = token("team", "agent", Some("agent-a"), ours, HOUR);
    check(
        Some(other),
        "a",
        Code::PermissionDenied,
        "the same name elsewhere",
    )
    .await;
    let wrong = token("kiam", "agent", Some("agent-a"), "https://elsewhere", HOUR);
    check(
        Some(wrong),
        "a",
        Code::Unauthenticated,
        "a token for someone else",
    )
    .await;
    let expired = token("kiam", "agent", Some("agent-a"), ours, Duration::ZERO);
    check(
        Some(expired),
        "a",
        Code::Unauthenticated,
        "an expired token",
    )
    .await;
    let unbound = token("kiam", "agent", None, ours, HOUR);
    check(
        Some(unbound),
        "a",
        Code::Unauthenticated,
        "a token of no pod",
    )
    .await;
    check(None, "a", Code::Unauthenticated, "no token").await;
    check(
        Some("x.y.z".to_owned()),
        "a",
        Code::Unauthenticated,
        "no token at all",
    )
    .await;
    let forged = format!("{}x", good.rsplit_once('.').unwrap().0);
    check(Some(forged), "a", Code::Unauthenticated, "a cut signature").await;
}

#[tokio::test]
async fn a_token_of_a_deleted_agent_is_refused() {
    let (world, server) = with_agents().await;
    let token = world
        .kube
        .issue_token("kiam", "agent", Some("agent-a"), "kiam-server", HOUR)
        .unwrap();
    world.kube.delete(Kind::Pod, "kiam", "agent-a").unwrap();
    let channel = world.channel(&server, None).await.unwrap();
    assert_eq!(
        outcome(channel, "a", Some(&token)).await,
        Code::Unauthenticated
    );
}

#[tokio::test]
async fn a_stream_ends_with_its_agents_pod() {
    let (world, server) = with_agents().await;
    let mut agents = Vec::new();
    for node in ["a", "b"] {
        let pod = format!("agent-{node}");
        let token = world
            .kube
            .issue_token("kiam", "agent", Some(&pod), "kiam-server", HOUR)
            .unwrap();
        let channel = world.channel(&server, None).await.unwrap();
        let agent = Agent::follow(channel, node, Some(&token), Holding::default()).await;
        let mut agent = agent.unwrap();
        agent.next().await.unwrap();
        agents.push(agent);
    }
    world.kube.delete(Kind::Pod, "kiam", "agent-a").unwrap();
    let last = within("the stream's end", async {
        loop {
            match agents[0].next().await {
                Ok(Some(_update)) => {}
                other => break other,
            }
        }
    })
    .await;
    assert!(matches!(last, Ok(None)), "{last:?}");
    for line in [
        "kiam_push_streams_ended_total{reason=\"identity\"} 1",
        "kiam_push_streams 1",
    ] {
        until(line, async || server.get("/metrics").await.1.contains(line)).await;
    }
}

#[tokio::test]
async fn reviews_are_remembered() {
    let (world, server) = with_agents().await;
    let token = world
        .kube
        .issue_token("kiam", "agent", Some("agent-a"), "kiam-server", HOUR)
        .unwrap();
    for _ in 0..5 {
        let channel = world.channel(&server, None).await.unwrap();
        assert_eq!(outcome(channel, "a", Some(&token)).await, Code::Ok);
    }
    let reviews: u64 = world
        .kube
        .all_requests()
        .iter()
        .filter(|((_verb, resource), _count)| *resource == "tokenreviews")
        .map(|(_request, count)| *count)
        .sum();
    assert_eq!(reviews, 1);
}

#[tokio::test]
async fn a_stream_that_does_not_begin_with_hello_is_closed() {
    let world = World::new().await;
    let server = world.ready_server(&[]).await;
    let identity = world.authority.agent(Some("a")).unwrap();
    let channel = world.channel(&server, Some(&identity)).await.unwrap();
    let opened = Agent::open(channel, AgentMessage::Waiting(vec![]), None).await;
    let ended = match opened {
        Err(status) => status,
        Ok(mut agent) => within("the end", agent.next()).await.unwrap_err(),
    };
    assert_eq!(ended.code(), Code::InvalidArgument);
}
