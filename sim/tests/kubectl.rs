//! The simulated API server through the eyes of a real `kubectl`.
//!
//! Skipped, with a line that says so, on a machine that has none.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected stops where it stands"
)]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kiam_sim::certificates::Authority;
use kiam_sim::cluster::{Cluster, ClusterOptions, Kind, NewPod, Phase};
use kiam_sim::kubeconfig::Kubeconfig;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

struct Kubectl<'a> {
    home: &'a Path,
}

struct Said {
    ok: bool,
    text: String,
    errors: String,
}

impl Kubectl<'_> {
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(line.split_whitespace())
            .env("KUBECONFIG", self.home.join("kubeconfig"))
            .env("HOME", self.home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn fed(&self, line: &str, input: &str) -> Said {
        let mut child = self.command(line).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        let ended = tokio::time::timeout(Duration::from_mins(1), child.wait_with_output());
        let output = ended
            .await
            .unwrap_or_else(|_| panic!("kubectl {line} did not end"))
            .unwrap();
        Said {
            ok: output.status.success(),
            text: String::from_utf8(output.stdout).unwrap(),
            errors: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs a command that must go well and returns what it printed.
    async fn run(&self, line: &str) -> String {
        let said = self.fed(line, "").await;
        assert!(said.ok, "kubectl {line}: {}{}", said.text, said.errors);
        said.text
    }
}

const POD: &str = r#"{
    "apiVersion": "v1", "kind": "Pod",
    "metadata": {"name": "made", "namespace": "ns"},
    "spec": {"containers": [{"name": "c", "image": "i"}]}
}"#;

#[tokio::test]
async fn kubectl_works() {
    let present = Command::new("kubectl")
        .args(["version", "--client"])
        .output()
        .await;
    if !present.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED kubectl_works: there is no kubectl on PATH");
        return;
    }
    let authority = Authority::new("test").unwrap();
    let cluster = Cluster::start(ClusterOptions {
        identity: Some(authority.server(&[]).unwrap()),
        bearer_token: Some("secret".to_owned()),
        ..ClusterOptions::default()
    })
    .await
    .unwrap();
    let home = tempfile::tempdir().unwrap();
    let config = Kubeconfig {
        server: cluster.url(),
        authority_pem: Some(authority.certificate_pem().to_owned()),
        token: Some("secret".to_owned()),
        namespace: "default".to_owned(),
    };
    config.write(&home.path().join("kubeconfig")).unwrap();
    let kubectl = Kubectl { home: home.path() };
    looks(&kubectl, &cluster).await;
    creates(&kubectl).await;
    changes(&kubectl, &cluster).await;
    watches(&kubectl, &cluster).await;
    deletes(&kubectl, &cluster).await;
}

async fn looks(kubectl: &Kubectl<'_>, cluster: &Cluster) {
    let handle = cluster.handle();
    handle.create_node("node-1", &[]).unwrap();
    let address = "10.0.0.7".parse().unwrap();
    handle
        .create_pod(
            NewPod::new("default", "seen")
                .label("app", "x")
                .node("node-1"),
        )
        .unwrap();
    handle.run("default", "seen", &[address]).unwrap();
    let table = kubectl.run("get pods -o wide").await;
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        [row[0], row[1], row[2], row[3]],
        ["seen", "1/1", "Running", "0"],
        "{table}"
    );
    assert_eq!([row[5], row[6]], ["10.0.0.7", "node-1"], "{table}");
    let all = kubectl.run("get pods -A").await;
    assert!(
        all.starts_with("NAMESPACE") && all.contains("default"),
        "{all}"
    );
    assert_eq!(kubectl.run("get pods -l app=y -o name").await, "");
    assert_eq!(
        kubectl
            .run("get po -o jsonpath={.items[0].status.podIP}")
            .await,
        "10.0.0.7"
    );
    assert!(
        kubectl
            .run("get pod seen -o yaml")
            .await
            .contains("podIP: 10.0.0.7")
    );
    assert!(kubectl.run("get ns").await.contains("kube-system"));
    assert!(kubectl.run("get nodes").await.contains("Ready"));
    assert!(kubectl.run("describe pod seen").await.contains("10.0.0.7"));
    assert!(
        kubectl
            .run("api-resources")
            .await
            .contains("serviceaccounts")
    );
    assert!(kubectl.run("version").await.contains("v1.33.0-sim"));
    let missing = kubectl.fed("get pod nobody", "").await;
    assert!(
        missing.errors.contains("pods \"nobody\" not found"),
        "{}",
        missing.errors
    );
}

async fn creates(kubectl: &Kubectl<'_>) {
    kubectl.run("create namespace ns").await;
    kubectl
        .run("annotate namespace ns iam.amazonaws.com/permitted=.*")
        .await;
    let made = kubectl.fed("create -f -", POD).await;
    assert!(
        made.ok && made.errors.is_empty(),
        "{}{}",
        made.text,
        made.errors
    );
    let again = kubectl.fed("create -f -", POD).await;
    assert!(again.errors.contains("AlreadyExists"), "{}", again.errors);
    let applied = kubectl.fed("apply -f -", POD).await;
    assert!(applied.ok, "{}", applied.errors);
    let labelled = POD.replace(
        r#""name": "made","#,
        r#""name": "made", "labels": {"a": "b"},"#,
    );
    let applied = kubectl.fed("apply -f -", &labelled).await;
    assert!(
        applied.text.contains("configured"),
        "{}{}",
        applied.text,
        applied.errors
    );
    let applied = kubectl
        .fed("apply --server-side --force-conflicts -f -", &labelled)
        .await;
    assert!(applied.ok, "{}", applied.errors);
    kubectl.run("run started --image=i -n ns").await;
    kubectl.run("create serviceaccount sa -n ns").await;
    assert_eq!(
        kubectl
            .run("create token sa -n ns")
            .await
            .matches('.')
            .count(),
        2
    );
}

async fn changes(kubectl: &Kubectl<'_>, cluster: &Cluster) {
    for line in [
        "annotate pod made -n ns iam.amazonaws.com/role=reader",
        "annotate pod made -n ns iam.amazonaws.com/role=writer --overwrite",
        "label pod made -n ns c=d",
        r#"patch pod made -n ns -p {"metadata":{"annotations":{"s":"1"}}}"#,
        r#"patch pod made -n ns --type=merge -p {"metadata":{"annotations":{"m":"1"}}}"#,
        r#"patch pod made -n ns --type=json -p [{"op":"add","path":"/metadata/annotations/j","value":"1"}]"#,
        r#"patch pod made -n ns --subresource=status --type=merge -p {"status":{"phase":"Running","podIP":"10.0.0.8"}}"#,
        "taint nodes node-1 a=b:NoSchedule",
        "taint nodes node-1 a=b:NoSchedule-",
        "wait pod/made -n ns --for=jsonpath={.status.phase}=Running --timeout=20s",
    ] {
        kubectl.run(line).await;
    }
    let pod = cluster.handle().get(Kind::Pod, "ns", "made").unwrap();
    for (key, value) in [
        ("iam.amazonaws.com/role", "writer"),
        ("s", "1"),
        ("m", "1"),
        ("j", "1"),
    ] {
        assert_eq!(pod["metadata"]["annotations"][key], value, "{pod}");
    }
    assert_eq!(
        pod["metadata"]["labels"],
        serde_json::json!({"a": "b", "c": "d"})
    );
    assert_eq!(pod["status"]["podIP"], "10.0.0.8");
}

async fn watches(kubectl: &Kubectl<'_>, cluster: &Cluster) {
    let mut watching = kubectl.command("get pods -n ns -w").spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let seen = tokio::time::timeout(Duration::from_secs(30), async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.starts_with("made") && line.contains("Completed") {
                return true;
            }
            // The last row of what was there: from now on it is the watch that speaks.
            if line.starts_with("started") {
                cluster
                    .handle()
                    .set_phase("ns", "made", Phase::Succeeded)
                    .unwrap();
            }
        }
        false
    });
    assert_eq!(seen.await, Ok(true), "the watch shows the change");
    watching.kill().await.unwrap();
}

async fn deletes(kubectl: &Kubectl<'_>, cluster: &Cluster) {
    kubectl.run("delete pod made -n ns").await;
    kubectl.run("delete pod seen").await;
    kubectl
        .run("delete pod started -n ns --grace-period=0 --force")
        .await;
    assert_eq!(cluster.handle().count(Kind::Pod), 0);
    let made = kubectl.fed("create -f -", POD).await;
    assert!(made.ok, "{}", made.errors);
    kubectl.run("delete pods --all -n ns").await;
    kubectl.run("delete namespace ns").await;
    assert!(cluster.handle().get(Kind::Namespace, "", "ns").is_err());
}
