//! The API of the Go project kiam, for its agents, while a cluster is being moved.
//!
//! Those agents tell errors apart by the text of a status whose code is always `Unknown`, so both
//! are exactly kiam's. They may ask for any pod, as they always could; what is theirs to have is
//! decided as for everyone. Where kiam's server left the polling to the agent, this one waits a
//! moment for what is on its way. One answer of kiam's does not occur: an address has one owner
//! here or none, so there is no `multiple running pods found`.

use std::net::IpAddr;
use std::time::Duration;

use kiam_wire::proto::legacy::kiam_service_server::{KiamService, KiamServiceServer};
use kiam_wire::proto::legacy::{
    GetHealthRequest, GetPodCredentialsRequest, GetPodRoleRequest, HealthStatus, LegacyCredentials,
    Role,
};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Code, Request, Response, Status};

use crate::agent_auth::has_certificate;
use crate::app::{Legacy, Question};
use crate::metrics::AgentMetrics;

const SERVICE: &str = "kiam.KiamService";
/// How long a pod or its credentials are waited for. kiam's agents ask again for about four seconds.
const PATIENCE: Duration = Duration::from_secs(1);
/// How soon it is asked again at most: in a large cluster something changes all the time.
const PAUSE: Duration = Duration::from_millis(20);

const POD_NOT_FOUND: &str = "pod not found";
const NO_POD_FOUND: &str = "no pod found";
const FORBIDDEN: &str = "forbidden by policy";
const NO_ROLE: &str = "role can't be empty";

/// The service.
#[derive(Debug)]
pub struct LegacyService {
    /// Without `--legacy-agents` there is only health.
    enabled: bool,
    questions: mpsc::Sender<Question>,
    /// Moves after every change, and only then.
    turned: watch::Receiver<()>,
    metrics: AgentMetrics,
}

impl LegacyService {
    /// The service, ready to be added to a server.
    pub fn server(
        enabled: bool,
        questions: mpsc::Sender<Question>,
        turned: watch::Receiver<()>,
        metrics: AgentMetrics,
    ) -> KiamServiceServer<Self> {
        KiamServiceServer::new(Self {
            enabled,
            questions,
            turned,
            metrics,
        })
    }

    fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        if !self.enabled {
            return Err(Status::unimplemented(
                "this server does not serve kiam's agents; start it with --legacy-agents",
            ));
        }
        if !has_certificate(request.extensions()) {
            return Err(Status::unauthenticated("no client certificate was shown"));
        }
        Ok(())
    }

    /// Asks until there is an answer that will not change by itself, or patience ends.
    async fn ask(&self, ip: &str, role: Option<&str>) -> Result<Legacy, Status> {
        // kiam's agents put brackets around IPv6 addresses.
        let bare = ip.trim_start_matches('[').trim_end_matches(']');
        let Ok(ip) = bare.parse::<IpAddr>() else {
            return Ok(Legacy::Unknown);
        };
        let mut turned = self.turned.clone();
        let patience = tokio::time::sleep(PATIENCE);
        tokio::pin!(patience);
        loop {
            turned.mark_unchanged();
            // A server that still waits for its base ARN has nobody who could tell.
            let asked = self.ask_once(ip, role.map(str::to_owned));
            let Ok(answer) = tokio::time::timeout(PATIENCE, asked).await else {
                return Ok(Legacy::Unknown);
            };
            let answer = answer?;
            if !matches!(answer, Legacy::Unknown | Legacy::Pending(_)) {
                return Ok(answer);
            }
            tokio::select! {
                () = &mut patience => return Ok(answer),
                changed = turned.changed() => changed.map_err(|_gone| stopping())?,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn ask_once(&self, ip: IpAddr, role: Option<String>) -> Result<Legacy, Status> {
        let (reply, answer) = oneshot::channel();
        let question = Question::Legacy { ip, role, reply };
        let asked = self.questions.send(question).await;
        asked.map_err(|_gone| stopping())?;
        answer.await.map_err(|_gone| stopping())
    }

    fn counted<T>(
        &self,
        method: &'static str,
        answer: Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        let code = answer.as_ref().map_or_else(Status::code, |_ok| Code::Ok);
        self.metrics.handled("unary", SERVICE, method, code.into());
        answer.map(Response::new)
    }

    async fn role(&self, request: Request<GetPodRoleRequest>) -> Result<Role, Status> {
        self.admit(&request)?;
        match self.ask(&request.get_ref().ip, None).await? {
            Legacy::Role(name) => Ok(Role { name }),
            Legacy::Unknown
            | Legacy::NoRole
            | Legacy::Forbidden
            | Legacy::Pending(_)
            | Legacy::Ready(_) => Err(Status::unknown(POD_NOT_FOUND)),
        }
    }

    async fn credentials(
        &self,
        request: Request<GetPodCredentialsRequest>,
    ) -> Result<LegacyCredentials, Status> {
        self.admit(&request)?;
        let GetPodCredentialsRequest { ip, role } = request.get_ref();
        match self.ask(ip, Some(role)).await? {
            Legacy::Ready(ready) => Ok(LegacyCredentials {
                code: "Success".to_owned(),
                r#type: "AWS-HMAC".to_owned(),
                access_key_id: ready.access_key_id().to_owned(),
                secret_access_key: ready.secret_access_key().to_owned(),
                token: ready.session_token().to_owned(),
                expiration: ready.expires_at().to_string(),
                last_updated: ready.issued_at().to_string(),
            }),
            Legacy::Forbidden => Err(Status::unknown(FORBIDDEN)),
            Legacy::NoRole | Legacy::Role(_) => Err(Status::unknown(NO_ROLE)),
            Legacy::Unknown => Err(Status::unknown(NO_POD_FOUND)),
            Legacy::Pending(error) => Err(Status::unknown(
                error.as_deref().unwrap_or("credentials are on the way"),
            )),
        }
    }
}

fn stopping() -> Status {
    Status::unavailable("this server is stopping")
}

#[tonic::async_trait]
impl KiamService for LegacyService {
    async fn get_pod_role(
        &self,
        request: Request<GetPodRoleRequest>,
    ) -> Result<Response<Role>, Status> {
        let answer = self.role(request).await;
        self.counted("GetPodRole", answer)
    }

    async fn get_pod_credentials(
        &self,
        request: Request<GetPodCredentialsRequest>,
    ) -> Result<Response<LegacyCredentials>, Status> {
        let answer = self.credentials(request).await;
        self.counted("GetPodCredentials", answer)
    }

    async fn get_health(
        &self,
        _request: Request<GetHealthRequest>,
    ) -> Result<Response<HealthStatus>, Status> {
        let message = "ok".to_owned();
        self.counted("GetHealth", Ok(HealthStatus { message }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::{Inputs, testing::owner_telling};
    use crate::clock::Moment;
    use crate::drain;
    use crate::metrics::Metrics;
    use crate::nodes::{ClusterEvent, Kind};

    /// An owner that runs, and the way to tell it what the watches say.
    fn running(
        questions: mpsc::Receiver<Question>,
        turned: watch::Sender<()>,
    ) -> (mpsc::Sender<crate::app::Heard>, impl Sized) {
        let (heard, cluster) = mpsc::channel(16);
        let (answers_out, answers) = mpsc::channel(1);
        let (words_out, words) = mpsc::channel(1);
        let (keys_out, keys) = watch::channel(None);
        let inputs = Inputs {
            cluster,
            answers,
            words,
            questions,
            keys,
        };
        let (drain, draining) = drain::channel();
        let owner = owner_telling(turned);
        let task = tokio::spawn(async move { owner.run(inputs, draining).await });
        (heard, (answers_out, words_out, keys_out, drain, task))
    }

    #[tokio::test]
    async fn who_waits_for_a_pod_asks_again_only_when_something_has_changed() {
        let (turned, turned_out) = watch::channel(());
        let (questions, questions_in) = mpsc::channel(16);
        let (heard, _kept) = running(questions_in, turned);
        // Between the service and the owner someone counts.
        let (asked, mut asked_in) = mpsc::channel(16);
        let counting = tokio::spawn(async move {
            let mut count = 0_u32;
            while let Some(question) = asked_in.recv().await {
                count += 1;
                questions.send(question).await.unwrap();
            }
            count
        });
        let service = LegacyService {
            enabled: true,
            questions: asked,
            turned: turned_out,
            metrics: Metrics::new().agents,
        };
        let asking = service.ask("10.9.9.9", None);
        let changing = async {
            tokio::time::sleep(PATIENCE / 2).await;
            for event in [
                ClusterEvent::Listing(Kind::Pods),
                ClusterEvent::Listed(Kind::Pods),
            ] {
                heard.send((Moment::ORIGIN, event)).await.unwrap();
            }
        };
        let (answer, ()) = tokio::join!(asking, changing);
        assert!(matches!(answer, Ok(Legacy::Unknown)));
        drop(service);
        let count = counting.await.unwrap();
        assert!((1..=3).contains(&count), "{count} questions in a second");
    }
}
