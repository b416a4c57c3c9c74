"""What docs/migrating-from-kiam.md tells kubectl fits what the chart renders for it.

kiam's Service is made to lead to our servers by their labels, and kiam's agents then connect to the
port that they always did: both must be the pods' own, or pods lose their credentials.
"""

import json
import pathlib
import re
import sys

import yaml

PORT = 443
PORT_IN_NODES_NETWORK = 9610
NAME = re.compile(r"(?:deployment|daemonset)/(kiam-new-\w+)")


def things(golden, name):
    return [thing for thing in yaml.safe_load_all((golden / f"{name}.yaml").read_text()) if thing]


def selector(page):
    """The labels that the patch of the first step puts into the Service."""
    patch = re.search(r"patch service kiam-server --type json -p '(\[.*?\])'", page, re.DOTALL)
    return json.loads(patch.group(1))[0]["value"] if patch else {}


def wrong(page, golden):
    first, second = things(golden, "migration-first"), things(golden, "migration-second")
    wanted = selector(page)
    if not wanted:
        yield "the page has no patch of the Service kiam-server"
    steps = [("first", first, PORT), ("second", second, PORT)]
    steps.append(("host network", things(golden, "migration-host-network"), PORT_IN_NODES_NETWORK))
    if f"--server-address=kiam-server:{PORT_IN_NODES_NETWORK}" not in page:
        yield f"the page does not give kiam's agents port {PORT_IN_NODES_NETWORK}"
    for step, rendered, port in steps:
        server = next(thing for thing in rendered if thing["kind"] == "Deployment")["spec"]["template"]
        labels = server["metadata"]["labels"]
        if not wanted.items() <= labels.items():
            yield f"{step} step: the Service would select {wanted}, the servers are {labels}"
        ports = {declared["containerPort"] for declared in server["spec"]["containers"][0]["ports"]}
        if port not in ports:
            yield f"{step} step: kiam's agents ask port {port}, the servers have {sorted(ports)}"
        taken = [thing for thing in rendered if thing["metadata"]["name"] in ("kiam-server", "kiam-agent")]
        for thing in taken:
            yield f"{step} step: {thing['kind']} {thing['metadata']['name']} is kiam's already"
    names = {thing["metadata"]["name"] for thing in second}
    for name in NAME.findall(page):
        if name not in names:
            yield f"the page names {name}, which the chart does not render"


def main(page, golden):
    complaints = list(wrong(pathlib.Path(page).read_text(), pathlib.Path(golden)))
    print("\n".join(complaints), end="\n" if complaints else "")
    print(f"{len(complaints)} things wrong")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
