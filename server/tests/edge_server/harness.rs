//! A simulated world around a real `kiam-server` process, and an agent that keeps the protocol's
//! rules and checks that the server does.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiam_sim::certificates::{Authority, Identity, write_atomically};
use kiam_sim::cluster::{Cluster, ClusterHandle, ClusterOptions, NewPod};
use kiam_sim::kubeconfig::Kubeconfig;
use kiam_sim::sts::{Sts, StsHandle, StsOptions};
use kiam_wire::report::{AgentMessage, HeldCredential, Hello, Interception, Report};
use kiam_wire::update::Parsed;
use kiam_wire::{
    CredentialId, Credentials, Pod, PodState, Revision, Update, proto, proto::NodeCredentialsClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};

/// No step takes longer on a working machine, however busy.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
pub(crate) const BASE_ARN: &str = "arn:aws:iam::123456789012:role/";

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("no end: {what}"))
}

/// Waits until `probe` is true, looking often.
pub(crate) async fn until(what: &str, mut probe: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !probe().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// A cluster, an STS, an authority and a directory.
pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) directory: tempfile::TempDir,
    cluster: Option<Cluster>,
    pub(crate) kube: ClusterHandle,
    sts_server: Sts,
    pub(crate) sts: StsHandle,
}

impl World {
    pub(crate) async fn new() -> Self {
        let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
        let sts_server = Sts::start(StsOptions::default()).await.unwrap();
        let world = Self {
            authority: Authority::new("kiam").unwrap(),
            directory: tempfile::tempdir().unwrap(),
            kube: cluster.handle().clone(),
            sts: sts_server.handle().clone(),
            cluster: Some(cluster),
            sts_server,
        };
        let kubeconfig = Kubeconfig::plain(world.cluster.as_ref().unwrap().url());
        kubeconfig.write(&world.path("kubeconfig")).unwrap();
        write_atomically(
            &world.path("ca.pem"),
            world.authority.certificate_pem(),
            0o644,
        )
        .unwrap();
        let server = world.authority.server(&["kiam-server"]).unwrap();
        world.install(&server);
        for node in ["a", "b"] {
            world.kube.create_node(node, &[]).unwrap();
        }
        world
            .kube
            .create_namespace("team", &[("iam.amazonaws.com/permitted", ".*")])
            .unwrap();
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts a server certificate where the servers look for it.
    pub(crate) fn install(&self, server: &Identity) {
        server
            .write(&self.path("server.pem"), &self.path("key.pem"))
            .unwrap();
    }

    pub(crate) fn pod(name: &str, node: &str, role: &str, ip: Option<&str>) -> NewPod {
        let mut pod = NewPod::new("team", name)
            .node(node)
            .service_account("default");
        if !role.is_empty() {
            pod = pod.annotation("iam.amazonaws.com/role", role);
        }
        match ip {
            Some(ip) => pod.ip(ip.parse().unwrap()),
            None => pod,
        }
    }

    /// A server, once it listens. `args` come after those that every server needs.
    pub(crate) async fn server(&self, args: &[&str]) -> Server {
        self.server_of(Command::new(env!("CARGO_BIN_EXE_kiam-server")), args)
            .await
    }

    /// The same, once it knows the cluster, after a line of shell in the same process.
    pub(crate) async fn ready_server_after(&self, line: &str, args: &[&str]) -> Server {
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", &format!("{line}; exec \"$0\" \"$@\"")])
            .arg(env!("CARGO_BIN_EXE_kiam-server"));
        let server = self.server_of(shell, args).await;
        server.ready().await;
        server
    }

    async fn server_of(&self, mut command: Command, args: &[&str]) -> Server {
        let path = |name: &str| self.path(name).display().to_string();
        let detects = args.contains(&"--role-base-arn-autodetect");
        let base = (!detects).then(|| format!("--role-base-arn={BASE_ARN}"));
        command
            .env_clear()
            // Nobody listens on the discard port.
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
            .env("AWS_ENDPOINT_URL_STS", self.sts_server.url())
            .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
            .env(
                "AWS_SECRET_ACCESS_KEY",
                "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            )
            .env("AWS_REGION", "eu-west-1")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .args([
                "--bind=127.0.0.1:0",
                "--admin-listen-addr=127.0.0.1:0",
                "--json-log",
            ])
            .args(base)
            .args([format!("--kubeconfig={}", path("kubeconfig"))])
            .args([format!("--cert={}", path("server.pem"))])
            .args([format!("--key={}", path("key.pem"))])
            .args([format!("--ca={}", path("ca.pem"))])
            .args(args)
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let written = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = written.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut server = Server {
            child,
            log,
            grpc: None,
            admin: None,
        };
        until("the server to listen", async || {
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}\n{}", server.log());
            server.find_addresses()
        })
        .await;
        server
    }

    /// A server that knows the cluster.
    pub(crate) async fn ready_server(&self, args: &[&str]) -> Server {
        let server = self.server(args).await;
        server.ready().await;
        server
    }

    /// An agent with a certificate of its own for `node`.
    pub(crate) async fn agent(&self, server: &Server, node: &str) -> Agent {
        let identity = self.authority.agent(Some(node)).unwrap();
        let channel = self.channel(server, Some(&identity)).await.unwrap();
        Agent::follow(channel, node, None, Holding::default())
            .await
            .unwrap()
    }

    pub(crate) async fn channel(
        &self,
        server: &Server,
        identity: Option<&Identity>,
    ) -> Result<Channel, tonic::transport::Error> {
        self.channel_trusting(self.authority.certificate_pem(), server, identity)
            .await
    }

    /// Without a certificate, from an address of this machine.
    pub(crate) async fn channel_from(
        &self,
        from: &str,
        server: &Server,
    ) -> Result<Channel, tonic::transport::Error> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.authority.certificate_pem()))
            .domain_name("kiam-server");
        Endpoint::from_shared(format!("https://{}", server.grpc.unwrap()))?
            .local_address(Some(from.parse().unwrap()))
            .tls_config(tls)?
            .connect()
            .await
    }

    pub(crate) async fn channel_trusting(
        &self,
        authority: &str,
        server: &Server,
        identity: Option<&Identity>,
    ) -> Result<Channel, tonic::transport::Error> {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(authority))
            .domain_name("kiam-server");
        if let Some(identity) = identity {
            tls = tls.identity(tonic::transport::Identity::from_pem(
                identity.certificate_pem(),
                identity.key_pem(),
            ));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", server.grpc.unwrap()))?;
        endpoint.tls_config(tls)?.connect().await
    }
}

/// A running `kiam-server`.
pub(crate) struct Server {
    child: Child,
    log: Arc<Mutex<String>>,
    pub(crate) grpc: Option<SocketAddr>,
    pub(crate) admin: Option<SocketAddr>,
}

impl Server {
    fn find_addresses(&mut self) -> bool {
        for line in self.log().lines() {
            let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else {
                continue;
            };
            if line["message"] == "listening" {
                let address = |name: &str| line[name].as_str().and_then(|text| text.parse().ok());
                (self.grpc, self.admin) = (address("grpc"), address("admin"));
                return true;
            }
        }
        false
    }

    pub(crate) async fn ready(&self) {
        until("the server to be ready", async || {
            self.get("/readyz").await.0 == 200
        })
        .await;
    }

    /// A metric without labels, or with those given.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let (_status, text) = self.get("/metrics").await;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line?.parse().ok()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The status and body of a GET on the admin port; status 0 without an answer.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let Ok(mut stream) = tokio::net::TcpStream::connect(self.admin.unwrap()).await else {
            return (0, String::new());
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        let body = answer
            .split_once("\r\n\r\n")
            .map_or("", |(_head, body)| body);
        (status.unwrap_or(0), body.to_owned())
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// What the kernel says of each of its threads.
    pub(crate) fn threads(&self) -> Vec<String> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        // One may end at any moment.
        threads
            .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("status")).ok())
            .collect()
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the server to end", async || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("--- server log\n{}", self.log());
        }
    }
}

/// What an agent brings along.
#[derive(Default)]
pub(crate) struct Holding {
    pub(crate) revision: Option<Revision>,
    pub(crate) held: Vec<HeldCredential>,
}

/// An agent: applies what it is told, and insists on the protocol's rules.
pub(crate) struct Agent {
    say: mpsc::Sender<proto::AgentMessage>,
    updates: Streaming<proto::ServerMessage>,
    pub(crate) revision: Option<Revision>,
    pub(crate) pods: BTreeMap<String, Pod>,
    pub(crate) credentials: HashMap<CredentialId, Arc<Credentials>>,
    pub(crate) issuer: Option<String>,
    /// Whether updates are acknowledged at once.
    pub(crate) acknowledges: bool,
}

impl Agent {
    pub(crate) async fn follow(
        channel: Channel,
        node: &str,
        token: Option<&str>,
        holding: Holding,
    ) -> Result<Self, Status> {
        let hello = AgentMessage::Hello(Hello {
            node_name: node.to_owned(),
            agent_version: "test".to_owned(),
            holds: holding.revision,
            held: holding.held,
        });
        Self::open(channel, hello, token).await
    }

    pub(crate) async fn open(
        channel: Channel,
        first: AgentMessage,
        token: Option<&str>,
    ) -> Result<Self, Status> {
        let (say, said) = mpsc::channel(64);
        let mut request = Request::new(ReceiverStream::new(said));
        if let Some(token) = token {
            let bearer = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", bearer);
        }
        say.send(first.into()).await.unwrap();
        let mut client =
            NodeCredentialsClient::new(channel).max_decoding_message_size(64 * 1024 * 1024);
        let updates = within("the stream to open", client.follow(request)).await?;
        Ok(Self {
            say,
            updates: updates.into_inner(),
            revision: None,
            pods: BTreeMap::new(),
            credentials: HashMap::new(),
            issuer: None,
            acknowledges: true,
        })
    }

    pub(crate) async fn say(&self, message: AgentMessage) {
        drop(self.say.send(message.into()).await);
    }

    pub(crate) async fn report_ready(&self) {
        self.say(AgentMessage::Report(Report {
            serving: true,
            interception: Interception::Verified,
            driver: "epoll".to_owned(),
        }))
        .await;
    }

    /// The next update; `None` when the server ended the stream well.
    pub(crate) async fn next(&mut self) -> Result<Option<Update>, Status> {
        let message = within("an update", self.updates.message()).await?;
        let Some(message) = message else {
            return Ok(None);
        };
        let Parsed {
            update, left_out, ..
        } = Parsed::try_from(message).unwrap();
        assert!(left_out.is_empty(), "{left_out:?}");
        self.apply(&update);
        if self.acknowledges {
            self.say(AgentMessage::Applied(update.leads_to())).await;
        }
        Ok(Some(update))
    }

    fn apply(&mut self, update: &Update) {
        match update {
            Update::Full(full) => {
                assert!(self.revision.is_none(), "a second Full");
                self.pods = full
                    .pods
                    .iter()
                    .map(|pod| (pod.name.clone(), pod.clone()))
                    .collect();
                self.credentials = full
                    .credentials
                    .iter()
                    .map(|one| (one.id(), Arc::clone(one)))
                    .collect();
                self.issuer = full.keys.as_ref().map(|keys| keys.issuer.clone());
            }
            Update::Delta(delta) => {
                if let Some(revision) = self.revision {
                    assert_eq!(delta.from, revision, "a gap");
                }
                for uid in &delta.removed_pods {
                    self.pods.retain(|_name, pod| pod.uid != *uid);
                }
                for pod in &delta.pods {
                    self.pods.insert(pod.name.clone(), pod.clone());
                }
                for one in &delta.credentials {
                    self.credentials.insert(one.id(), Arc::clone(one));
                }
                if let Some(keys) = &delta.keys {
                    self.issuer = Some(keys.issuer.clone());
                }
            }
        }
        self.revision = Some(update.leads_to());
        let wanted: Vec<_> = self
            .pods
            .values()
            .filter_map(|pod| pod.state.credential_id())
            .collect();
        self.credentials.retain(|id, _one| wanted.contains(id));
        for pod in self.pods.values() {
            if let PodState::Granted(id) = pod.state {
                assert!(
                    self.credentials.contains_key(&id),
                    "granted without credentials: {pod:?}"
                );
            }
        }
    }

    /// Applies updates until `done`.
    pub(crate) async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        within(what, async {
            while !done(self) {
                let update = self
                    .next()
                    .await
                    .unwrap_or_else(|status| panic!("{what}: {status}"));
                assert!(update.is_some(), "the stream ended: {what}");
            }
        })
        .await;
    }

    /// The role that a pod is being served.
    pub(crate) fn role(&self, pod: &str) -> Option<&str> {
        match self.pods.get(pod)?.state {
            PodState::Granted(id) => Some(self.credentials.get(&id)?.role_name()),
            PodState::Pending(_) | PodState::Refused(_) | PodState::NoRole => None,
        }
    }
}
