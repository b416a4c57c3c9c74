"""Relative links and anchors in README.md, CHANGELOG.md, docs/ and the READMEs of deploy/ lead somewhere."""

import pathlib
import re
import sys

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def anchors(path):
    """Headings as the usual forges make anchors of them."""
    seen = {}
    fenced = False
    for line in path.read_text().splitlines():
        if line.startswith("```"):
            fenced = not fenced
        heading = None if fenced else re.match(r"^#+\s+(.*?)\s*#*$", line)
        if not heading:
            continue
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.group(1)).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = seen.get(anchor, 0)
        seen[anchor] = count + 1
        yield anchor if not count else f"{anchor}-{count}"


def links(path):
    fenced = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        if not fenced:
            for target in LINK.findall(re.sub(r"`[^`]*`", "", line)):
                yield number, target


def main():
    root = pathlib.Path(".").resolve()
    pages = [p for p in (root / "README.md", root / "CHANGELOG.md") if p.exists()]
    pages += sorted((root / "docs").glob("*.md")) + sorted((root / "deploy").rglob("*.md"))
    count = wrong = 0
    for page in pages:
        for number, target in links(page):
            if re.match(r"^[a-z]+:", target):
                continue
            count += 1
            name, _, anchor = target.partition("#")
            to = (page.parent / name).resolve() if name else page
            where = f"{page.relative_to(root)}:{number}"
            if not to.exists():
                wrong += 1
                print(f"{where}: {target} does not exist")
            elif anchor and to.suffix == ".md" and anchor not in set(anchors(to)):
                wrong += 1
                print(f"{where}: {target} has no such heading")
    print(f"{len(pages)} pages, {count} links, {wrong} that lead nowhere")
    return 1 if wrong or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
