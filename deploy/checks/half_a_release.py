"""The rules of a release without agents, or without servers, do not miss what it does not run.

    half_a_release.py HELM CHART [PROMTOOL]

Without promtool the rendered rules are read, and not asked what they do.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import yaml

SOURCES = (pathlib.Path("deploy/prometheus/records.yaml"), pathlib.Path("deploy/prometheus/alerts.yaml"))
PROGRAMS = {"agent": "kiam-agent", "server": "kiam-server"}


def rendered(helm, chart, without):
    """The rule groups of a release that runs none of `without`."""
    switches = [f"--set={part}.enabled=false" for part in without]
    run = subprocess.run(
        [helm, "template", "kiam", chart, "--kube-version=1.33.0", "--set=prometheusRule.enabled=true",
         "--set=prometheusRule.runbookUrl=docs/alerts.md", *switches],
        capture_output=True, text=True, check=True,
    )
    return next(t for t in yaml.safe_load_all(run.stdout) if t and t["kind"] == "PrometheusRule")["spec"]["groups"]


def rules(groups):
    return [rule for group in groups for rule in group["rules"]]


def not_scraped(groups):
    return [rule for rule in rules(groups) if rule.get("alert") == "KiamNotScraped"]


def others(of):
    """All rules but that one, in a form that can be compared."""
    return sorted(json.dumps(rule, sort_keys=True) for rule in of if rule.get("alert") != "KiamNotScraped")


def missed(promtool, groups, program):
    """promtool's complaint when a cluster without any metrics is not told of `program`, and of it alone."""
    wanted = {key: text for key, text in not_scraped(groups)[0]["annotations"].items()}
    for key, text in wanted.items():
        wanted[key] = text.replace("{{ $labels.program }}", program)
    labels = {"severity": "critical", "program": program}
    part = program.removeprefix("kiam-")
    up = {"series": f'kiam_{part}_build_info{{namespace="kiam"}}', "values": "1x60"}
    case = {"eval_time": "30m", "alertname": "KiamNotScraped"}
    told = {**case, "exp_alerts": [{"exp_labels": labels, "exp_annotations": wanted}]}
    tests = [
        {"interval": "1m", "input_series": [], "alert_rule_test": [told]},
        {"interval": "1m", "input_series": [up], "alert_rule_test": [{**case, "exp_alerts": []}]},
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
        (folder / "tests.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}))
        done = subprocess.run([promtool, "test", "rules", folder / "tests.yaml"], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def wrong(helm, chart, promtool):
    whole = [rule for path in SOURCES for rule in rules(yaml.safe_load(path.read_text())["groups"])]
    for without in ([], ["agent"], ["server"], ["agent", "server"]):
        groups = rendered(helm, chart, without)
        if others(rules(groups)) != others(whole):
            yield f"without {without}: other rules are not those of deploy/prometheus"
        left = [program for part, program in PROGRAMS.items() if part not in without]
        exprs = [rule["expr"] for rule in not_scraped(groups)]
        if [program for program in PROGRAMS.values() if any(f'"{program}"' in expr for expr in exprs)] != left:
            yield f"without {without}: KiamNotScraped is {exprs}"
        elif promtool and len(left) == 1:
            if complaint := missed(promtool, groups, left[0]):
                yield f"without {without}: {complaint}"


def main(helm, chart, promtool=None):
    complaints = list(wrong(helm, chart, promtool))
    print("\n".join(complaints), end="\n" if complaints else "")
    print(f"{len(complaints)} things wrong")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
