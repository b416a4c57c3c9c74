"""From the chart to a bucket: see deploy/walkthrough, which starts this.

What is simulated: the Kubernetes API (kiam-loadtest sim) and AWS (moto, IAM enforced). What is not: both
programs, their arguments, their certificates and token, the example objects, the AWS CLI. This script
plays cert-manager and the kubelet.
"""

import json
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import boto3
import yaml

GOLDEN = "deploy/helm/tests/golden/walkthrough.yaml"
EXAMPLES = pathlib.Path("deploy/examples")
PATIENCE_S = 30
POD_IP = "127.0.0.1"
NODE = "node-story"
REGION = "eu-west-1"


class Failed(Exception):
    """The story does not end as it should."""


def say(text):
    print(f"     {text}", flush=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, attempt):
    """Tries until it does not raise; bounded."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return attempt()
        except Exception as error:  # noqa: BLE001 - whatever it is, it may pass
            if time.monotonic() > end:
                raise Failed(f"{what}: {error}") from error
            time.sleep(0.1)


def fetch(url, method="GET", headers=None):
    request = urllib.request.Request(url, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("x-kiam-reason") or ""


def run(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **more)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Background:
    """Programs that run until the story ends."""

    def __init__(self, folder):
        self.folder, self.running = folder, []

    def start(self, name, command, environment):
        log = open(self.folder / f"{name}.log", "w")
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment)
        self.running.append((name, process, log))
        return process

    def stop(self):
        for _, process, log in reversed(self.running):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
            log.close()

    def tell(self):
        for name, process, _ in self.running:
            text = (self.folder / f"{name}.log").read_text()
            print(f"---- {name} (exit code {process.poll()})\n{text[-3000:]}")


def golden():
    return [thing for thing in yaml.safe_load_all(open(GOLDEN)) if thing]


def container(things, kind, name):
    spec = next(t for t in things if t["kind"] == kind)["spec"]["template"]["spec"]
    return next(c for c in spec["containers"] if c["name"] == name)


def cert_manager(things, folder):
    """Issues what the chart's Certificates ask for, into a directory per Secret."""
    authority = folder / "authority"
    authority.mkdir()
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    run("openssl", "req", "-x509", *new_key, "-days", "1", "-subj", "/CN=kiam-ca",
        "-keyout", authority / "key", "-out", authority / "crt")
    usages = {"server auth": "serverAuth", "client auth": "clientAuth"}
    for certificate in things:
        if certificate["kind"] != "Certificate" or certificate["spec"].get("isCA"):
            continue
        spec = certificate["spec"]
        secret = folder / spec["secretName"]
        secret.mkdir()
        names = [f"DNS:{n}" for n in spec["dnsNames"]] + [f"IP:{a}" for a in spec.get("ipAddresses", [])]
        extended = [usages[u] for u in spec["usages"] if u in usages]
        (secret / "ext").write_text(
            f"subjectAltName={','.join(names)}\nextendedKeyUsage={','.join(extended)}\nkeyUsage=digitalSignature\n"
        )
        run("openssl", "req", *new_key, "-subj", "/", "-keyout", secret / "tls.key", "-out", secret / "csr")
        run("openssl", "x509", "-req", "-in", secret / "csr", "-CA", authority / "crt", "-CAkey", authority / "key",
            "-CAcreateserial", "-days", "1", "-extfile", secret / "ext", "-out", secret / "tls.crt")
        (secret / "ca.crt").write_bytes((authority / "crt").read_bytes())


# The session names of the two links of the chain: the node's instance, and the server's own.
SESSIONS = {"blue-server-node": "i-0123456789abcdef0", "kiam-server": "kiam-server"}


def document(name):
    """A policy of the examples, for moto: it compares a trust policy's principal with the caller's session, where AWS
    takes the session's role for it too."""
    text = (EXAMPLES / "iam" / name).read_text()
    for role, session in SESSIONS.items():
        text = text.replace(f'{{"AWS": "arn:aws:iam::123456789012:role/{role}"}}',
                            f'{{"AWS": "arn:aws:sts::123456789012:assumed-role/{role}/{session}"}}')
    return text


def aws(background, folder, environment):
    """moto with the example's roles, policies and bucket, then IAM switched on. Returns its URL and the server's keys."""
    url = f"http://127.0.0.1:{free_port()}"
    background.start("moto", ["moto_server", "--host", "127.0.0.1", "--port", url.rsplit(":", 1)[1]], environment)
    until("moto", lambda: fetch(f"{url}/moto-api/"))
    session = boto3.Session("setup", "setup", region_name=REGION)
    iam = session.client("iam", endpoint_url=url)
    iam.create_role(RoleName="kiam-server", AssumeRolePolicyDocument=document("trust-kiam-server.json"))
    iam.put_role_policy(RoleName="kiam-server", PolicyName="apps", PolicyDocument=document("policy-kiam-server.json"))
    iam.create_role(
        RoleName="blue-bucket-reader", Path="/kiam/", AssumeRolePolicyDocument=document("trust-application.json")
    )
    iam.put_role_policy(
        RoleName="blue-bucket-reader", PolicyName="list", PolicyDocument=document("policy-bucket-reader.json")
    )
    # What the server finds on its node: a session of the node's role, which may become kiam-server.
    iam.create_role(RoleName="blue-server-node", AssumeRolePolicyDocument=document("trust-kiam-server.json"))
    become = {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "arn:aws:iam::123456789012:role/kiam-server"}
    iam.put_role_policy(
        RoleName="blue-server-node", PolicyName="become-kiam-server",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [become]}),
    )
    sts = session.client("sts", endpoint_url=url)
    keys = sts.assume_role(
        RoleArn="arn:aws:iam::123456789012:role/blue-server-node", RoleSessionName=SESSIONS["blue-server-node"]
    )["Credentials"]
    s3 = session.client("s3", endpoint_url=url)
    for bucket in ("blue-example-bucket", "some-other-bucket"):
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        s3.put_object(Bucket=bucket, Key="the-object", Body=b"x")
    reset = urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}, method="POST")
    urllib.request.urlopen(reset, timeout=5).close()
    return url, {
        "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
        "AWS_SESSION_TOKEN": keys["SessionToken"],
    }


class Kubectl:
    def __init__(self, kubeconfig, environment):
        self.kubeconfig, self.environment = kubeconfig, environment

    def __call__(self, *arguments, **more):
        return run("kubectl", f"--kubeconfig={self.kubeconfig}", *arguments, env=self.environment, **more)

    def create(self, thing):
        self("create", "--validate=false", "--filename=-", input=json.dumps(thing))

    def run_pod(self, pod, ip):
        """What scheduler and kubelet do."""
        pod["spec"]["nodeName"] = NODE
        self.create(pod)
        status = {"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}}
        self("--namespace", pod["metadata"]["namespace"], "patch", "pod", pod["metadata"]["name"],
             "--subresource=status", "--type=merge", "--patch", json.dumps(status))


def replaced(arguments, changes):
    """The chart's arguments with what differs outside a container; every change must have a use."""
    text = "\n".join(arguments)
    for old, new in changes.items():
        if old not in text:
            raise Failed(f"the chart no longer renders {old}")
        text = text.replace(old, str(new))
    return text.split("\n")


def story(bin_directory, folder, background):
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C"}
    things = golden()
    cert_manager(things, folder)
    say("certificates issued as the chart's Certificates ask")
    aws_url, keys = aws(background, folder, {**environment, "AWS_DEFAULT_REGION": REGION})
    say("moto runs, IAM enforced")

    simulation = folder / "simulation"
    background.start("simulation", [bin_directory / "kiam-loadtest", "sim", "--dir", simulation, "--json",
                                    folder / "simulation.json"], environment)
    until("the simulated cluster", lambda: json.loads((folder / "simulation.json").read_text()))
    kubectl = Kubectl(simulation / "kubeconfig", environment)
    kubectl.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kiam"}})
    kubectl.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "kiam-agent", "namespace": "kiam"}})
    kubectl.run_pod({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kiam-agent-story", "namespace": "kiam"},
        "spec": {"serviceAccountName": "kiam-agent", "hostNetwork": True, "containers": [{"name": "agent", "image": "kiam"}]},
    }, "127.0.0.250")
    token = kubectl("--namespace", "kiam", "create", "token", "kiam-agent", "--audience=kiam-server", "--duration=1h",
                    "--bound-object-kind=Pod", "--bound-object-name=kiam-agent-story")
    (folder / "token").write_text(token.strip())
    say("the simulated cluster runs, the agent has its token")

    port, server_admin, agent_port, agent_admin = (free_port() for _ in range(4))
    server = container(things, "Deployment", "server")
    background.start("server", [
        bin_directory / "kiam-server",
        *replaced(server["args"], {
            "[::]:9610": f"127.0.0.1:{port}", "[::]:9620": f"127.0.0.1:{server_admin}",
            "/etc/kiam/tls": folder / "kiam-server-tls",
        }),
        f"--kubeconfig={simulation / 'kubeconfig'}",
    ], {**environment, **keys, "AWS_ENDPOINT_URL_STS": aws_url})
    agent = container(things, "DaemonSet", "agent")
    handover = tempfile.TemporaryDirectory(dir="/dev/shm")
    # As the kubelet makes the directory of a hostPath volume.
    os.chmod(handover.name, 0o755)
    agent_command = [
        bin_directory / "kiam-agent",
        *replaced(agent["args"], {
            "kiam-server.kiam.svc:9610": f"localhost:{port}", "--port=8181": f"--port={agent_port}",
            "[::]:9620": f"127.0.0.1:{agent_admin}", "/etc/kiam/tls": folder / "kiam-agent-tls",
            "/var/run/secrets/kiam/token": folder / "token", "--handover-dir=/run/kiam": f"--handover-dir={handover.name}",
        }),
    ]
    background.start("agent", agent_command, {**environment, "NODE_NAME": NODE, "HOST_IP": "192.0.2.10"})

    def ready(admin):
        status, text = fetch(f"http://127.0.0.1:{admin}/readyz")
        if status != 200:
            raise Failed(text)

    until("the server's readiness", lambda: ready(server_admin))
    until("the agent's readiness", lambda: ready(agent_admin))
    say("server and agent are ready, started with the chart's arguments")
    private = stat.S_IMODE(os.stat(handover.name).st_mode) == 0o700
    if not private or not pathlib.Path(handover.name, "token-key").exists():
        raise Failed(f"the agent leaves nothing in {handover.name} for the next: {os.listdir(handover.name)}")
    say("the hand-over directory is the agent's own, and holds the key of its tokens")

    namespace = yaml.safe_load((EXAMPLES / "namespace.yaml").read_text())
    permitted = namespace["metadata"].pop("annotations")
    kubectl.create(namespace)
    pod = yaml.safe_load((EXAMPLES / "pod.yaml").read_text())
    kubectl.run_pod(pod, POD_IP)
    metadata = f"http://127.0.0.1:{agent_port}"
    roles = f"{metadata}/latest/meta-data/iam/security-credentials/"

    def answers(expected):
        status, said = fetch(roles)
        if status != expected:
            raise Failed(f"{status} {said}")
        return said

    reason = until("a refusal before the namespace is annotated", lambda: answers(403))
    say(f"before the annotation: 403, {reason}")
    for key, value in permitted.items():
        kubectl("annotate", "namespace", namespace["metadata"]["name"], f"{key}={value}")
    role = until("the role after the namespace is annotated", lambda: answers(200))
    say(f"after it: {role}")

    inside = pod["spec"]["containers"][0]
    pod_environment = {
        **environment, **{e["name"]: e["value"] for e in inside["env"]},
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata, "AWS_ENDPOINT_URL": aws_url,
        # The CLI of the package registry is version 1, which does not know AWS_REGION.
        "AWS_DEFAULT_REGION": REGION,
    }
    listed = run(*inside["command"], *inside["args"], env=pod_environment)
    if "assumed-role/blue-bucket-reader/" not in listed or "the-object" not in listed:
        raise Failed(f"the example pod saw {listed}")
    say("the example pod's own command lists its bucket")
    denied = subprocess.run(["aws", "s3", "ls", "s3://some-other-bucket"], env=pod_environment,
                            capture_output=True, text=True, check=False, timeout=60)
    if denied.returncode == 0 or "AccessDenied" not in denied.stderr:
        raise Failed(f"another bucket was not denied: {denied.stdout} {denied.stderr}")
    say("another bucket is denied")
    why = run(bin_directory / "kiam-server", "why", "--admin-address", f"127.0.0.1:{server_admin}",
              "kiam-example/bucket-reader", env=environment)
    if "kiam/blue-bucket-reader" not in why:
        raise Failed(f"why said {why}")
    say("why names the role")


def main(bin_directory):
    with tempfile.TemporaryDirectory() as name:
        background = Background(pathlib.Path(name))
        try:
            story(pathlib.Path(bin_directory).resolve(), pathlib.Path(name), background)
        except (Failed, subprocess.TimeoutExpired) as error:
            background.stop()
            background.tell()
            print(f"FAILED: {error}")
            return 1
        finally:
            background.stop()
    print("the walkthrough holds")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
