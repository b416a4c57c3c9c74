"""References within each Terraform module lead to something that the module declares.

Terraform's own `validate` needs the AWS provider's schema, which cannot be had everywhere; this needs
nothing and finds what is misspelt most often: names.
"""

import pathlib
import re
import sys

import hcl2

# A dotted name whose first part says what kind of thing it is.
REFERENCE = re.compile(
    r"(?<![\w.\"-])(var|local|module|data\.aws_\w+|aws_\w+)\.([A-Za-z_][\w-]*)"
)


def name(word):
    return word.strip('"')


def declared(folder):
    found, text = set(), ""
    for path in sorted(folder.glob("*.tf")):
        source = path.read_text()
        text += re.sub(r"(?m)^\s*#.*$", "", source)
        tree = hcl2.loads(source)
        for block in tree.get("variable", []):
            found |= {("var", name(n)) for n in block}
        for block in tree.get("locals", []):
            found |= {("local", name(n)) for n in block if not n.startswith("__")}
        for block in tree.get("module", []):
            found |= {("module", name(n)) for n in block}
        for kind, prefix in (("resource", ""), ("data", "data.")):
            for block in tree.get(kind, []):
                for type_name, things in block.items():
                    if type_name.startswith("__"):
                        continue
                    found |= {(prefix + name(type_name), name(n)) for n in things}
    return found, text


def arguments(folder):
    """The variables of a module, and those without a default."""
    every, needed = set(), set()
    for path in folder.glob("*.tf"):
        for block in hcl2.loads(path.read_text()).get("variable", []):
            for variable, body in block.items():
                every.add(name(variable))
                if "default" not in body:
                    needed.add(name(variable))
    return every, needed


def main(root):
    root = pathlib.Path(root)
    wrong = count = 0
    for folder in sorted({path.parent for path in root.rglob("*.tf")}):
        found, text = declared(folder)
        used = set(REFERENCE.findall(text))
        count += len(used)
        for kind, thing in sorted(used - found):
            wrong += 1
            print(f"{folder}: {kind}.{thing} is not declared")
        for kind, thing in sorted(found):
            if kind in ("var", "local", "data") and (kind, thing) not in used:
                wrong += 1
                print(f"{folder}: {kind}.{thing} is never used")
        for path in folder.glob("*.tf"):
            for block in hcl2.loads(path.read_text()).get("module", []):
                for module, body in block.items():
                    every, needed = arguments(folder / name(body["source"]))
                    given = {k for k in body if not k.startswith("__")} - {"source", "depends_on"}
                    for complaint in sorted(given - every) + sorted(needed - given):
                        wrong += 1
                        print(f"{path}: module {name(module)}: argument {complaint}")
    print(f"{count} references, {wrong} wrong")
    return 1 if wrong or not count else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
