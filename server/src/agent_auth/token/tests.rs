use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const NOW: i64 = 1_800_000_000;

/// An API server that gives one answer and counts how often it was asked.
#[derive(Debug)]
struct Says(Option<Reviewed>, AtomicUsize);

impl TokenReviewer for Says {
    fn review<'a>(
        &'a self,
        _token: &'a str,
        _audience: &'a str,
    ) -> Answer<'a, Result<Option<Reviewed>, ApiError>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(self.0.clone()) })
    }
}

/// Knows that pod `agent-pod` runs on node `b`.
#[derive(Debug)]
struct Knows;

impl Placement for Knows {
    fn node_of(&self, pod: PodUid) -> Answer<'_, Option<String>> {
        Box::pin(async move { (pod.as_str() == "agent-pod").then(|| "b".to_owned()) })
    }
}

fn good() -> Reviewed {
    Reviewed {
        username: "system:serviceaccount:kiam:agent".into(),
        audiences: vec![AUDIENCE.into()],
        node_name: Some("a".into()),
        pod_uid: Some("agent-pod".into()),
    }
}

fn tokens(says: Option<Reviewed>) -> (Tokens, Arc<Says>) {
    let reviewer = Arc::new(Says(says, AtomicUsize::new(0)));
    let asked: Arc<Says> = Arc::clone(&reviewer);
    let tokens = Tokens::new(
        vec!["kiam/agent".parse().unwrap()],
        asked,
        Arc::new(Knows),
        Clock::starting_at(UnixSeconds::new(NOW)),
    );
    (tokens, reviewer)
}

fn jwt(exp: i64) -> String {
    let claims = URL_SAFE_NO_PAD.encode(format!("{{\"exp\":{exp}}}"));
    format!("h.{claims}.s")
}

#[track_caller]
fn words(result: &Result<Identity, Refusal>) -> String {
    match result {
        Ok(identity) => identity.to_string(),
        Err(refusal) => refusal.outcome().as_str().to_owned(),
    }
}

async fn check(change: impl FnOnce(&mut Reviewed), expected: &str) {
    let mut says = good();
    change(&mut says);
    let (tokens, _reviewer) = tokens(Some(says));
    assert_eq!(
        words(&tokens.identify(&jwt(NOW + 600), None).await),
        expected
    );
}

#[tokio::test]
async fn only_an_agents_own_token_names_a_node() {
    check(|_| {}, "of node a").await;
    check(|says| says.node_name = None, "of node b").await;
    check(
        |says| says.username = "system:serviceaccount:kiam:other".into(),
        "not_an_agent",
    )
    .await;
    check(
        |says| says.username = "system:serviceaccount:evil:agent".into(),
        "not_an_agent",
    )
    .await;
    check(
        |says| says.username = "system:node:a".into(),
        "not_an_agent",
    )
    .await;
    check(
        |says| says.audiences = vec!["https://kubernetes".into()],
        "invalid",
    )
    .await;
    check(|says| says.audiences.clear(), "invalid").await;
    check(
        |says| {
            says.node_name = None;
            says.pod_uid = None;
        },
        "invalid",
    )
    .await;
    check(
        |says| {
            says.node_name = None;
            says.pod_uid = Some("unknown".into());
        },
        "unavailable",
    )
    .await;
}

#[tokio::test]
async fn a_token_that_nobody_knows_or_that_has_run_out_is_refused() {
    let (unknown, _reviewer) = tokens(None);
    assert_eq!(
        words(&unknown.identify(&jwt(NOW + 600), None).await),
        "invalid"
    );
    let (accepting, _reviewer) = tokens(Some(good()));
    assert_eq!(words(&accepting.identify(&jwt(NOW), None).await), "invalid");
    let long = "x".repeat(TOKEN_BYTES_MAX + 1);
    assert_eq!(words(&accepting.identify(&long, None).await), "invalid");
}

#[tokio::test(start_paused = true)]
async fn a_review_is_remembered_for_a_while_and_not_past_the_tokens_end() {
    let (tokens, reviewer) = tokens(Some(good()));
    let asked = || reviewer.1.load(Ordering::Relaxed);
    let (long, short) = (jwt(NOW + 6_000), jwt(NOW + 20));
    tokens.identify(&long, None).await.unwrap();
    tokens.identify(&long, None).await.unwrap();
    tokens.identify(&short, None).await.unwrap();
    tokens.identify(&short, None).await.unwrap();
    assert_eq!(asked(), 2);
    tokio::time::advance(Duration::from_secs(21)).await;
    tokens.identify(&long, None).await.unwrap();
    assert_eq!(asked(), 2);
    assert!(tokens.identify(&short, None).await.is_err());
    assert_eq!(asked(), 3);
    tokio::time::advance(BELIEVED).await;
    tokens.identify(&long, None).await.unwrap();
    assert_eq!(asked(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_remembered_for_a_moment() {
    let (tokens, reviewer) = tokens(None);
    let asked = || reviewer.1.load(Ordering::Relaxed);
    let token = jwt(NOW + 600);
    for _ in 0..5 {
        assert_eq!(words(&tokens.identify(&token, None).await), "invalid");
    }
    assert_eq!(asked(), 1);
    tokio::time::advance(DISBELIEVED).await;
    assert_eq!(words(&tokens.identify(&token, None).await), "invalid");
    assert_eq!(asked(), 2);
}

/// An API server that never answers and counts how often it was asked.
#[derive(Debug)]
struct Hangs(AtomicUsize);

impl TokenReviewer for Hangs {
    fn review<'a>(
        &'a self,
        _token: &'a str,
        _audience: &'a str,
    ) -> Answer<'a, Result<Option<Reviewed>, ApiError>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn only_so_many_tokens_are_reviewed_at_a_time() {
    let reviewer = Arc::new(Hangs(AtomicUsize::new(0)));
    let asked: Arc<Hangs> = Arc::clone(&reviewer);
    let tokens = Arc::new(Tokens::new(
        vec!["kiam/agent".parse().unwrap()],
        asked,
        Arc::new(Knows),
        Clock::starting_at(UnixSeconds::new(NOW)),
    ));
    let mut agents = tokio::task::JoinSet::new();
    for agent in 0..=REVIEWS_MAX {
        let tokens = Arc::clone(&tokens);
        agents.spawn(async move {
            words(
                &tokens
                    .identify(&jwt(NOW + 600 + i64::try_from(agent).unwrap()), None)
                    .await,
            )
        });
    }
    // The one that gets no turn is told so; the others are still waiting for the API server.
    let first = agents.join_next().await.unwrap().unwrap();
    assert_eq!(first, "unavailable");
    assert_eq!(reviewer.0.load(Ordering::Relaxed), REVIEWS_MAX);
}

#[test]
fn accounts_are_namespace_and_name() {
    assert_eq!("a/b".parse::<Account>().unwrap().to_string(), "a/b");
    for text in ["", "a", "/b", "a/", "a/b/c"] {
        assert!(text.parse::<Account>().is_err(), "{text}");
    }
}
