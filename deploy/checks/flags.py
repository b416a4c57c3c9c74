"""Every flag that the chart renders and the docs mention is one that a program has."""

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
}


COMMANDS = {
    "kiam-agent": ["", "intercept install"],
    "kiam-server": ["", "why"],
    "kiam-loadtest": ["", "up", "run", "sim", "probe", "null"],
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


def rendered():
    """(program, flag) of every container in the golden renders."""
    for path in sorted(pathlib.Path("deploy/helm/tests/golden").glob("*.yaml")):
        for thing in yaml.safe_load_all(path.read_text()):
            if not thing or thing["kind"] not in ("DaemonSet", "Deployment"):
                continue
            spec = thing["spec"]["template"]["spec"]
            for container in spec.get("initContainers", []) + spec["containers"]:
                program = container["command"][0].rsplit("/", 1)[1]
                for argument in container.get("args", []) if program in COMMANDS else []:
                    flag = FLAG.match(argument)
                    if flag:
                        yield path, program, flag.group(1)


def main(directory):
    programs = {name: helps(f"{directory}/{name}") for name in ("kiam-agent", "kiam-server")}
    wrong = set()
    for path, program, flag in rendered():
        if flag not in programs[program]:
            wrong.add(f"{path}: {program} has no --{flag}")
    known = set().union(*programs.values()) | FOREIGN
    loadtest = pathlib.Path(directory, "kiam-loadtest")
    known |= helps(loadtest) if loadtest.exists() else {"json"}
    pages = sorted(pathlib.Path("docs").glob("*.md"))
    for page in pages:
        text = page.read_text()
        # Pages that list what kiam had name flags that are gone.
        if page.name.startswith(("migrating", "perf")):
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
