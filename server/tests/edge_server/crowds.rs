//! More connections than there is room for.

use super::harness::{Agent, Holding, Server, World};

/// Agents of nodes of their own, one after the other: those that follow, and how many were turned
/// away.
async fn agents(world: &World, server: &Server, count: usize) -> (Vec<Agent>, usize) {
    let (mut following, mut turned_away) = (Vec::new(), 0);
    for number in 0..count {
        let node = format!("node-{number}");
        let identity = world.authority.agent(Some(&node)).unwrap();
        let Ok(channel) = world.channel(server, Some(&identity)).await else {
            turned_away += 1;
            continue;
        };
        match Agent::follow(channel, &node, None, Holding::default()).await {
            Ok(mut agent) => {
                agent.next().await.unwrap();
                following.push(agent);
            }
            Err(_status) => turned_away += 1,
        }
    }
    (following, turned_away)
}

/// The first agent's node gets a pod with a role that nobody has asked STS for yet.
async fn a_new_role_reaches(world: &World, first: &mut Agent) {
    let before = world.sts.total();
    let pod = World::pod("late", "node-0", "late", None);
    world.kube.create_pod(pod).unwrap();
    first
        .until("the grant", |agent| agent.role("late").is_some())
        .await;
    assert!(world.sts.total() > before);
}

#[tokio::test]
async fn a_low_limit_of_open_files_is_raised() {
    let world = World::new().await;
    let server = world
        .ready_server_after("ulimit -Sn 64; ulimit -Hn 4096", &[])
        .await;
    assert_eq!(server.metric("process_max_fds").await, Some(4_096.0));
    let (mut following, turned_away) = agents(&world, &server, 110).await;
    assert_eq!((following.len(), turned_away), (110, 0));
    a_new_role_reaches(&world, &mut following[0]).await;
}

#[tokio::test]
async fn agents_are_turned_away_before_nobody_can_be_called() {
    let world = World::new().await;
    let server = world.ready_server_after("ulimit -n 200", &[]).await;
    let (mut following, turned_away) = agents(&world, &server, 110).await;
    assert_eq!(following.len() + turned_away, 110);
    // What is kept for calls is more than half of it.
    assert!((50..=100).contains(&following.len()), "{turned_away}");
    let full = "kiam_server_connections_turned_away_total{reason=\"full\"}";
    assert!(server.metric(full).await.unwrap() >= 1.0);
    let log = server.log();
    assert_eq!(log.matches("agents turned away").count(), 1, "{log}");
    assert!(!log.contains("cannot accept a connection"), "{log}");
    a_new_role_reaches(&world, &mut following[0]).await;
    // One that leaves makes room.
    following.pop();
    super::harness::until("room for another", async || {
        agents(&world, &server, 1).await.1 == 0
    })
    .await;
}
