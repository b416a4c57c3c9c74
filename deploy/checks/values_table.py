"""Keeps the table of values in the chart's README equal to values.yaml and its schema.

A value's description is the `# --` comment above it. A value without one, or one that the schema
does not know, is a failure.
"""

import json
import pathlib
import re
import sys

import yaml

BEGIN = "<!-- values: written by deploy/check --update -->"
END = "<!-- end of values -->"


def described(text):
    """Yields (path, description) of each described value, by indentation."""
    stack, words, taking = [], [], False
    for line in text.splitlines():
        comment = re.match(r"^\s*# ?(.*)$", line)
        if comment:
            said = comment.group(1)
            if said.startswith("-- "):
                words, taking = [said[3:]], True
            elif taking:
                words.append(said)
            continue
        key = re.match(r"^(\s*)([A-Za-z0-9]+):(?:\s|$)", line)
        if not key:
            continue
        depth = len(key.group(1)) // 2
        stack[depth:] = [key.group(2)]
        if words:
            yield ".".join(stack[: depth + 1]), " ".join(words)
        words, taking = [], False


def leaves(values, described_paths, prefix=""):
    for key, value in values.items():
        path = f"{prefix}{key}"
        if path in described_paths or not isinstance(value, dict) or not value:
            yield path, value
        else:
            yield from leaves(value, described_paths, path + ".")


def in_schema(schema, path):
    at = schema
    for key in path.split("."):
        while "$ref" in at:
            at = schema["$defs"][at["$ref"].rsplit("/", 1)[1]]
        at = at.get("properties", {}).get(key)
        if at is None:
            return False
    return True


def table(rows):
    yield "| value | default | meaning |"
    yield "| --- | --- | --- |"
    for path, default, meaning in rows:
        default = json.dumps(default, ensure_ascii=False).replace("|", "\\|")
        yield f"| `{path}` | `{default}` | {meaning.replace('|', chr(92) + '|')} |"


def main(chart, update=None):
    chart = pathlib.Path(chart)
    text = (chart / "values.yaml").read_text()
    schema = json.loads((chart / "values.schema.json").read_text())
    meanings = dict(described(text))
    rows, wrong = [], 0
    for path, default in leaves(yaml.safe_load(text), meanings):
        if path not in meanings and path.rsplit(".", 1)[0].endswith("Probe"):
            continue
        if path not in meanings:
            print(f"values.yaml: {path} has no description")
            wrong += 1
            continue
        if not in_schema(schema, path):
            print(f"values.schema.json does not know {path}")
            wrong += 1
        rows.append((path, default, meanings[path]))
    readme = chart / "README.md"
    now = readme.read_text()
    before, rest = now.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    wanted = "\n".join([before + BEGIN, *table(rows), END]) + after
    if wanted != now:
        if update:
            readme.write_text(wanted)
        else:
            print("the README's table is not that of values.yaml")
            wrong += 1
    print(f"{len(rows)} values, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
