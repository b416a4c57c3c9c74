"""The real agent serves under the seccomp profile that we ship, on io_uring and on epoll."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

TOOL = pathlib.Path(__file__).with_name("seccomp_profile.py")
PATIENCE_S = 20


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(url, method="GET", headers=None):
    request = urllib.request.Request(url, method=method, headers=headers or {})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.status, answer.read().decode()


def serve(profile, agent, driver, folder):
    port, admin = free_port(), free_port()
    command = [
        sys.executable, str(TOOL), profile, agent, "--node-name=node-a", f"--ca={folder}/ca.pem",
        f"--token-file={folder}/token", f"--port={port}", "--listen-addr=127.0.0.1",
        f"--admin-listen-addr=127.0.0.1:{admin}", f"--driver={driver}", "--server-address=localhost:1",
        # Reaches for a connection's socket, as seeing whether requests come through the rules does.
        "--token-hop-limit=1",
    ]
    with open(f"{folder}/{driver}.log", "w+") as log, subprocess.Popen(
        command, stdout=log, stderr=log, start_new_session=True
    ) as process:
        try:
            until = time.monotonic() + PATIENCE_S
            while True:
                try:
                    status, _ = ask(
                        f"http://127.0.0.1:{port}/latest/api/token", "PUT",
                        {"x-aws-ec2-metadata-token-ttl-seconds": "60"},
                    )
                    break
                except (urllib.error.URLError, ConnectionError):
                    if process.poll() is not None or time.monotonic() > until:
                        raise
                    time.sleep(0.05)
            _, metrics = ask(f"http://127.0.0.1:{admin}/metrics")
            works = status == 200 and any(
                line.startswith(f'kiam_agent_driver{{driver="{driver}"') and not line.endswith(" 0")
                for line in metrics.splitlines()
            )
        except (urllib.error.URLError, ConnectionError) as error:
            works = False
            print(f"{driver}: {error}")
        finally:
            # The wrapper and the agent that it started.
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        if not works:
            log.seek(0)
            print(log.read()[-2000:])
    print(f"{'ok  ' if works else 'FAIL'} {driver}")
    return works


def main(profile, agent):
    if subprocess.run([sys.executable, TOOL, profile], capture_output=True, text=True, check=False).stdout.startswith("NOT"):
        print("NOT CHECKED: no libseccomp here")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        # The agent wants files; it finds no server here, so what is in them is never used.
        pathlib.Path(folder, "ca.pem").write_text("")
        pathlib.Path(folder, "token").write_text("none")
        uring = "io_uring is switched off" not in subprocess.run(
            [sys.executable, TOOL, profile], capture_output=True, text=True, check=False
        ).stdout
        drivers = ["io_uring", "epoll"] if uring else ["epoll"]
        return 0 if all([serve(profile, agent, driver, folder) for driver in drivers]) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
