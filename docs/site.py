"""Build the site of documents into build/site: `python -m docs.site`; `make docs` writes first what is made from code.

The documents are written for a reader of the repository, with links into it. Here they are laid out as a site: those
outside docs/ get a page, and so does every source file or folder that one of them links to, so that no link leaves.
"""

import logging
import posixpath
import re
import shutil
import sys
from pathlib import Path

from mkdocs.commands.build import build as build_mkdocs
from mkdocs.config import load_config
from mkdocs.exceptions import MkDocsException

from components.images import STAGES

ROOT = Path(__file__).parents[1]

# Documents that do not lie in docs/, and the folder of which a link means a page.
PLACES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "performance.md",
    "containers/README.md": "containers.md",
    "components": "components/index.md",
    "docs": "index.md",
    **{f"components/{stage}/README.md": f"components/{stage}.md" for stage in STAGES},
}
LINK = re.compile(r"(\]\()([^)\s]+)(?=\))")
# Blocks of code, in which nothing is a link.
FENCED = re.compile(r"^(```|~~~).*?^\1$", re.DOTALL | re.MULTILINE)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".ipynb": "json", ".toml": "toml"}


def lay_out(pages: Path) -> None:
    """Write every page, and the pictures, into the folder `pages`, which is emptied first."""
    shutil.rmtree(pages, ignore_errors=True)
    documents = {path: place for path, place in PLACES.items() if path.endswith(".md")}
    for path in sorted((ROOT / "docs").rglob("*.md")):
        documents[path.relative_to(ROOT).as_posix()] = path.relative_to(ROOT / "docs").as_posix()
    shutil.copytree(ROOT / "docs" / "images", pages / "images")
    linked: set[str] = set()
    for path, place in documents.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        _write(pages / place, _relinked(text, path, place, documents, linked))
    _write(pages / PLACES["components"], _components())
    for path in [*linked]:
        if (ROOT / path).is_dir():
            linked |= {each for each in _files(path) if each not in documents}
    for path in linked:
        _write(pages / _source(path), _source_page(path, linked))


def build(pages: Path, site: Path) -> list[str]:
    """Lay the pages out and build the site of them.

    Returns:
        What MkDocs warns of (dead links, missing anchors, pages without a place), a line each; empty if all is well.
    """
    lay_out(pages)
    warnings: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    handler = Keep(logging.WARNING)
    log = logging.getLogger("mkdocs")
    log.addHandler(handler)
    try:
        config = load_config(str(ROOT / "mkdocs.yml"), docs_dir=str(pages), site_dir=str(site))
        build_mkdocs(config)
    except MkDocsException as error:
        warnings = warnings or [str(error)]
    finally:
        log.removeHandler(handler)
    return warnings


def _relinked(text: str, path: str, place: str, documents: dict[str, str], linked: set[str]) -> str:
    """The document with links as they are in the site; what it links to of the source is added to `linked`."""

    def target(match: re.Match) -> str:
        link, _, anchor = match[2].partition("#")
        if not link or "://" in link or link.startswith("mailto:"):
            return match[0]
        to = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        if to.startswith("docs/images/"):
            page = to.removeprefix("docs/")
        elif to in documents or to in PLACES:
            page = documents.get(to) or PLACES[to]
        elif (ROOT / to).exists():
            linked.add(to)
            page = _source(to)
        else:
            return match[0]  # MkDocs says that it is dead
        relative = posixpath.relpath(page, posixpath.dirname(place) or ".")
        return match[1] + relative + (f"#{anchor}" if anchor else "")

    parts, end = [], 0
    for block in FENCED.finditer(text):
        parts += [LINK.sub(target, text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, LINK.sub(target, text[end:])])


def _source(path: str) -> str:
    return f"source/{path}.md"


def _files(folder: str) -> list[str]:
    """Files right in a folder of the source, without what is made when it runs."""
    found = [path for path in (ROOT / folder).iterdir() if path.is_file() and path.suffix != ".pyc"]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def _source_page(path: str, linked: set[str]) -> str:
    hidden = "---\nsearch: {exclude: true}\n---\n\n"
    if not (ROOT / path).is_dir():
        text = (ROOT / path).read_text(encoding="utf-8")
        return f"{hidden}# {path}\n\n~~~~~~ {LANGUAGES.get(Path(path).suffix, 'text')}\n{text.rstrip()}\n~~~~~~\n"
    here = posixpath.dirname(_source(path))
    lines = [
        f"- [{Path(each).name}]({posixpath.relpath(_source(each), here)})" if each in linked else f"- {Path(each).name}"
        for each in _files(path)
    ]
    folders = sorted(each.name for each in (ROOT / path).iterdir() if each.is_dir() and each.name != "__pycache__")
    return "\n".join([f"{hidden}# {path}", "", *lines, *(f"- {name}/" for name in folders), ""])


def _components() -> str:
    """The first lines of the components' READMEs."""
    lines = ["# Components", "", "One for each stage; the pipelines join them.", "", "| | |", "| --- | --- |"]
    for stage in STAGES:
        said = (ROOT / "components" / stage / "README.md").read_text(encoding="utf-8").split("\n\n")[2]
        lines.append(f"| [{stage}]({stage}.md) | {' '.join(said.split())} |")
    return "\n".join([*lines, ""])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main() -> int:
    """Build the site.

    Returns:
        Exit status: 0, or 1 where a link is dead, an anchor is missing or a page has no place.
    """
    warnings = build(ROOT / "build" / "pages", ROOT / "build" / "site")
    for warning in warnings:
        print(f"error: {warning}", file=sys.stderr)
    if not warnings:
        print("build/site/index.html")
    return 1 if warnings else 0


if __name__ == "__main__":
    sys.exit(main())
