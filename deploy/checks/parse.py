"""Every YAML, JSON and HCL file under the given folders parses.

Chart templates are not YAML before they are rendered, so they are left to helm. helmfile's templates
are simple enough to be filled in here.
"""

import json
import pathlib
import re
import sys

import hcl2
import yaml


class Strict(yaml.SafeLoader):
    """Refuses a key given twice, which plain YAML readers take silently."""


def mapping(loader, node, deep=False):
    seen = set()
    for key, _ in node.value:
        word = loader.construct_object(key, deep=deep)
        if word in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {word!r} given twice", key.start_mark
            )
        seen.add(word)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)


def filled(template):
    """Directives alone on a line go, values become a word."""
    lines = [line for line in template.splitlines() if not re.fullmatch(r"\s*\{\{-.*\}\}", line)]
    return re.sub(r"\{\{.*?\}\}", "word", "\n".join(lines))


def parse(path):
    text = path.read_text()
    if path.suffix == ".gotmpl":
        text = filled(text)
    if path.suffix == ".json":
        json.loads(text)
    elif path.suffix in (".tf", ".hcl"):
        hcl2.loads(text)
    else:
        list(yaml.load_all(text, Loader=Strict))


def main(roots):
    failures = count = 0
    for root in map(pathlib.Path, roots):
        for path in sorted(root.rglob("*")):
            if "templates" in path.parts or path.is_symlink() or not path.is_file():
                continue
            if path.suffix not in (".yaml", ".yml", ".json", ".tf", ".hcl", ".gotmpl"):
                continue
            count += 1
            try:
                parse(path)
            except Exception as error:  # noqa: BLE001 - each parser has its own
                failures += 1
                print(f"{path}: {error}")
    print(f"{count} files, {failures} that do not parse")
    return 1 if failures or not count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
