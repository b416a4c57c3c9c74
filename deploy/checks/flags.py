"""Every flag that the chart renders and the docs mention is one that a program has, and the programs
take the chart's arguments as they are: the server prints the configuration it understood, the init
container's command gets as far as looking at the rules.
"""

import os
import pathlib
import re
import subprocess
import sys

import yaml

FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]+)")
# Flags of other programs that the docs show.
FOREIGN = {
    "namespace", "values", "set", "create-namespace", "overwrite", "query", "output", "from-file", "role-arn",
    "audience", "update", "profile", "region", "policy-document", "role-name", "assume-role-policy-document",
    "bin", "release", "workspace", "locked", "for", "timeout", "selector", "platform", "all-namespaces",
    "from-literal", "interface", "no-cli-pager", "role-session-name", "instance-id", "instance-ids",
    "http-tokens", "http-put-response-hop-limit", "http-endpoint", "container", "previous", "noheader",
    "field-selector", "policy-name", "register-with-taints", "type", "resolve", "name", "package", "version", "dry-run", "file", "image", "rm", "tail", "since", "watch",
    "as", "force", "test", "nocapture", "path",
}


COMMANDS = {
    "kiam-agent": ["", "intercept install"],
    "kiam-server": ["", "why"],
    "kiam-loadtest": ["", "up", "run", "sim", "probe", "null", "scale", "soak", "report"],
}


def helps(program):
    """The flags in the help texts of a program and its commands; a command it lacks is left out."""
    words = ""
    for command in COMMANDS[pathlib.Path(program).name]:
        run = subprocess.run(
            [program, *command.split(), "--help"], capture_output=True, text=True, check=not command
        )
        words += run.stdout if run.returncode == 0 else ""
    return set(FLAG.findall(words))


def understood(directory, program, arguments):
    """What the program says against these arguments; nothing if it takes them."""
    if program == "kiam-server":
        arguments = [*arguments, "--print-config"]
    elif program == "kiam-loadtest":
        arguments = [*arguments, "--help"]
    elif arguments[:1] == ["intercept"]:
        # Whatever it is to do, here it only looks.
        arguments = ["intercept", "status", *arguments[2:]]
    else:
        # An agent that takes its arguments starts; deploy/walkthrough does that.
        return ""
    environment = {**os.environ, "NODE_NAME": "node-a", "HOST_IP": "192.0.2.10"}
    run = subprocess.run(
        [f"{directory}/{program}", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=30
    )
    # 2 is wrong usage; the rules themselves are not here, and that is 1.
    wrong = run.returncode == 2 or (program == "kiam-server" and run.returncode != 0)
    return run.stderr.strip() if wrong else ""


def rendered():
    """(file, program, arguments) of every container of ours in the golden renders and the examples."""
    paths = [*pathlib.Path("deploy/helm/tests/golden").glob("*.yaml"), *pathlib.Path("deploy/examples").glob("*.yaml")]
    for path in sorted(paths):
        for thing in yaml.safe_load_all(path.read_text()):
            if not thing or thing["kind"] not in ("DaemonSet", "Deployment", "Job", "Pod"):
                continue
            spec = thing["spec"] if thing["kind"] == "Pod" else thing["spec"]["template"]["spec"]
            for container in spec.get("initContainers", []) + spec["containers"]:
                program = container.get("command", [""])[0].rsplit("/", 1)[-1]
                if program in COMMANDS:
                    yield path, program, container["args"]


def main(directory):
    programs = {name: helps(f"{directory}/{name}") for name in COMMANDS if pathlib.Path(directory, name).exists()}
    wrong = set()
    for path, program, arguments in rendered():
        if program not in programs:
            continue
        for flag in filter(None, map(FLAG.match, arguments)):
            if flag.group(1) not in programs[program]:
                wrong.add(f"{path}: {program} has no --{flag.group(1)}")
        complaint = understood(directory, program, arguments)
        if complaint:
            wrong.add(f"{path}: {program}: {complaint}")
    known = set().union(*programs.values()) | FOREIGN
    if "kiam-loadtest" not in programs:
        known.add("json")
    pages = sorted(pathlib.Path("docs").glob("*.md"))
    for page in pages:
        text = page.read_text()
        # Pages that list what kiam had name flags that are gone, and one starts etcd and an API server.
        if page.name.startswith(("migrating", "perf", "real-apiserver")):
            continue
        for flag in FLAG.findall(text):
            if flag not in known:
                wrong.add(f"{page}: no program has --{flag}")
    for complaint in sorted(wrong):
        print(complaint)
    print(f"{sum(map(len, programs.values()))} flags known, {len(wrong)} that are not")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
