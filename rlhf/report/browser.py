"""The side-by-side browser: every row of a comparison on one page, to search, sort and filter, and to vote on blind.

page = Page("Did it get better?", "...", [
    Section("Side by side", browser(rows, digest=digest), "side-by-side", script=SCRIPT),
])

Rows travel inside the page as compressed JSON, and browser.js puts them in by `textContent` alone, so that nothing a
model wrote is ever read as HTML.
"""

import base64
import json
import math
import random
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.resources import files
from typing import Any, Literal

from markupsafe import Markup

from rlhf.report.page import render, visible

SCRIPT = files("rlhf.report").joinpath("browser.js").read_text(encoding="utf-8")
"""What the browser's section needs as its `script`."""

# Punctuation apart from what it stands at, so that "cat" and "cat," share a word. By what ends a word, not by \w:
# vowel signs of Indic scripts are no \w, and a mark must not part them from their letter.
_WORD = re.compile(r"""[^\s.,;:!?"()]+|\S""")


@dataclass(frozen=True)
class Row:
    """Two models' completions of one prompt."""

    id: str
    """Unique among the rows: votes are kept by it."""
    prompt: str
    """As it is shown."""
    original: str | Sequence[Mapping[str, str]]
    """As data has it, a text or [{role, content}]: what a vote's preference is exported with."""
    texts: Mapping[str, str | None]
    """{"before", "after", and where there is one "reference"}."""
    facts: Mapping[str, str]
    """A line under each text, by the same names."""
    margin: float | None
    """After minus before by the main judge; None or not finite where it could not say."""
    outcome: Literal["win", "loss", "tie"] | None
    """For after, by the main judge."""
    cut: bool
    """A completion was cut off."""
    scores: Mapping[str, float | None]
    """{what rows can be sorted by: after minus before}; all rows have the same."""


def browser(rows: Sequence[Row], *, digest: str, names: tuple[str, str] = ("Before", "After"), seed: int = 0) -> Markup:
    """A section's body with all rows; its section needs `script=SCRIPT`, and a page takes one.

    Args:
        rows: In the order of the data.
        digest: Of the comparison: votes on one page are not taken for votes on another.
        names: What the two models are called.
        seed: Draws, for blind voting, the order of the rows and which side each model stands on.
    """
    before, after = names
    scores = list(rows[0].scores) if rows else []
    draw = random.Random(f"rows {seed}")
    # Who votes on some rows only must have voted on a fair sample, so the order is nobody's choice.
    ballots = [i for i, row in enumerate(rows) if row.texts["before"].strip() != row.texts["after"].strip()]
    draw.shuffle(ballots)
    data = {
        "names": [visible(name) for name in (*names, "Reference")],
        "digest": digest,
        "ballots": ballots,
        "rows": [_packed(row, scores, seed) for row in rows],
    }
    return render(
        "browser.html.j2",
        rows=f"{len(rows):,}",
        sorts=_sorts(scores, before, after),
        filters=_filters(rows, before, after),
        data=_deflated(data),
    )


def word_diff(before: str, after: str) -> tuple[list[int], list[int]]:
    """Which words each of two texts has that the other lacks, after difflib.

    Returns:
        For each text the lengths of its runs, shared and own in turn, beginning with a shared one; what follows the
        last is shared. In UTF-16 units, which JavaScript counts in.
    """
    texts = (before, after)
    spans = [[match.span() for match in _WORD.finditer(text)] for text in texts]
    words = [[text[start:end] for start, end in found] for text, found in zip(texts, spans, strict=True)]
    runs: list[list[int]] = [[], []]
    ends = [0, 0]
    for tag, *places in SequenceMatcher(None, *words).get_opcodes():
        if tag == "equal":
            continue
        for side, (first, last) in enumerate((places[:2], places[2:])):
            if first < last:
                start, end = spans[side][first][0], spans[side][last - 1][1]
                runs[side] += [_utf16(texts[side][ends[side] : start]), _utf16(texts[side][start:end])]
                ends[side] = end
    return runs[0], runs[1]


def _packed(row: Row, scores: Sequence[str], seed: int) -> dict[str, Any]:
    written = [row.texts["before"], row.texts["after"]]
    texts = [visible(text) for text in (*written, row.texts.get("reference"))]
    packed = {
        "id": visible(row.id),
        "prompt": visible(row.prompt),
        "texts": texts,
        "facts": [visible(row.facts.get(name, "")) for name in ("before", "after", "reference")],
        "margin": _finite(row.margin),
        "outcome": row.outcome,
        "cut": row.cut,
        "scores": [_finite(row.scores[name]) for name in scores],
        "diff": word_diff(*texts[:2]),
        "afterIsA": random.Random(f"{seed} {visible(row.id)}").random() < 0.5,
    }
    # What is exported is what was read and written, to the character; shown and exact rarely differ.
    if row.original != packed["prompt"]:
        packed["original"] = row.original if isinstance(row.original, str) else list(map(dict, row.original))
    if written != texts[:2]:
        packed["exact"] = written
    return packed


def _sorts(scores: Sequence[str], before: str, after: str) -> list[tuple[str, str]]:
    by_score = [
        (f"{sign}{number}", f"{name}: most for {winner}")
        for number, name in enumerate(scores)
        for sign, winner in (("-", after), ("+", before))
    ]
    return [
        ("typical", "Most typical margin first"),
        ("-margin", f"Margin: most for {after}"),
        ("+margin", f"Margin: most for {before}"),
        *by_score,
        ("order", "Order of the data"),
    ]


def _filters(rows: Sequence[Row], before: str, after: str) -> list[tuple[str, str, str]]:
    """(key, label, count); browser.js has what each key means."""
    outcomes = {"win": f"{after} wins", "loss": f"{before} wins", "tie": "Ties", None: "Not judged"}
    counted = [(key or "none", label, sum(row.outcome == key for row in rows)) for key, label in outcomes.items()]
    if not counted[-1][2]:
        del counted[-1]
    texts = [{name: (text or "").strip() for name, text in row.texts.items()} for row in rows]
    others = [
        ("cut", "Cut off", sum(row.cut for row in rows)),
        ("empty", "Empty", sum(not (t["before"] and t["after"]) for t in texts)),
        ("same", "Both the same", sum(t["before"] == t["after"] for t in texts)),
        ("differs", "Not as the reference", sum(t["after"] != t["reference"] for t in texts if t.get("reference"))),
    ]
    # One that would leave none, or all, helps nobody.
    counted += [found for found in others if 0 < found[2] < len(rows)]
    return [(key, label, f"{count:,}") for key, label, count in counted]


def _finite(value: float | None) -> float | None:
    return round(value, 6) if value is not None and math.isfinite(value) else None


def _utf16(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _deflated(data: dict[str, Any]) -> str:
    """As DecompressionStream("deflate-raw") reads it, in base64."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # A lone surrogate cannot be UTF-8; what Python replaces it by is JSON's own escape for it.
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(text.encode("utf-8", "backslashreplace")) + packer.flush()
    return base64.b64encode(packed).decode()
