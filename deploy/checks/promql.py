"""What the dashboards and the rules ask Prometheus, taken apart far enough to be held against what is there."""

import json
import pathlib
import re

GRAFANA = pathlib.Path("deploy/grafana")
RULES = pathlib.Path("deploy/prometheus")

# Labels of every target, whichever monitor of the chart scrapes it: the operator puts on all but
# `node`, which the chart's relabelling does.
TARGET_LABELS = {"namespace", "pod", "container", "endpoint", "job", "instance", "node"}

METRIC = r"\b(?:(?:kiam|grpc|process)_\w+|\w+:[\w:]+)"
GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")


def plain(expr):
    """Without grouping clauses and comments, in which names are labels'."""
    return GROUPING.sub(" ", re.sub(r"#.*", "", expr))


def metrics(expr):
    """The metrics that an expression names."""
    without_matchers = re.sub(r"\{[^}]*\}", "", STRING.sub('""', plain(expr)))
    return set(re.findall(METRIC, without_matchers))


def name_patterns(expr):
    """The patterns by which it names metrics."""
    return set(re.findall(r'__name__=~"([^"]*)"', expr))


def labels(expr):
    """The labels that an expression uses."""
    found = {label for group in GROUPING.findall(expr) for label in re.findall(r"\w+", group)}
    for braces in re.findall(r"\{([^}]*)\}", expr):
        found |= set(MATCHER.findall(braces))
    return found


def matchers(text):
    """(metric, label, values) for each matcher on a metric that names whole values."""
    for name, braces in re.findall(f"({METRIC})" + r"\{([^}]*)\}", text):
        for label, kind, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', braces):
            values = value.split("|") if "~" in kind else [value]
            if all(re.fullmatch(r"\w+", value) for value in values):
                yield name, label, values


def selectors(expr):
    """Each selector, without its range."""
    return sorted(set(re.findall(METRIC + r"(?:\{[^}]*\})?|\{[^}]*\}", plain(expr))))


def dashboards():
    """(file, dashboard)"""
    for path in sorted(GRAFANA.glob("*.json")):
        yield path, json.loads(path.read_text())


def panels(dashboard):
    """Every panel with queries."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def filled(expr, interval):
    """With Grafana's variables given the values of `All`."""
    expr = re.sub(r"\$__(?:rate_)?interval", interval, expr)
    return re.sub(r"\$(?:cluster|namespace|job|instance)\b", ".*", expr)
