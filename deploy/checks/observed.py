"""The dashboards and the rules, asked of a real Prometheus that scrapes the real programs.

    observed.py KIAM-LOADTEST

starts `kiam-loadtest up` with pods that ask in every way, and a Prometheus beside it, in a network
namespace of their own, and proves that

- every panel's and every recording rule's query returns data, and so does every selector in an alert,
- exactly those alerts are true that should be, with all in order and with the server killed,
- every metric that a query names is exposed, and every metric that is exposed is described in
  docs/metrics.md with its type, its labels and all their values, and the other way round.

What is empty here for a reason stands in EMPTY, with the reason; an entry that is not empty is wrong.
Needs prometheus, unshare, ip and nft, and about half a minute; ends everything it started.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

import metrics_page
import promql
from traffic import Traffic

DEADLINE_S = 110
RATE = "15s"
# Where pods' requests for the metadata address are led: an address of the node that is not loopback.
HOST = "10.213.7.1"
IN_NAMESPACE = "KIAM_CHECK_IN_NAMESPACE"

# Panels (by title) and selectors that have nothing to show here.
EMPTY = {
    "Life left at a refresh": "credentials are refreshed after half an hour",
    "Agents that need a look": "none needs one",
}
# Alerts that are true in this system while nothing is broken: its pods ask for what they may not have.
TRUE = {
    "KiamRequestsUnanswered": "a stranger keeps asking",
    "KiamNodeUnanswered": "a stranger keeps asking",
    "KiamPodsRefused": "a refused pod keeps asking",
}
TRUE_WITHOUT_SERVER = {
    "KiamNotScraped": "it was the only one",
    "KiamNoServer": "it was killed",
    "KiamAgentDisconnected": "it was killed",
}
# Labels of which not every value can be seen here.
SELDOM = {
    "kiam_metadata_responses_total": "codes are there once they have happened",
    "kiam_agent_driver_reason_info": "one driver runs",
    "grpc_server_handled_total": "there once it has happened",
}


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(what, holds, seconds):
    """Waits for something; its value, or a sentence that says what never came."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if value := holds():
                return value
        time.sleep(0.2)
    raise SystemExit(f"{what}: not within {seconds} s")


class Prometheus:
    """A Prometheus of its own, and what it answers."""

    def __init__(self, folder, targets):
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = folder / "prometheus.log"
        config = folder / "prometheus.json"
        rules = [str(path.resolve()) for path in promql.RULES.glob("*.yaml") if "_test" not in path.name]
        config.write_text(json.dumps({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": rules,
            "scrape_configs": [
                {"job_name": labels["job"], "static_configs": [{"targets": [address], "labels": labels}]}
                for address, labels in targets
            ],
        }))
        listen = self.url.removeprefix("http://")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address={listen}"],
                stdout=log, stderr=log)

    def api(self, path, **query):
        answer = json.loads(get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query, doseq=True)}"))
        return answer["data"]

    def query(self, expr):
        """Series with a value; one that is not a number is no data."""
        try:
            result = self.api("query", query=expr)["result"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{expr}: {json.loads(error.read())['error']}") from error
        return [series for series in result if not math.isnan(float(series["value"][1]))]

    def rules(self):
        return [rule for group in self.api("rules")["groups"] for rule in group["rules"]]

    def scrapes(self):
        """How often each target was scraped, the least of them."""
        counts = self.query("count_over_time(up[10m])")
        return min((int(float(series["value"][1])) for series in counts), default=0)

    def wait(self, scrapes, targets):
        until("Prometheus is ready", lambda: get(self.url + "/-/ready"), 20)
        until("all targets are up", lambda: len(self.query("up == 1")) == targets, 20)
        until(f"{scrapes} scrapes", lambda: self.scrapes() >= scrapes, 2 * scrapes)
        until("all rules were evaluated", lambda: all(rule["health"] == "ok" for rule in self.rules()), 20)


# === what is checked ===


def judge(name, expr, found, used):
    """A complaint, or nothing."""
    reason = EMPTY.get(name)
    if reason:
        used.add(name)
    if reason and found:
        yield f"{name}: returns data, so its entry in EMPTY ({reason}) must go"
    if not reason and not found:
        yield f"{name}: no data for {expr}"


def of_panels(prometheus, used):
    count = 0
    for path, dashboard in promql.dashboards():
        for variable in dashboard["templating"]["list"]:
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable.get("query", {}).get("query", "")) if variable["type"] == "query" else None
            # A Prometheus of one cluster does not say which.
            if found and found.group(2) != "cluster":
                values = prometheus.api(f"label/{found.group(2)}/values", **{"match[]": promql.filled(found.group(1), RATE)})
                if not values:
                    yield f"{path.name}: the variable {variable['name']} has no values"
        for panel in promql.panels(dashboard):
            expressions = [promql.filled(target["expr"], RATE) for target in panel["targets"]]
            count += len(expressions)
            if panel["title"] in EMPTY:
                yield from judge(panel["title"], "", any(map(prometheus.query, expressions)), used)
                continue
            for expr in expressions:
                yield from judge(f"{path.name}, {panel['title']}", expr, prometheus.query(expr), used)
    print(f"{count} queries of panels")


def of_rules(prometheus, used):
    rules = prometheus.rules()
    for rule in rules:
        if rule["type"] == "recording":
            yield from judge(rule["name"], rule["query"], prometheus.query(rule["query"]), used)
            continue
        for selector in promql.selectors(rule["query"]):
            yield from judge(f"{rule['name']}: {selector}", selector, prometheus.query(f"{{{selector[1:-1]}}}" if selector.startswith("{") else selector), used)
    print(f"{len(rules)} rules")


def true_alerts(prometheus):
    return {rule["name"] for rule in prometheus.rules() if rule["type"] == "alerting" and prometheus.query(rule["query"])}


def of_alerts(prometheus, expected, when):
    """Waits for what must become true; complains about what is true and should not be."""
    end = time.monotonic() + 15
    while (true := true_alerts(prometheus)) != expected and time.monotonic() < end:
        time.sleep(0.5)
    for name in expected - true:
        yield f"{name}: should be true {when}"
    for name in true - expected:
        yield f"{name}: is true {when}, and should not be"


def of_names(exposed):
    """Every metric that a query names is there."""
    there = set(exposed)
    there |= {name + suffix for name, (kind, _) in exposed.items() if kind == "histogram" for suffix in ("_bucket", "_sum", "_count")}
    expressions = {f"{path.name}, {panel['title']}": target["expr"]
                   for path, dashboard in promql.dashboards() for panel in promql.panels(dashboard) for target in panel["targets"]}
    for path in promql.RULES.glob("*.yaml"):
        text = path.read_text()
        there |= set(re.findall(r"record: (\S+)", text))
    for where, expr in expressions.items():
        for name in promql.metrics(expr) - there:
            yield f"{where}: no program exposes {name}"
        for pattern in promql.name_patterns(expr):
            if not any(re.fullmatch(pattern, name) for name in there):
                yield f"{where}: no program exposes {pattern}"


def of_page(exposed):
    described = metrics_page.read()
    for name in set(exposed) - set(described):
        yield f"{name} is exposed, and not described in {metrics_page.PAGE}"
    for name in set(described) - set(exposed):
        yield f"{name} is described in {metrics_page.PAGE}, and not exposed"
    for name in set(described) & set(exposed):
        (kind, labels), (shown_kind, shown) = described[name], exposed[name]
        if kind != shown_kind:
            yield f"{name} is a {shown_kind}, and described as a {kind}"
        if set(labels) != set(shown):
            yield f"{name} has the labels {sorted(shown)}, and is described with {sorted(labels)}"
        for label in set(labels) & set(shown):
            values = labels[label]
            if values and (unknown := shown[label] - values):
                yield f"{name}: {label} can be {sorted(unknown)}, which is not described"
            if values and name not in SELDOM and (never := values - shown[label]):
                yield f"{name}: {label} is described as {sorted(never)}, which is never there"
    print(f"{len(exposed)} metrics")


# === the system ===


def metrics_of(system):
    exposed = {}
    for program in ("agent", "server"):
        for name, (kind, labels) in metrics_page.exposed(get(system[f"{program}_admin_url"] + "/metrics")).items():
            known = exposed.setdefault(name, (kind, {}))
            for label, values in labels.items():
                known[1].setdefault(label, set()).update(values)
    return exposed


def targets_of(system):
    """As the chart's monitors would label them."""
    for program in ("agent", "server"):
        address = urllib.parse.urlsplit(system[f"{program}_admin_url"]).netloc
        labels = {"job": f"kiam-{program}-metrics", "namespace": "kiam", "pod": f"kiam-{program}-0", "container": program, "endpoint": "metrics", "node": system["node"]}
        if set(labels) | {"instance"} != promql.TARGET_LABELS:
            raise SystemExit("promql.TARGET_LABELS and the targets here must be the same")
        yield address, labels


def up(loadtest, folder):
    """The system, and the line that starts its agent again."""
    described, said = folder / "up.json", folder / "up.out"
    own = ["--intercept=nftables", "--host-interface=!lo", f"--host={HOST}", "--listen-addr=0.0.0.0"]
    with open(said, "w") as out:
        process = subprocess.Popen(
            [loadtest, "up", "--dir", str(folder), "--json", str(described), *(f"--agent-flag={flag}" for flag in own)],
            stdout=out, stderr=out)
    with contextlib.suppress(SystemExit):
        system = until("kiam-loadtest up", lambda: json.loads(described.read_text()), 60)
        lines = said.read_text().splitlines()
        return process, system, next(line for line in lines if re.search(r"loadtest agent |kiam-agent ", line))
    raise SystemExit(f"kiam-loadtest up did not come up:\n{said.read_text()}")


def restart_agent(system, line, folder):
    """So that a stream has ended, and a process has started anew."""
    os.kill(system["pids"]["agent"], signal.SIGKILL)
    with open(folder / "agent-again.log", "w") as log:
        again = subprocess.Popen(shlex.split(line), stdout=log, stderr=log)
    until("the second agent is ready", lambda: get(system["agent_admin_url"] + "/readyz"), 20)
    return again


def observe(loadtest, folder):
    process, system, line = up(loadtest, folder)
    targets = list(targets_of(system))
    prometheus = Prometheus(folder, targets)
    traffic = Traffic(system)
    started = [process, prometheus.process]
    try:
        started.append(restart_agent(system, line, folder))
        traffic.start()
        prometheus.wait(15, len(targets))
        used = set()
        exposed = metrics_of(system)
        wrong = [
            *of_page(exposed), *of_names(exposed), *of_panels(prometheus, used), *of_rules(prometheus, used),
            *of_alerts(prometheus, set(TRUE), "while all is in order"),
            *(f"EMPTY has {name}, which is no panel, rule or selector" for name in set(EMPTY) - used),
        ]
        os.kill(system["pids"]["server"], signal.SIGKILL)
        wrong += of_alerts(prometheus, set(TRUE) | set(TRUE_WITHOUT_SERVER), "while the server is dead")
        traffic.stop()
        if not traffic.rounds:
            wrong.append("no round of requests was finished")
        return wrong + traffic.wrong
    finally:
        traffic.over.set()
        for one in reversed(started):
            one.terminate()
        for one in started:
            try:
                one.wait(10)
            except subprocess.TimeoutExpired:
                one.kill()


def expired(_signal, _frame):
    raise SystemExit(f"not done within {DEADLINE_S} s")


def main(loadtest):
    if IN_NAMESPACE not in os.environ:
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        # Whatever is left when this ends, ends with its process namespace.
        run = ["unshare", *user, "--net", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, *sys.argv]
        return subprocess.run(run, env={**os.environ, IN_NAMESPACE: "1"}, check=False).returncode
    signal.signal(signal.SIGALRM, expired)
    signal.alarm(DEADLINE_S)
    for command in ("ip link set lo up", f"ip address add {HOST}/32 dev lo"):
        subprocess.run(command.split(), check=True)
    with tempfile.TemporaryDirectory() as folder:
        wrong = observe(loadtest, pathlib.Path(folder))
    print("\n".join(wrong), end="\n" if wrong else "")
    print(f"{len(wrong)} things wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
