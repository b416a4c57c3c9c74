//! kiam's own agents, as they ask and as they tell errors apart.

use kiam_wire::proto::legacy::kiam_service_client::KiamServiceClient;
use kiam_wire::proto::legacy::{GetHealthRequest, GetPodCredentialsRequest, GetPodRoleRequest};
use tonic::Code;
use tonic::transport::Channel;

use super::harness::World;

async fn role(client: &mut KiamServiceClient<Channel>, ip: &str) -> Result<String, (Code, String)> {
    let request = GetPodRoleRequest { ip: ip.to_owned() };
    let answer = client.get_pod_role(request).await;
    answer
        .map(|role| role.into_inner().name)
        .map_err(|status| (status.code(), status.message().to_owned()))
}

async fn key(
    client: &mut KiamServiceClient<Channel>,
    ip: &str,
    role: &str,
) -> Result<String, (Code, String)> {
    let request = GetPodCredentialsRequest {
        ip: ip.to_owned(),
        role: role.to_owned(),
    };
    let answer = client.get_pod_credentials(request).await;
    answer
        .map(|credentials| {
            let credentials = credentials.into_inner();
            assert_eq!(
                (&*credentials.code, &*credentials.r#type),
                ("Success", "AWS-HMAC")
            );
            assert_eq!(credentials.expiration.len(), "2021-01-02T15:04:05Z".len());
            credentials.access_key_id
        })
        .map_err(|status| (status.code(), status.message().to_owned()))
}

#[tokio::test]
async fn kiams_agents_are_answered_in_kiams_words() {
    let world = World::new().await;
    world.kube.create_namespace("closed", &[]).unwrap();
    world
        .kube
        .create_pod(World::pod("web", "a", "/path/reader", Some("10.0.0.1")))
        .unwrap();
    world
        .kube
        .create_pod(World::pod("none", "a", "", Some("10.0.0.2")))
        .unwrap();
    let closed = kiam_sim::cluster::NewPod::new("closed", "nope")
        .node("a")
        .ip("10.0.0.3".parse().unwrap())
        .annotation("iam.amazonaws.com/role", "reader");
    world.kube.create_pod(closed).unwrap();
    let server = world.ready_server(&["--legacy-agents"]).await;
    let identity = world.authority.agent(None).unwrap();
    let channel = world.channel(&server, Some(&identity)).await.unwrap();
    let client = &mut KiamServiceClient::new(channel);
    let unknown = |text: &str| Err((Code::Unknown, text.to_owned()));
    let health = client.get_health(GetHealthRequest {}).await.unwrap();
    assert_eq!(health.into_inner().message, "ok");
    assert_eq!(
        role(client, "10.0.0.1").await,
        Ok("/path/reader".to_owned())
    );
    assert_eq!(role(client, "10.0.0.2").await, Ok(String::new()));
    assert_eq!(role(client, "10.9.9.9").await, unknown("pod not found"));
    assert_eq!(role(client, "nonsense").await, unknown("pod not found"));
    assert!(
        key(client, "10.0.0.1", "path/reader")
            .await
            .unwrap()
            .starts_with("ASIA")
    );
    let full = "arn:aws:iam::123456789012:role/path/reader";
    assert!(key(client, "10.0.0.1", full).await.is_ok());
    assert_eq!(
        key(client, "10.0.0.1", "writer").await,
        unknown("forbidden by policy")
    );
    assert_eq!(
        key(client, "10.0.0.3", "reader").await,
        unknown("forbidden by policy")
    );
    assert_eq!(
        key(client, "10.0.0.2", "reader").await,
        unknown("role can't be empty")
    );
    assert_eq!(
        key(client, "10.9.9.9", "reader").await,
        unknown("no pod found")
    );
}

#[tokio::test]
async fn a_pod_that_is_on_its_way_is_waited_for() {
    let world = World::new().await;
    let server = world.ready_server(&["--legacy-agents"]).await;
    let identity = world.authority.agent(None).unwrap();
    let channel = world.channel(&server, Some(&identity)).await.unwrap();
    let mut client = KiamServiceClient::new(channel);
    let asked = tokio::spawn(async move { key(&mut client, "10.0.0.1", "reader").await });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    world
        .kube
        .create_pod(World::pod("web", "a", "reader", Some("10.0.0.1")))
        .unwrap();
    assert!(asked.await.unwrap().unwrap().starts_with("ASIA"));
}

#[tokio::test]
async fn without_the_flag_there_is_only_health() {
    let world = World::new().await;
    let server = world.ready_server(&[]).await;
    let identity = world.authority.agent(None).unwrap();
    let channel = world.channel(&server, Some(&identity)).await.unwrap();
    let client = &mut KiamServiceClient::new(channel);
    assert!(client.get_health(GetHealthRequest {}).await.is_ok());
    let (code, text) = role(client, "10.0.0.1").await.unwrap_err();
    assert_eq!(code, Code::Unimplemented);
    assert!(text.contains("--legacy-agents"));
}
