#!/usr/bin/env python3
"""Writes the Grafana dashboards of this folder from the panels listed here.

    deploy/grafana/dashboards.py            write kiam-operations.json and kiam-performance.json
    deploy/grafana/dashboards.py --check    fail if they are not what would be written

What matters of a panel is its question, its query, its unit and what good looks like; that is what
stands here, and the forty lines of JSON around each are the same for all. In a query `@` stands for
the matchers of the dashboard's variables. Fleet-wide panels add up; panels about single agents show
the worst ten, because a cluster may have thousands. Needs Python 3 and nothing else.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
MATCHERS = 'cluster=~"$cluster",namespace=~"$namespace",job=~"$job",instance=~"$instance"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# The version that Grafana 12 writes. Newer ones migrate it when they load it, older ones load it too.
SCHEMA_VERSION = 41

AGENT = " and on (cluster, namespace, job, instance) kiam_agent_build_info{@}"
SERVER = " and on (cluster, namespace, job, instance) kiam_server_build_info{@}"
EITHER = " and on (cluster, namespace, job, instance) (kiam_agent_build_info{@} or kiam_server_build_info{@})"
ASKED = 'handler=~"roleName|credentials|container"'
IN_VAIN = 'code=~"502|503|504"'
MALFORMED = 'outcome="malformed"'
NODE = "{{node}} {{instance}}"

GOOD, WORSE, BAD, PLAIN = "green", "orange", "red", "blue"


def rate(metric, matchers=""):
    return f"rate({metric}{{@{',' + matchers if matchers else ''}}}[$__rate_interval])"


def quantile(q, metric, by="", matchers=""):
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) ({rate(metric + '_bucket', matchers)}))"


def quantiles(metric, by="", matchers=""):
    legend = "{{" + by + "}} " if by else ""
    return [(quantile(q, metric, by, matchers), f"{legend}{name}") for q, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))]


def mean(metric):
    return f"sum({rate(metric + '_sum')}) / sum({rate(metric + '_count')})"


# === kinds of panels ===


def panel(kind, title, what, queries, unit, width, height, options, defaults, overrides=()):
    targets = []
    for number, query in enumerate(queries):
        expr, legend = query if isinstance(query, tuple) else (query, "")
        targets.append({
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": expr.replace("@", MATCHERS),
            "legendFormat": legend or "__auto",
            "refId": "ABCDEFGHIJ"[number],
            **({"instant": True, "range": False} if kind in ("stat", "table") else {"range": True}),
            **({"format": "table"} if kind == "table" else {}),
        })
    return {
        "type": kind,
        "title": title,
        "description": what,
        "datasource": DATASOURCE,
        "gridPos": {"w": width, "h": height},
        "fieldConfig": {"defaults": {"unit": unit, **defaults}, "overrides": list(overrides)},
        "options": options,
        "targets": targets,
    }


def steps(*colours):
    """`(GOOD, (1, BAD))`: green, and red from 1 on."""
    first, *rest = colours
    return {
        "mode": "absolute",
        "steps": [{"color": first, "value": None}] + [{"color": colour, "value": value} for value, colour in rest],
    }


def stat(title, what, query, unit="short", colours=(PLAIN,), none="none", decimals=None):
    defaults = {"thresholds": steps(*colours), "color": {"mode": "thresholds"}, "noValue": none}
    if decimals is not None:
        defaults["decimals"] = decimals
    options = {
        "colorMode": "background", "graphMode": "none", "justifyMode": "auto", "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "textMode": "value",
    }
    return panel("stat", title, what, [query], unit, 3, 4, options, defaults)


def lines(title, what, queries, unit="short", stacked=False, width=8, limit=None, least=0):
    custom = {
        "drawStyle": "line", "lineWidth": 1, "fillOpacity": 25 if stacked else 5, "showPoints": "never",
        "spanNulls": False, "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
        "thresholdsStyle": {"mode": "off" if limit is None else "dashed"},
    }
    defaults = {"custom": custom, "color": {"mode": "palette-classic"}, "thresholds": steps("transparent", *([(limit, BAD)] if limit is not None else []))}
    if least is not None:
        defaults["min"] = least
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"], "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel("timeseries", title, what, queries, unit, width, 8, options, defaults)


def table(title, what, query, columns, width=8):
    """Columns: label to heading, in order."""
    hidden = ["Time", "__name__", "cluster", "namespace", "job", "instance", "node", "Value", "pod", "container", "endpoint", "service"]
    made = panel("table", title, what, [query], "short", width, 8, {"showHeader": True, "cellHeight": "sm"}, {"noValue": "none", "thresholds": steps(PLAIN)})
    made["transformations"] = [{
        "id": "organize",
        "options": {
            "excludeByName": {name: True for name in hidden if name not in columns},
            "indexByName": {name: place for place, name in enumerate(columns)},
            "renameByName": columns,
        },
    }]
    return made


# === operations ===

OPERATIONS = {
    "Is every pod served?": [
        stat("Requests in vain", "Share of requests for a role or credentials that ended in 503 (nothing known in time) or 502/504. Good: 0. Alert KiamRequestsUnanswered from 1 % on.",
             f"sum({rate('kiam_metadata_responses_total', ASKED + ',' + IN_VAIN)}) / sum({rate('kiam_metadata_responses_total', ASKED)})",
             "percentunit", (GOOD, (0.001, WORSE), (0.01, BAD)), "no requests", 2),
        stat("Refused", "Requests a second of pods whose role is refused (403). Good: 0. Each is somebody's annotation, namespace rule or trust policy; the reasons are below.",
             f"sum({rate('kiam_agent_refused_total')})", "reqps", (GOOD, (0.001, WORSE)), decimals=2),
        stat("Waiting now", "Requests that agents hold because their pod or its credentials are not known yet. Good: a few, for moments, while pods start.",
             "sum(kiam_agent_parked_requests{@})", "short", (GOOD, (50, WORSE), (500, BAD))),
        stat("Shortest life left", "Of all credentials served, what the first to end has left. Good: 30 minutes or more with sessions of an hour. Below 25 minutes SDKs begin to misbehave.",
             "min(kiam_agent_min_remaining_lifetime_seconds{@})", "s", (BAD, (300, WORSE), (1500, GOOD)), "no credentials"),
        stat("Agents not ready", "Agents that cannot answer for all pods of their node, or through which pods' requests may not come. Good: 0, except while nodes start.",
             "count(kiam_agent_ready{@} == 0) or vector(0)", "short", (GOOD, (1, WORSE), (10, BAD))),
        stat("Servers ready", "Servers that take agents. Good: as many as you run. At 0 nothing new reaches any node.",
             "sum(kiam_server_ready{@})", "short", (BAD, (1, WORSE), (2, GOOD)), "no server"),
        stat("Certificates end in", "The first of all certificates that servers and agents use. Good: more than 30 days; cert-manager renews then. Alert KiamCertificateExpiring from 14 days on.",
             'min(({__name__=~"grpc_(server|client)_tls_certificate_expiry_seconds",@} > 0) - time())', "s", (BAD, (172800, WORSE), (1209600, GOOD))),
        stat("Address conflicts", "Addresses that more than one running pod of a node shows. Nobody is answered there. Good: 0.",
             "max(kiam_address_conflicts{@})", "short", (GOOD, (1, BAD))),
    ],
    "Pods": [
        lines("Pods by what they are told", "granted: credentials are on the node. pending: they are on the way; good: short spikes only. refused: KiamPodsRefused tells why. no_role: they ask for none.",
              [("max by (state) (kiam_pods{@})", "{{state}}")], stacked=True),
        lines("Answers by status", "Of all handlers. 200 is an answer; 404 a pod without a role or a closed path; 403 a refused role; 401 a bad or missing token; 503 a wait in vain. Good: no 503.",
              [(f"sum by (code) ({rate('kiam_metadata_responses_total')})", "{{code}}")], "reqps", stacked=True),
        lines("Refused, by reason", "Requests answered 403. namespace_has_no_rule, namespace_forbids, namespace_rule_invalid: the Namespace's annotation. annotation_invalid: the pod's. sts_refused: IAM. static_pod: the node's. Good: nothing.",
              [(f"sum by (reason) ({rate('kiam_agent_refused_total')})", "{{reason}}")], "reqps"),
        lines("Waiting", "Requests held until something is known about their pod: how many begin to wait, wait in vain (503), or are given up by their client. Good: the last two near zero.",
              [(f"sum({rate('kiam_agent_parked_total')})", "begin to wait"), (f"sum({rate('kiam_agent_parked_timed_out_total')})", "in vain"),
               (f"sum({rate('kiam_agent_parked_abandoned_total')})", "given up by the client")], "reqps"),
        lines("Life left, shortest ten agents", "What the first credentials to end have left on each node. Good: a saw between 30 and 60 minutes with sessions of an hour. A line that falls below 25 minutes is a refresh that does not come.",
              [("bottomk(10, kiam_agent_min_remaining_lifetime_seconds{@})", NODE)], "s"),
        lines("Pods about to lose their credentials", "Pods whose credentials have less than --min-remaining (25 minutes) left. Good: 0. Alerts KiamCredentialsLow and, from 10 % on, KiamCredentialsExpiring.",
              [("sum(kiam_agent_pods_below_min_remaining{@})", "pods"), ("sum(kiam_agent_pods{@,state=\"granted\"}) * 0.1", "a tenth of all")]),
        lines("Turned away, by limit", "peer_*: one pod asks too much and is slowed down alone. connections and parked: the limit that all pods of a node share; alert KiamAgentAtLimit. *_timeout: slow clients. Good: nothing.",
              [(f"sum by (limit) ({rate('kiam_agent_limited_total')})", "{{limit}}")], "reqps"),
        lines("Decisions", "What servers decided about pods that appeared or changed; with several servers each decides. Good: granted and no_role only.",
              [(f"sum by (decision) ({rate('kiam_decisions_total')})", "{{decision}}")], "ops"),
        lines("Kubernetes events about pods", "What became of KiamRoleForbidden and KiamCredentialError. limited and dropped: too many at once. failed: RBAC, or the API server. Good: no failed.",
              [(f"sum by (outcome) ({rate('kiam_k8s_events_total')})", "{{outcome}}")], "ops"),
    ],
    "Agents": [
        lines("Agents by version", "Good: one version, two during an upgrade.", [("count by (version) (kiam_agent_build_info{@})", "{{version}}")], stacked=True),
        lines("Agents by driver", "Workers by what moves their bytes. Good: io_uring where kernel and seccomp profile allow it. epoll serves as well, with more CPU a request.",
              [("sum by (driver) (kiam_agent_driver{@})", "{{driver}}")], stacked=True),
        lines("Agents without a server", "Agents that follow no server. Their pods are served until their credentials end. Good: 0; a moment during upgrades of the servers.",
              [("count(kiam_agent_server_connected{@} == 0) or vector(0)", "without a server"), ("count(kiam_agent_server_connected{@} == 1) or vector(0)", "with one")]),
        lines("Not ready, by reason", "starting, no_snapshot: nothing to answer with yet. not_intercepting: pods' requests may not come here; act at once. succeeded: another agent takes over. draining: stopping. Good: 0.",
              [("sum by (reason) (kiam_agent_not_ready{@})", "{{reason}}")]),
        lines("Interception", "Agents through whose rules a connection was seen to come, and those where none was yet. Rules are put back by agents that may (agent.host.reconcile in the chart). Good: all verified, nothing put back.",
              [("sum(kiam_agent_interception_verified{@})", "verified"), ("count(kiam_agent_interception_verified{@} == 0) or vector(0)", "not verified"),
               ("sum(increase(kiam_agent_interception_restored_total{@}[$__rate_interval]))", "put back"), ("sum(increase(kiam_agent_interception_failed_total{@}[$__rate_interval]))", "could not be")]),
        lines("Since the last update, longest ten", "How long ago a server last said something. A quiet node may hear nothing for half a session (30 minutes). Good: below that where pods have roles.",
              [("topk(10, kiam_agent_last_update_age_seconds{@})", NODE)], "s"),
        table("Agents that need a look", "Not ready, or without a server. Good: empty.",
              "(kiam_agent_ready{@} == 0) or (kiam_agent_server_connected{@} == 0)", {"cluster": "Cluster", "node": "Node", "instance": "Address"}),
        lines("Streams that ended, by reason", "As agents see it. closed: a server let them go, as at an upgrade or to spread the load. failed: the network or a killed server. out_of_step: they asked for everything anew.",
              [(f"sum by (reason) ({rate('kiam_agent_server_streams_ended_total')})", "{{reason}}")], "ops"),
        lines("Restarts in an hour, worst ten", "Times a program started anew. Good: 0, and 1 at an upgrade.",
              [("topk(10, changes(process_start_time_seconds{@}[1h])" + EITHER + ")", "{{job}} " + NODE)]),
    ],
    "Servers": [
        lines("Agents by server", "Agents that follow each server. Good: spread evenly after a while, and together as many as there are nodes.",
              [("kiam_push_streams{@}", "{{instance}}")], stacked=True),
        lines("Updates sent and not yet applied", "Over all agents of a server. Good: near zero. A line that stays up is an agent that stopped applying.",
              [("kiam_push_revisions_behind{@}", "{{instance}}")]),
        lines("Streams that ended, by reason", "As servers see it. agent, age, drain, replaced are everyday. identity: a token or certificate ran out. protocol, stuck: an agent in trouble; alert KiamInternalError.",
              [(f"sum by (reason) ({rate('kiam_push_streams_ended_total')})", "{{reason}}")], "ops"),
        lines("Watch lag", "From the arrival of a watch event until it was taken in, 99 of 100. Good: milliseconds. Above a second the server is overloaded.",
              [(quantile(0.99, "kiam_k8s_watch_lag_seconds", "instance"), "{{instance}} p99")], "s"),
        lines("Watch failures and complete lists", "Failures are waited out. Good: none; a list for each kind at a start, and when the API server forgets (410).",
              [(f"sum by (kind, at) ({rate('kiam_k8s_watch_errors_total')})", "{{kind}}: {{at}} failed"), (f"sum by (kind) ({rate('kiam_k8s_lists_total')})", "{{kind}} listed")], "ops"),
        lines("Who asked to follow", "accepted: an agent of the node it named. unavailable: the API server could not be asked (TokenReview). All others were turned away; alert KiamAgentsRejected. Good: accepted only.",
              [(f"sum by (outcome) ({rate('kiam_agent_auth_total')})", "{{outcome}}")], "ops"),
        lines("Pods known", "Pods that each server's watch has delivered. Good: the same everywhere.", [("kiam_k8s_pods{@}", "{{instance}}")]),
        lines("Calls, by status", "Calls of agents that ended, of kiam's old agents too (--legacy-agents). Good: OK; Unavailable while a server stops.",
              [(f"sum by (grpc_method, grpc_code) ({rate('grpc_server_handled_total')})", "{{grpc_method}} {{grpc_code}}")], "ops"),
        lines("Start-up taints", "Nodes freed of the start-up taint (server.startupTaint), and attempts that failed. Good: no failures.",
              [(f"sum({rate('kiam_k8s_startup_taints_removed_total')})", "removed"), (f"sum({rate('kiam_k8s_startup_taint_errors_total')})", "failed")], "ops"),
    ],
    "STS budget": [
        lines("Calls by outcome", "Every AssumeRole call. throttled: the servers slow down by themselves. denied, invalid: one role's trouble. own_credentials, unreachable: everyone's. Good: issued only.",
              [(f"sum({rate('kiam_sts_assumerole_calls_total')}) - sum({rate('kiam_sts_issuing_errors_total')})", "issued"), (f"sum by (reason) ({rate('kiam_sts_issuing_errors_total')})", "{{reason}}")], "ops", stacked=True),
        lines("Calls a second, and the bound", "The bound falls when STS throttles and recovers by itself. Good: the bound far above the calls.",
              [(f"sum by (instance) ({rate('kiam_sts_assumerole_calls_total')})", "{{instance}} calls"), ("kiam_sts_assumerole_rate{@}", "{{instance}} bound")], "ops"),
        lines("Under way and waiting for a turn", "At most --fetchers calls are under way at a time; what waits is due. Good: nothing waits for long.",
              [("sum by (instance) (kiam_sts_assumerole_current{@})", "{{instance}} under way"), ("sum by (instance) (kiam_sts_assumerole_queue{@})", "{{instance}} waiting")]),
        lines("How long calls take", "Good: tens of milliseconds in the same Region. A new role's first pod waits this long.", quantiles("kiam_sts_assumerole_timing_seconds"), "s"),
        lines("Credentials held", "Role sessions, each for all pods that share it. Good: as many as there are distinct roles in use (more with session tags or names).",
              [("kiam_sts_cacheSize{@}", "{{instance}}")]),
        lines("Granted from what was there", "Share of granted pods whose credentials another pod had already. Good: near 100 % in a cluster that reuses roles; it saves the call.",
              [(f"sum({rate('kiam_sts_cache_hit_total')}) / (sum({rate('kiam_sts_cache_hit_total')}) + sum({rate('kiam_sts_cache_miss_total')}))", "hits")], "percentunit"),
        lines("First credentials end in", "As servers see it. Good: 30 minutes or more with sessions of an hour.",
              [("(kiam_sts_soonest_expiry_timestamp_seconds{@} > 0) - time()", "{{instance}}")], "s", least=None),
        lines("Life left at a refresh", "What credentials had left when they were replaced. Good: half a session; near zero the refreshes come too late.", quantiles("kiam_sts_refresh_slack_seconds"), "s"),
    ],
    "Certificates and limits": [
        lines("Certificates end in, first ten", "Agents have one with agentAuth certificate and shared-certificate only. Good: more than 30 days.",
              [('bottomk(10, ({__name__=~"grpc_(server|client)_tls_certificate_expiry_seconds",@} > 0) - time())', "{{job}} " + NODE)], "s", least=None),
        lines("Certificate trouble", "update: the files could not be used when they were last read, older ones are. verify: what is used does not verify. Good: 0.",
              [('sum by (__name__) ({__name__=~"grpc_(server|client)_tls_certificate_(update|verify)_error",@})', "{{__name__}}")]),
        lines("File descriptors used, worst ten", "Share of what the process may open. Good: below half. Alert KiamFileDescriptorsLow from 80 % on.",
              [("topk(10, process_open_fds{@} / process_max_fds{@}" + EITHER + ")", "{{job}} " + NODE)], "percentunit", limit=0.8),
        lines("What should never be", "Panics, failed accepts, parts of updates that break the protocol, malformed updates. Good: 0, always; anything else is a bug or a limit of the machine.",
              [(f"sum({rate('kiam_agent_panics_total')})", "panics"), (f"sum({rate('kiam_agent_accept_errors_total')})", "failed accepts"),
               (f"sum({rate('kiam_agent_update_parts_left_out_total')})", "parts left out"), (f"sum({rate('kiam_agent_updates_total', MALFORMED)})", "malformed updates")], "ops", width=16),
    ],
}

# === performance ===

PERFORMANCE = {
    "Answers": [
        lines("Latency of credentials", "From a request's first byte to its answer, waiting included. Good: p50 below 25 µs, p99 below a millisecond; what is above waited for its pod, or for a CPU (--scheduling).",
              quantiles("kiam_metadata_handler_latency_seconds", matchers='handler="credentials"'), "s"),
        lines("Latency p99 by handler", "proxy waits for the real metadata service. roleName and credentials wait for new pods. Good: the others below a millisecond.",
              [(quantile(0.99, "kiam_metadata_handler_latency_seconds", "handler"), "{{handler}}")], "s"),
        lines("Answers by handler", "roleName, credentials, token: what SDKs ask. container: the second door. proxy: other metadata paths. refused: requests that no handler took.",
              [(f"sum by (handler) ({rate('kiam_metadata_responses_total')})", "{{handler}}")], "reqps", stacked=True),
        lines("Answers by status", "Good: 200, and 404 for pods without a role.", [(f"sum by (code) ({rate('kiam_metadata_responses_total')})", "{{code}}")], "reqps", stacked=True),
        lines("Mean latency, slowest ten agents", "Good: alike on all nodes. One that stands out is short of CPU, or its pods start often.",
              [(f"topk(10, sum by (node, instance) ({rate('kiam_metadata_handler_latency_seconds_sum')}) / (sum by (node, instance) ({rate('kiam_metadata_handler_latency_seconds_count')}) > 0))", NODE)], "s"),
        lines("Served with 200", "Share of role lists and credentials. Good: near 100 % where pods without a role do not ask.",
              [(f"sum by (handler) ({rate('kiam_metadata_success_total', ASKED)}) / (sum by (handler) ({rate('kiam_metadata_responses_total', ASKED)}) > 0)", "{{handler}}")], "percentunit"),
    ],
    "Waiting": [
        lines("How long requests wait for their pod", "Of those that had to. Good: p99 below 25 ms while roles are on the node, the time of an STS call for new roles; at --park-timeout they are answered 503.",
              quantiles("kiam_agent_parked_for_seconds"), "s"),
        lines("Share of requests that wait", "Good: a few per cent, with the rate at which pods start.",
              [(f"sum({rate('kiam_agent_parked_total')}) / sum({rate('kiam_metadata_responses_total', ASKED)})", "waited")], "percentunit"),
        lines("Addresses agents waited for", "How often agents told a server that a request waits for an address, so that it is looked at first. Good: near zero when nothing starts.",
              [(f"sum({rate('kiam_push_waiting_peers_total')})", "addresses")], "ops"),
    ],
    "From a change to a pod that is served": [
        lines("Each stage, p99", "The stages in order: the watch event is taken in; the update that carries the change is sent; the agent has parsed and published it; and the whole way as the server sees it. Good: the whole below 25 ms in a small cluster, 250 ms in a very large one.",
              [(quantile(0.99, "kiam_k8s_watch_lag_seconds"), "1 taken in"), (quantile(0.99, "kiam_push_latency_seconds"), "2 sent"),
               (quantile(0.99, "kiam_agent_update_apply_seconds"), "3 applied by the agent"), (quantile(0.99, "kiam_push_applied_latency_seconds"), "change to applied")], "s", width=12),
        lines("Each stage, mean", "As beside, the mean.",
              [(mean("kiam_k8s_watch_lag_seconds"), "1 taken in"), (mean("kiam_push_latency_seconds"), "2 sent"),
               (mean("kiam_agent_update_apply_seconds"), "3 applied by the agent"), (mean("kiam_push_applied_latency_seconds"), "change to applied")], "s", width=12),
        lines("Applying an update", "From its arrival at the agent until pods are answered from it. Good: microseconds to a millisecond. It grows with the pods of the node.", quantiles("kiam_agent_update_apply_seconds"), "s"),
        lines("Change to update", "From a watch event or an answer of STS until the update is sent.", quantiles("kiam_push_latency_seconds"), "s"),
        lines("Change to applied", "Until the agent said that it is being served. Alert KiamPushSlow when p99 stays above a second.", quantiles("kiam_push_applied_latency_seconds"), "s", limit=1),
        lines("Updates sent", "full: everything, at the start of a stream. delta: what changed. Good: few full ones.",
              [(f"sum({rate('kiam_push_full_total')})", "full"), (f"sum({rate('kiam_push_delta_total')})", "delta")], "ops"),
        lines("Updates received, by what was done", "gap: the agent asked for everything anew. malformed: never. Good: delta.",
              [(f"sum by (outcome) ({rate('kiam_agent_updates_total')})", "{{outcome}}")], "ops"),
        lines("Watch events", "What the API server told the servers, each server on its own.", [(f"sum by (kind) ({rate('kiam_k8s_watch_events_total')})", "{{kind}}")], "ops"),
    ],
    "Agents: what it costs": [
        lines("CPU, busiest ten agents", "Cores. Good: a few thousandths.", [("topk(10, " + rate("process_cpu_seconds_total") + AGENT + ")", NODE)]),
        lines("CPU per answer", "Processor time of all agents through all answers they gave. Idle agents' housekeeping is in it, so it is high when little is asked. Good: below 100 µs under load.",
              [("sum(" + rate("process_cpu_seconds_total") + AGENT + f") / (sum({rate('kiam_metadata_responses_total')}) > 0)", "CPU per answer")], "s"),
        lines("Memory, largest ten agents", "Resident. Good: below 24 MiB at 250 pods; grows with pods and idle connections.", [("topk(10, process_resident_memory_bytes{@}" + AGENT + ")", NODE)], "bytes"),
        lines("Open connections, most ten", "Good: a few for each pod.", [("topk(10, kiam_agent_connections_open{@})", NODE)]),
        lines("New connections", "SDKs that keep no connection open make one for each look.", [(f"sum({rate('kiam_agent_connections_total')})", "accepted")], "cps"),
        lines("Held by agents", "Addresses that can be answered and credentials behind them, largest agents.",
              [("max(kiam_agent_snapshot_addresses{@})", "addresses"), ("max(kiam_agent_snapshot_credentials{@})", "credentials")]),
        lines("Age of the snapshot, oldest ten", "Since what is served was published. A quiet node's may be old; that is no fault.", [("topk(10, kiam_agent_snapshot_age_seconds{@})", NODE)], "s"),
        lines("Revision, by agent, lowest ten", "Starts again with every server. A line that stands still while the others climb: that agent applies nothing.", [("bottomk(10, kiam_agent_snapshot_revision{@})", NODE)]),
        lines("Threads and files, most ten", "Threads do not grow with pods; files grow with connections.",
              [("topk(10, process_threads{@}" + AGENT + ")", "threads " + NODE), ("topk(10, process_open_fds{@}" + AGENT + ")", "files " + NODE)]),
    ],
    "Servers: what it costs": [
        lines("CPU", "Cores. Grows with pods that start and with refreshes.", [(rate("process_cpu_seconds_total") + SERVER, "{{instance}}")]),
        lines("Memory", "Resident. Good: about 2 KiB a pod known, and a base.", [("process_resident_memory_bytes{@}" + SERVER, "{{instance}}")], "bytes"),
        lines("Memory per pod known", "Good: falls towards 2 KiB as the cluster grows.",
              [("process_resident_memory_bytes{@} / on (cluster, namespace, job, instance) (kiam_k8s_pods{@} > 0)", "{{instance}}")], "bytes"),
    ],
}


# === the JSON around them ===


def variable(name, label, query, **more):
    return {
        "name": name, "label": label, "type": "query", "datasource": DATASOURCE, "definition": query,
        "query": {"qryType": 1, "query": query, "refId": f"variable-{name}"}, "refresh": 2, "sort": 1,
        "multi": True, "includeAll": True, "hide": 0, "current": {"selected": True, "text": ["All"], "value": ["$__all"]}, **more,
    }


def variables():
    builds = '{__name__=~"kiam_(agent|server)_build_info"'
    here = 'cluster=~"$cluster",namespace=~"$namespace"'
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1, "hide": 0, "multi": False, "includeAll": False, "current": {}},
        # `.*` also finds what has no such label, as in a Prometheus of one cluster.
        variable("cluster", "Cluster", f"label_values({builds}}}, cluster)", allValue=".*"),
        variable("namespace", "Namespace", f'label_values({builds},cluster=~"$cluster"}}, namespace)', allValue=".*"),
        variable("job", "Job", f"label_values({builds},{here}}}, job)", allValue=".*"),
        variable("instance", "Instance", f'label_values({builds},{here},job=~"$job"}}, instance)', allValue=".*"),
    ]


def dashboard(uid, title, what, rows):
    panels, y = [], 0
    for row, members in rows.items():
        panels.append({"id": len(panels) + 1, "type": "row", "title": row, "collapsed": False, "panels": [], "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y += 1
        x = height = 0
        for member in members:
            size = member["gridPos"]
            if x + size["w"] > 24:
                x, y = 0, y + height
            panels.append({"id": len(panels) + 1, **member, "gridPos": {"x": x, "y": y, **size}})
            x, height = x + size["w"], size["h"]
        y += height
    return {
        "uid": uid,
        "title": title,
        "description": what,
        "tags": ["kiam"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "links": [{"type": "dashboards", "title": "kiam", "tags": ["kiam"], "asDropdown": False, "includeVars": True, "keepTime": True}],
        "annotations": {"list": []},
        "templating": {"list": variables()},
        "panels": panels,
    }


DASHBOARDS = [
    dashboard("kiam-operations", "kiam / Operations", "Is any pod refused, waiting or about to lose its credentials; and if so, is it the agents, the servers, STS or a certificate?", OPERATIONS),
    dashboard("kiam-performance", "kiam / Performance", "How fast pods are answered, how fast changes reach them, and what it costs.", PERFORMANCE),
]


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    stale = 0
    for made in DASHBOARDS:
        path = HERE / f"{made['uid']}.json"
        text = json.dumps(made, indent=2, ensure_ascii=False) + "\n"
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            print(f"{path} is not what dashboards.py writes: run it, and look at the difference")
            stale += 1
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
