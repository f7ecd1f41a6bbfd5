"""Pictures, tables and pages as notebooks show them.

Each gives a notebook several forms of itself. `text/plain` is what it says in words: for who cannot see it, and the
alternative text of the picture that the documents show in its place.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Self

from rlhf.report.page import render, visible
from rlhf.words import number

# In a table's cell these would end it, or be taken for layout; by entities, for not all Markdown takes a backslash
# before each. An underscore within a word is none.
_SPECIAL = re.compile(r"[\\`*\[\]<>#|~&]|(?<!\w)_|_(?!\w)")

Bundle = dict[str, str]


@dataclass(frozen=True)
class Picture:
    """A plot of `rlhf.report.figures`, or another SVG with colours of its own."""

    svg: str
    alt: str
    """What it shows, in words."""
    caption: str = ""

    def _repr_mimebundle_(self, **_: Any) -> Bundle:
        return {"image/svg+xml": standalone(self.svg), "text/plain": self.alt}


@dataclass(frozen=True)
class Table:
    """A table. Numbers get four significant digits, None is a dash, texts are shown as they are."""

    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def _repr_mimebundle_(self, **_: Any) -> Bundle:
        lines = [self.headers, ["---"] * len(self.headers), *self.rows]
        text = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
        return {"text/markdown": text, "text/plain": text}


@dataclass(frozen=True)
class Text:
    """Markdown that one of our stages wrote; its headings go below the notebook's."""

    markdown: str

    def _repr_mimebundle_(self, **_: Any) -> Bundle:
        under = re.sub("^#", "###", self.markdown, flags=re.MULTILINE)
        return {"text/markdown": under, "text/plain": under}


@dataclass(frozen=True)
class Frame:
    """A page of ours in a frame, where its script runs and reaches nothing else."""

    page: str
    alt: str
    height: int = 720
    """In pixels."""

    @classmethod
    def of(cls, path: str | Path, alt: str, section: str = "", height: int = 720) -> Self:
        """A page that was written to a file, or one section of it, by its id."""
        page = Path(path).read_text(encoding="utf-8")
        if section:
            others = f"header, footer, section:not(#{section}) {{ display: none }}"
            page = page.replace("</head>", f"<style>{others}</style></head>", 1)
        return cls(page, alt, height)

    def _repr_mimebundle_(self, **_: Any) -> Bundle:
        frame = (
            f'<iframe sandbox="allow-scripts allow-downloads" title="{escape(self.alt)}" width="100%" '
            f'height="{self.height}" style="border: 0" srcdoc="{escape(self.page)}"></iframe>'
        )
        return {"text/html": frame, "text/plain": self.alt}


def standalone(svg: str) -> str:
    """A plot of `rlhf.report.figures` as a picture that needs no page: on paper of its own, legible in light and dark.

    One that has a style already stays as it is.
    """
    if "<style" in svg:
        return svg
    head, title, drawing = svg.partition("</title>")
    return head.replace("<svg ", '<svg class="standalone" ', 1) + title + str(render("standalone.html.j2")) + drawing


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    text = " ".join(visible(str(value)).split())
    return text if text == "---" else _SPECIAL.sub(lambda match: f"&#{ord(match[0])};", text)
