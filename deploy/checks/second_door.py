"""The rules of the second door, loaded as the init container loads them, bring requests to the agent's port.

In a network namespace of its own: the chart's rendered rules, loaded twice, a listener in the agent's
place, and a request to the address that pods ask. Then what takes the rules away again.

    second_door.py GOLDEN REMOVER...
"""

import os
import socket
import subprocess
import sys
import tempfile

import yaml

# The node's address of each family, and what pods ask.
NODES = {4: ("10.1.2.3/24", "169.254.170.2"), 6: ("fd12::3/64", "fd00:ec2::23")}
IN_NAMESPACE = "KIAM_CHECK_IN_NAMESPACE"


def rendered(path):
    """(rules, nft's arguments, the address that the agent is told to listen on)"""
    with open(path) as file:
        things = [thing for thing in yaml.safe_load_all(file) if thing]
    rules = next(t["data"]["second-door.nft"] for t in things if t["kind"] == "ConfigMap")
    spec = next(t["spec"]["template"]["spec"] for t in things if t["kind"] == "DaemonSet")
    door = next(c for c in spec["initContainers"] if c["name"] == "second-door")
    flag = "--container-credentials-listen="
    listen = next(a for a in spec["containers"][0]["args"] if a.startswith(flag))
    return rules, door["args"], listen.removeprefix(flag)


def with_host(text, host):
    return text.replace("$(FIRST_HOST_IP)", host).replace("$(HOST_IP)", host)


def remover(path):
    """nft's arguments where the rules are taken away: by hand, or by an agent that needs none."""
    with open(path) as file:
        things = [thing for thing in yaml.safe_load_all(file) if thing]
    spec = next(t["spec"]["template"]["spec"] for t in things if t["kind"] == "DaemonSet")
    nft = (c["args"] for c in spec["initContainers"] if c["command"] == ["/usr/sbin/nft"])
    return next(args for args in nft if "delete table" in args[0])


def ruleset():
    return subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout


def main(path, *removers):
    if IN_NAMESPACE not in os.environ:
        run = ["unshare", "--user", "--map-root-user", "--net", sys.executable, *sys.argv]
        return subprocess.run(run, env={**os.environ, IN_NAMESPACE: "1"}, check=False).returncode
    rules, arguments, listen = rendered(path)
    family = 6 if listen.startswith("[") else 4
    network, asked = NODES[family]
    host = network.split("/")[0]
    for command in ("link set lo up", f"-{family} addr add {network} dev lo", f"-{family} route add default dev lo"):
        subprocess.run(["ip", *command.split()], check=True)
    port = int(listen.rsplit(":", 1)[1])
    with tempfile.NamedTemporaryFile("w", suffix=".nft") as file:
        file.write(rules)
        file.flush()
        arguments = [with_host(a, host).replace("/rules/second-door.nft", file.name) for a in arguments]
        for _ in range(2):
            subprocess.run(["nft", *arguments], check=True)
    listing = ruleset()
    if listing.count("dnat") != 2:
        print(f"expected two rules after loading them twice:\n{listing}")
        return 1
    # As the agent reads it: with brackets round an IPv6 address, and none round the other.
    if with_host(listen, host) != (f"[{host}]:{port}" if family == 6 else f"{host}:{port}"):
        print(f"the agent cannot listen on {with_host(listen, host)}")
        return 1
    with socket.create_server((host, port), family=socket.AF_INET6 if family == 6 else socket.AF_INET) as agent:
        agent.settimeout(5)
        with socket.create_connection((asked, 80), timeout=5) as pod:
            accepted, _ = agent.accept()
            pod.sendall(b"GET /v1/credentials HTTP/1.1\r\n\r\n")
            said = accepted.recv(100)
            accepted.close()
    print(f"ok   a request to {asked}, port 80, came to {with_host(listen, host)}")
    for remove in removers:
        subprocess.run(["nft", "--file", "-"], input=listing, text=True, check=True)
        # Also where there are none.
        for _ in range(2):
            subprocess.run(["nft", *remover(remove)], check=True)
        if left := ruleset():
            print(f"{remove} leaves\n{left}")
            return 1
    return 0 if said.startswith(b"GET") else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
