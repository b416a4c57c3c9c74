"""docs/metrics.md, read: which metrics it describes, with which labels and values."""

import pathlib
import re

PAGE = pathlib.Path("docs/metrics.md")
TYPES = {"counter", "gauge", "histogram", "info"}
TICKED = re.compile(r"`([^`]+)`")


class Wrong(Exception):
    """The page cannot be read as it should be."""


def labels_of(cell):
    """`reason`: `closed`, `failed`; `version` -> {"reason": {"closed", "failed"}, "version": None}"""
    labels = {}
    for part in filter(None, (part.strip() for part in cell.split(";"))):
        name, _, values = part.partition(":")
        if not TICKED.fullmatch(name.strip()):
            raise Wrong(f"labels {cell!r}: say `label`: `value`, `value`; `label`")
        labels[name.strip().strip("`")] = set(TICKED.findall(values)) or None
    return labels


def read():
    """{metric: (type, {label: values, or None where they are not a closed set})}"""
    described = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| `") or len(cells) != 4:
            continue
        names, kind, labels, _meaning = cells
        kind = kind.split(",")[0].strip()
        if kind not in TYPES:
            continue
        for name in TICKED.findall(names):
            if name in described:
                raise Wrong(f"{name} is described twice")
            described[name] = (kind, labels_of(labels))
    if not described:
        raise Wrong(f"{PAGE} describes no metric")
    return described


SAMPLE = re.compile(r'^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? \S+$')
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
SUFFIX = {"counter": "_total", "info": "_info"}


def exposed(text):
    """The same, of a program's /metrics."""
    families, shown = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            families[name + SUFFIX.get(kind, "")] = kind
            shown.setdefault(name + SUFFIX.get(kind, ""), {})
        elif sample := SAMPLE.match(line):
            name = sample.group(1)
            if name not in families:
                name = re.sub(r"_(bucket|sum|count)$", "", name)
            for label, value in LABEL.findall(sample.group(2) or ""):
                if label != "le":
                    shown[name].setdefault(label, set()).add(value)
    return {name: (kind, shown[name]) for name, kind in families.items()}
