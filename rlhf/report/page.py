"""One self-contained HTML page: no external resource, no script but a section's own, every text from data or a model
escaped.

page = Page("Reward trainer", "What the model learned", [
    Section("Accuracy", paragraph("...") + figure(figures.lines(...), alt="...", caption="..."), id="accuracy"),
])
write_page(report, page)
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlhf.errors import DataError
from rlhf.words import number

_SECTIONS_END = "<!-- end of sections -->"

# Characters that do not show, or that reorder what stands around them: C0 and C1 controls (tab and line feed are
# layout and stay), bidirectional controls (Unicode TR 9), zero-width and tag characters, lone surrogates. The
# joiners U+200C and U+200D stay: Persian and emoji need them.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(value: Any) -> Any:
    """Replace characters that hide or reorder text by their names, NUL by ⟨U+0000⟩. Markup is kept."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return INVISIBLE.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", value)


_NUMBER = re.compile(r"[+−-]?[\d.,]+(\s?%)?")


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading of its own; `id` is its anchor, unique on the page."""

    title: str
    body: Markup
    id: str
    script: str = ""
    """JavaScript of this package that the body needs. The page allows exactly this, by its hash, and nothing else."""


@dataclass(frozen=True)
class Page:
    """A report: title, one line under it, sections in reading order."""

    title: str
    subtitle: str
    sections: Sequence[Section]

    def render(self) -> str:
        scripts = {section.script: _hash(section.script) for section in self.sections if section.script}
        template = _environment().get_template("page.html.j2")
        return template.render(page=self, sections_end=Markup(_SECTIONS_END), scripts=scripts)


def write_page(path: str | Path, page: Page) -> None:
    """Write the page as UTF-8, with the folders above it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(page.render(), encoding="utf-8")


def append_section(html: str, section: Section) -> str:
    """Return a rendered page's text with `section`, one without a script, added after its last section.

    Raises:
        DataError: The text is not a page of this module.
    """
    if html.count(_SECTIONS_END) != 1:
        raise DataError("report: the text is not a page written by rlhf.report, so no section can be added to it")
    return html.replace(_SECTIONS_END, f"{_parts().section(section)}\n{_SECTIONS_END}")


def paragraph(text: str) -> Markup:
    """Running text."""
    return _parts().paragraph(text)


def note(text: str) -> Markup:
    """A remark that should not be overlooked."""
    return _parts().note(text)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> Markup:
    """A table. Numbers get four significant digits, None is a dash, Markup cells are kept; a column of numbers, or of
    texts that are numbers, is right-aligned."""
    rows = [list(row) for row in rows]
    columns = [[row[i] for row in rows] for i in range(len(headers))]
    numeric = [any(map(_is_numeric, column)) and all(c is None or _is_numeric(c) for c in column) for column in columns]
    return _parts().table(headers, [[_cell(c) for c in row] for row in rows], numeric, caption)


def figure(svg: str, alt: str, caption: str) -> Markup:
    """A plot of `rlhf.report.figures`, with `alt` saying what it shows to those who cannot see it."""
    return _parts().figure(Markup(svg), alt, caption)


def figures_row(figures: Sequence[Markup]) -> Markup:
    """Figures side by side where there is room."""
    return _parts().figures_row(figures)


def tiles(numbers: Sequence[tuple[str, str, str]]) -> Markup:
    """A row of key numbers, each (label, value, note)."""
    return _parts().tiles(numbers)


def verdict(word: str, headline: str, reasons: Sequence[tuple[bool | None, str]], good: bool | None) -> Markup:
    """The answer first.

    Args:
        word: One word, such as "Promote".
        headline: One sentence.
        reasons: Each with whether it speaks for (True), against (False) or neither (None).
        good: Colour of the whole: True, False, or None for neither.
    """
    return _parts().verdict(word, headline, reasons, good)


@dataclass(frozen=True)
class Comparison:
    """Texts written for one prompt, side by side."""

    title: str
    id: str
    outcome: str
    good: bool | None
    """Colour of the outcome, as in `verdict`."""
    prompt: str
    columns: Sequence[tuple[str, str, str]]
    """Each (who wrote it, text, facts about it)."""


def comparisons(rows: Sequence[Comparison]) -> Markup:
    """Texts side by side, the prompt folded."""
    return _parts().comparisons(rows)


def fold(summary: str, body: Markup) -> Markup:
    """Something that opens on a click, without script."""
    return _parts().fold(summary, body)


def text_block(text: str) -> Markup:
    """A text of data or a model, shown as it is, line breaks kept."""
    return _parts().text_block(text)


def render(template: str, **values: Any) -> Markup:
    """A part of a page from a template of this package; texts among the values are escaped, Markup is kept."""
    return Markup(_environment().get_template(template).render(**values))


def _hash(script: str) -> str:
    """As a Content Security Policy names an inline script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _is_numeric(cell: Any) -> bool:
    if isinstance(cell, str):
        return _NUMBER.fullmatch(cell) is not None
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _cell(cell: Any) -> Any:
    if cell is None:
        return "–"
    return number(cell) if _is_numeric(cell) and not isinstance(cell, str) else cell


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("rlhf.report", "."),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["now"] = lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment


@cache
def _parts() -> Any:
    return _environment().get_template("parts.html.j2").module
