"""The rules of the second door, loaded as the init container loads them, bring requests to the agent's port.

In a network namespace of its own: the chart's rendered rules, loaded twice, a listener in the agent's
place, and a request to the address that pods ask. Then what takes the rules away again.

    second_door.py GOLDEN REMOVER
"""

import os
import socket
import subprocess
import sys
import tempfile

import yaml

HOST = "10.1.2.3"
IN_NAMESPACE = "KIAM_CHECK_IN_NAMESPACE"


def rendered(path):
    """(rules, nft's arguments, the port that the agent is told to listen on)"""
    with open(path) as file:
        things = [thing for thing in yaml.safe_load_all(file) if thing]
    rules = next(t["data"]["second-door.nft"] for t in things if t["kind"] == "ConfigMap")
    spec = next(t["spec"]["template"]["spec"] for t in things if t["kind"] == "DaemonSet")
    door = next(c for c in spec["initContainers"] if c["name"] == "second-door")
    flag = "--container-credentials-listen=$(HOST_IP):"
    listen = next(a for a in spec["containers"][0]["args"] if a.startswith(flag))
    return rules, door["args"], int(listen.removeprefix(flag))


def remover(path):
    """nft's arguments where the rules are taken away by hand."""
    with open(path) as file:
        spec = yaml.safe_load(file)["spec"]["template"]["spec"]
    return next(c["args"] for c in spec["initContainers"] if c["name"] == "second-door")


def ruleset():
    return subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout


def main(path, remove):
    if IN_NAMESPACE not in os.environ:
        run = ["unshare", "--user", "--map-root-user", "--net", sys.executable, *sys.argv]
        return subprocess.run(run, env={**os.environ, IN_NAMESPACE: "1"}, check=False).returncode
    for command in ("ip link set lo up", f"ip addr add {HOST}/24 dev lo", "ip route add default via 10.1.2.4 dev lo"):
        subprocess.run(command.split(), check=True)
    rules, arguments, port = rendered(path)
    with tempfile.NamedTemporaryFile("w", suffix=".nft") as file:
        file.write(rules)
        file.flush()
        arguments = [a.replace("$(HOST_IP)", HOST).replace("/rules/second-door.nft", file.name) for a in arguments]
        for _ in range(2):
            subprocess.run(["nft", *arguments], check=True)
    listing = ruleset()
    if listing.count("dnat") != 2:
        print(f"expected two rules after loading them twice:\n{listing}")
        return 1
    with socket.create_server((HOST, port)) as agent:
        agent.settimeout(5)
        with socket.create_connection(("169.254.170.2", 80), timeout=5) as pod:
            accepted, _ = agent.accept()
            pod.sendall(b"GET /v1/credentials HTTP/1.1\r\n\r\n")
            said = accepted.recv(100)
            accepted.close()
    print(f"ok   a request to 169.254.170.2:80 came to {HOST}:{port}")
    # Also where there are none.
    for _ in range(2):
        subprocess.run(["nft", *remover(remove)], check=True)
    if left := ruleset():
        print(f"{remove} leaves\n{left}")
        return 1
    return 0 if said.startswith(b"GET") else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
