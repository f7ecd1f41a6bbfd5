"""How prompts end: the marker, such as "TL;DR:", after which a completion is to follow."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from rlhf.errors import DataError

# Share of a source's texts that must end alike for the ending to be a suffix and not part of some texts.
MIN_SHARE = 0.9
LONGEST_LINE = 40
_MARK = r"(\[\w+\]:|[\w;]{1,20}:)"
_LAST_WORD = re.compile(_MARK + r"\Z")
_FIRST_WORD = re.compile(r"\s*" + _MARK)


def detect(prompts: Mapping[str, Iterable[str]], completions: Mapping[str, Iterable[str]]) -> tuple[str, str]:
    """Find the suffix that the data itself uses.

    A source has one where nine tenths of its distinct prompts, and at least two, end in the same last line (of at
    most 40 characters), or in the same word with a colon. Where no source's prompts do but completions begin with
    such a word (CarperAI's comparisons), it is theirs to give to the prompts.

    Args:
        prompts, completions: Texts by the parameter they came from.

    Returns:
        The suffix, with the whitespace that most often stands around it, and in words where it was found; empty
        strings where there is none.

    Raises:
        DataError: The prompts of two sources end differently.
    """
    distinct = {parameter: list(dict.fromkeys(text.rstrip() for text in texts)) for parameter, texts in prompts.items()}
    marks = {p: mark for p, texts in distinct.items() if (mark := _common(map(_last_line, texts), len(texts)))}
    for parameter, texts in distinct.items():
        if parameter not in marks and (mark := _common(map(_last_word, texts), len(texts))):
            marks[parameter] = mark
    if len(set(marks.values())) > 1:
        found = ", ".join(f"{mark!r} in {parameter}" for parameter, mark in marks.items())
        raise DataError(
            f"suffix: prompts end in {found}; make them alike, or name the one to use with suffix (in the pipeline "
            "data_validation={'suffix': ...})"
        )
    if marks:
        mark = next(iter(marks.values()))
        around = Counter(_around(text, mark) for texts in prompts.values() for text in texts if _ends(text, mark))
        lead, trail = around.most_common(1)[0][0]
        return lead + mark + trail, "prompts of " + " and ".join(marks) + " end in it"
    for parameter, texts in completions.items():
        firsts = [_FIRST_WORD.match(text) for text in dict.fromkeys(texts)]
        if mark := _common((m[1] if m else None for m in firsts), len(firsts)):
            return f"\n{mark} ", f"completions of {parameter} begin with it, it was moved to the prompts"
    return "", ""


def without_marker(completion: str, suffix: str) -> str:
    """The completion less the suffix's marker where it begins with that: the prompt already ends in it."""
    mark = suffix.strip()
    rest = completion.lstrip().removeprefix(mark)
    return rest if mark and completion.lstrip().startswith(mark) and rest.strip() else completion


def _common(endings: Iterable[str | None], of: int) -> str | None:
    """The ending that enough texts share."""
    ending, count = next(iter(Counter(e for e in endings if e).most_common(1)), (None, 0))
    return ending if count >= max(2, MIN_SHARE * of) else None


def _last_line(text: str) -> str | None:
    head, line_break, line = text.rpartition("\n")
    return line.strip() if line_break and head.strip() and len(line) <= LONGEST_LINE else None


def _last_word(text: str) -> str | None:
    word = _LAST_WORD.search(text[-LONGEST_LINE:])
    return word[1] if word else None


def _ends(text: str, mark: str) -> bool:
    return text.rstrip().endswith(mark)


def _around(text: str, mark: str) -> tuple[str, str]:
    """Whitespace before and after the mark that `text` ends in."""
    body = text.rstrip()
    trail = text[len(body) :]
    body = body[: -len(mark)]
    return body[len(body.rstrip()) :], trail
