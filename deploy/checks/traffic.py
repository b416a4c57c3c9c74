"""Pods that ask an agent, each in a way of its own, and a cluster in which something changes: so that
every series there can be is there, and moves."""

import http.client
import json
import socket
import threading
import time
from urllib.parse import urlsplit

LIST = "/latest/meta-data/iam/security-credentials/"
# An address that no pod of the simulated cluster has.
STRANGER = "127.64.200.1"


def ask(url, source, path, method="GET", headers=None):
    """(status, body). A connection of its own, from the pod's address."""
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=5, source_address=(source, 0))
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


class Traffic:
    """Asks round and round until it is told to stop; fails on an answer that should not be."""

    def __init__(self, system):
        self.system = system
        self.agent = system["agent_url"]
        pods = [pod for pod in system["pods"] if not pod["host_network"]]
        self.granted = [pod for pod in pods if pod["state"] == "granted"]
        self.refused = next(pod for pod in pods if pod["state"] == "refused")
        self.changing = next(pod for pod in pods if pod["state"] == "no-role")
        self.over = threading.Event()
        self.wrong = []
        self.rounds = 0

    def start(self):
        # More than one request in ten is a stranger's, so that alerts on a share can be seen.
        parts = ((self.round, 2), (self.change, 1), (self.strangers, 0.3), (self.strangers, 0.3))
        self.threads = [threading.Thread(target=self.repeat, args=part, daemon=True) for part in parts]
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join(10)

    def repeat(self, one, pause_s):
        while not self.over.wait(pause_s):
            try:
                one()
            except OSError as error:
                # An agent that is away for a moment is part of the plan; one that stays away is seen
                # by the queries.
                self.last_error = error

    def expect(self, status, what):
        if what[0] != status and len(self.wrong) < 10:
            self.wrong.append(f"{status} was expected: {what}")

    def round(self):
        """One look of each pod."""
        for pod in self.granted[:4]:
            ip = pod["ip"]
            status, token = ask(self.agent, ip, "/latest/api/token", "PUT", {"x-aws-ec2-metadata-token-ttl-seconds": "60"})
            self.expect(200, (status, "a token"))
            with_token = {"x-aws-ec2-metadata-token": token}
            self.expect(200, ask(self.agent, ip, LIST, headers=with_token))
            self.expect(200, (ask(self.agent, ip, LIST + pod["role"])[0], "credentials"))
        self.expect(401, ask(self.agent, self.granted[1]["ip"], LIST, headers=with_token))
        self.expect(404, ask(self.agent, ip, LIST + "somebody-elses"))
        self.expect(403, ask(self.agent, self.refused["ip"], LIST))
        self.expect(404, ask(self.agent, ip, "/latest/user-data"))
        self.expect(405, ask(self.agent, ip, LIST, "POST"))
        ask(self.agent, ip, "/latest/meta-data/iam/info")
        ask(self.agent, ip, "/ping")
        door = urlsplit(self.system["container_url"])
        with open(self.system["container_token_file"]) as file:
            container = file.read().strip()
        base = f"http://{door.netloc}"
        self.expect(200, (ask(base, "127.0.0.1", door.path, headers={"Authorization": container})[0], "the second door"))
        ask(base, "127.0.0.1", door.path)
        self.rounds += 1

    def strangers(self):
        """One waits in vain, one hangs up before."""
        with socket.create_connection((urlsplit(self.agent).hostname, urlsplit(self.agent).port), 5, (STRANGER, 0)) as impatient:
            impatient.sendall(f"GET {LIST} HTTP/1.1\r\n\r\n".encode())
            time.sleep(0.2)
        self.expect(503, ask(self.agent, STRANGER, LIST))

    def change(self):
        """The pod without a role gets one it did not have, and the next time none."""
        self.changes = getattr(self, "changes", 0) + 1
        role = f"role-{self.changes}" if self.changes % 2 else None
        path = f"/api/v1/namespaces/{self.changing['namespace']}/pods/{self.changing['name']}"
        at = urlsplit(self.system["kube_api"])
        connection = http.client.HTTPConnection(at.hostname, at.port, timeout=5)
        body = json.dumps({"metadata": {"annotations": {"iam.amazonaws.com/role": role}}})
        connection.request("PATCH", path, body, {"content-type": "application/merge-patch+json"})
        self.expect(200, (connection.getresponse().status, "a changed annotation"))
        connection.close()
        # Nothing is expected: the change is on its way while this is asked.
        ask(self.agent, self.changing["ip"], LIST)
