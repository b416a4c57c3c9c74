"""The examples that look after the interception rules by hand do it with the chart's own words.

    intercept_examples.py GOLDEN EXAMPLE...

GOLDEN is the render of the chart's defaults. Rules are compared with those that the flags describe: with
others `status` would call good rules altered.
"""

import pathlib
import sys

import yaml


def containers(path):
    for thing in yaml.safe_load_all(pathlib.Path(path).read_text()):
        if thing and thing["kind"] in ("DaemonSet", "Pod"):
            spec = thing["spec"] if thing["kind"] == "Pod" else thing["spec"]["template"]["spec"]
            for container in spec.get("initContainers", []) + spec["containers"]:
                yield spec, container


def installs(container):
    return container.get("args", [])[:1] == ["intercept"]


def wrong(golden, example):
    _, installer = next(found for found in containers(golden) if installs(found[1]))
    spec, container = next(found for found in containers(example) if installs(found[1]))
    flags = container["args"][2:]
    if foreign := set(flags) - set(installer["args"]):
        yield f"{sorted(foreign)} is not what the chart installs with"
    for flag in ("--intercept=", "--port=", "--host-interface="):
        if not any(said.startswith(flag) for said in flags):
            yield f"does not say {flag}"
    for key in ("image", "command"):
        if container[key] != installer[key]:
            yield f"{key} is {container[key]}, the chart's {installer[key]}"
    host = next(e for e in installer["env"] if e["name"] == "HOST_IP")
    if host not in container["env"]:
        yield "HOST_IP is not the chart's"
    if not spec.get("hostNetwork"):
        yield "not in the node's network"


def main(golden, *examples):
    complaints = [f"{example}: {complaint}" for example in examples for complaint in wrong(golden, example)]
    print("\n".join(complaints), end="\n" if complaints else "")
    print(f"{len(examples)} examples, {len(complaints)} things wrong")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
