"""Values that the chart must refuse, each with a sentence that names what is wrong, for a recent Kubernetes
unless the case names one."""

import subprocess
import sys
import tempfile

import yaml


def main(helm, chart, cases):
    with open(cases) as file:
        cases = yaml.safe_load(file)
    wrong = 0
    for case in cases:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as values:
            yaml.safe_dump(case["values"], values)
            values.flush()
            run = subprocess.run(
                [helm, "template", "kiam", chart, "--namespace", "kiam",
                 "--kube-version", case.get("kubernetes", "1.33.0"), "--values", values.name],
                capture_output=True, text=True, check=False,
            )
        # The schema names a value as /agent/host/port in one helm version and agent.host.port in another.
        said = run.stderr.replace("/", ".")
        word = str(case["says"]).replace("/", ".")
        if run.returncode == 0:
            wrong += 1
            print(f"accepted: {case['values']}")
        elif word not in said:
            wrong += 1
            print(f"refused without {word!r}: {case['values']}\n{run.stderr}")
    print(f"{len(cases)} cases, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
