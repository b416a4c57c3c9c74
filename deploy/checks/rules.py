"""The alerts, their page and their tests belong together; dashboards and rules use only labels that exist.

    rules.py GOLDEN [promtool]

GOLDEN is a render of the chart with monitors, rules and dashboards in it. Without promtool the rules are
not parsed as Prometheus does, and their tests do not run.
"""

import json
import pathlib
import re
import subprocess
import sys

import yaml

import metrics_page
import promql
from links import anchors

PAGE = pathlib.Path("docs/alerts.md")
TESTS = promql.RULES / "alerts_test.yaml"
SEVERITIES = {"critical", "warning", "info"}
# What the operator puts on the targets of each kind of monitor.
OPERATOR = {
    "ServiceMonitor": {"namespace", "service", "pod", "container", "endpoint", "job", "instance"},
    "PodMonitor": {"namespace", "pod", "container", "endpoint", "job", "instance"},
}
# Put on outside of the chart, or by the rules themselves, or part of every histogram.
# Words of the pages that look like metrics: labels, and a table of nftables.
OTHERS = {"grpc_type", "grpc_service", "grpc_method", "grpc_code", "kiam_container_credentials"}
ELSEWHERE = {"cluster", "le", "__name__", "program"}


def rules():
    for path in sorted(promql.RULES.glob("*.yaml")):
        if path != TESTS:
            for group in yaml.safe_load(path.read_text())["groups"]:
                yield from group["rules"]


def of_alerts(alerts):
    headings = {anchor for anchor in anchors(PAGE) if anchor.startswith("kiam")}
    for alert in alerts:
        name, notes = alert["alert"], alert["annotations"]
        if alert["labels"].get("severity") not in SEVERITIES:
            yield f"{name}: severity is one of {sorted(SEVERITIES)}"
        for note in ("summary", "description"):
            if not notes.get(note):
                yield f"{name}: no {note}"
        if notes.get("runbook_url") != f"docs/alerts.md#{name.lower()}":
            yield f"{name}: runbook_url is docs/alerts.md#{name.lower()}"
        if name.lower() not in headings:
            yield f"{name}: no section in {PAGE}"
    for heading in headings - {alert["alert"].lower() for alert in alerts}:
        yield f"{PAGE}#{heading}: there is no such alert"


def of_tests(alerts):
    """Each alert, with each severity, is seen to fire and seen not to."""
    fires, silent = set(), set()
    for test in yaml.safe_load(TESTS.read_text())["tests"]:
        for case in test.get("alert_rule_test", []):
            expected = case.get("exp_alerts") or []
            if not expected:
                silent.add(case["alertname"])
            for alert in expected:
                fires.add((case["alertname"], alert["exp_labels"].get("severity")))
    for alert in alerts:
        name, severity = alert["alert"], alert["labels"].get("severity")
        if (name, severity) not in fires:
            yield f"{name} ({severity}): no test in which it fires"
        if name not in silent:
            yield f"{name}: no test in which it does not fire"


def of_labels(targets):
    described = metrics_page.read()
    known = targets | ELSEWHERE | {label for _, labels in described.values() for label in labels}
    for rule in rules():
        said = " ".join([rule["expr"], *rule.get("annotations", {}).values()])
        used = promql.labels(rule["expr"]) | set(re.findall(r"\$labels\.(\w+)", said))
        for label in used - known:
            yield f"{rule.get('alert') or rule['record']}: nothing has a label {label}"
    for path, dashboard in promql.dashboards():
        for panel in promql.panels(dashboard):
            for target in panel["targets"]:
                used = promql.labels(target["expr"]) | set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                for label in used - known:
                    yield f"{path.name}, {panel['title']}: nothing has a label {label}"


def family(name, described):
    """The metric that a series belongs to, or was recorded from."""
    name = name.split(":")[1] if ":" in name else name
    for base in (name, f"{name}_total", re.sub(r"_(bucket|sum|count)$", "", name)):
        if base in described:
            return base
    return name


def of_values():
    """Matchers name values that there are; pages name metrics that there are."""
    described = metrics_page.read()
    queries = [(str(path), path.read_text()) for path in promql.RULES.glob("*.yaml")]
    for path, dashboard in promql.dashboards():
        queries += [(f"{path.name}, {panel['title']}", target["expr"]) for panel in promql.panels(dashboard) for target in panel["targets"]]
    pages = [(str(path), path.read_text()) for path in PAGE.parent.glob("*.md")]
    for where, text in queries + pages:
        for name, label, values in promql.matchers(text):
            labels = described.get(family(name, described), ("", {}))[1]
            known = labels.get(label)
            for value in values:
                if known and value not in known:
                    yield f"{where}: {name} has no {label} {value}"
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for where, text in pages:
        for name in set(re.findall(r"`(?:[^`]*\W)?((?:kiam|grpc|process)_\w+)", text)):
            # The table of what became of kiam's metrics names those that are gone.
            if name.endswith("_") or "migrating" in where or name in recorded:
                continue
            if family(name, described) not in described and name not in OTHERS:
                yield f"{where}: no program exposes {name}"


def of_dashboards(things):
    shipped = {}
    for thing in things:
        if thing["kind"] == "ConfigMap" and thing["metadata"]["name"].endswith("-dashboards"):
            shipped |= {name: text for name, text in thing["data"].items() if name.endswith(".json")}
    for path, dashboard in promql.dashboards():
        if json.loads(shipped.pop(path.name, "null")) != dashboard:
            yield f"{path.name} is not in the chart's ConfigMap as it is here"
        names = {variable["name"] for variable in dashboard["templating"]["list"]}
        if missing := {"datasource", "cluster", "namespace", "job", "instance"} - names:
            yield f"{path.name}: no variable {sorted(missing)}"
        for uid in re.findall(r'"type": "prometheus",\s*"uid": "([^"]*)"', path.read_text()):
            if uid != "${datasource}":
                yield f"{path.name}: names the data source {uid}"
                break
        for panel in promql.panels(dashboard):
            where = f"{path.name}, {panel['title']}"
            if len(panel["description"]) < 20:
                yield f"{where}: no description"
            if not panel["fieldConfig"]["defaults"].get("unit"):
                yield f"{where}: no unit"
    for name in shipped:
        yield f"{name} is in the chart's ConfigMap and not in {promql.GRAFANA}"


def targets(things):
    """The labels that targets have under every monitor of the chart."""
    found = None
    for thing in things:
        if thing["kind"] in OPERATOR:
            spec = thing["spec"]
            for endpoint in spec.get("endpoints", []) + spec.get("podMetricsEndpoints", []):
                put_on = {relabel.get("targetLabel") for relabel in endpoint["relabelings"]} - {None, "__address__"}
                here = OPERATOR[thing["kind"]] | put_on
                found = here if found is None else found & here
    return found or set()


def of_chart(things, alerts):
    if (have := targets(things)) != promql.TARGET_LABELS:
        yield f"the chart's monitors put on {sorted(have)}, the queries count on {sorted(promql.TARGET_LABELS)}"
    shipped = [
        rule.get("alert") for thing in things if thing["kind"] == "PrometheusRule"
        for group in thing["spec"]["groups"] for rule in group["rules"]
    ]
    for alert in alerts:
        if alert["alert"] not in shipped:
            yield f"{alert['alert']} is not in the chart's PrometheusRule"


def main(golden, promtool=None):
    things = [thing for thing in yaml.safe_load_all(pathlib.Path(golden).read_text()) if thing]
    alerts = [rule for rule in rules() if "alert" in rule]
    wrong = [
        *of_alerts(alerts), *of_tests(alerts), *of_labels(promql.TARGET_LABELS), *of_values(),
        *of_dashboards(things), *of_chart(things, alerts),
    ]
    print("\n".join(wrong), end="\n" if wrong else "")
    if promtool:
        files = [str(path) for path in promql.RULES.glob("*.yaml") if path != TESTS]
        for command in (["check", "rules", "--lint=all", "--lint-fatal", *files], ["test", "rules", str(TESTS)]):
            done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False)
            if done.returncode:
                print(done.stdout + done.stderr)
                wrong.append(f"promtool {command[0]}")
    print(f"{len(alerts)} alerts, {len(wrong)} things wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
