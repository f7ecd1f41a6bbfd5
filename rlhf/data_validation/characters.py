"""What texts are written in: their languages, and characters that hide, reorder or have been damaged."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from rlhf.report.page import INVISIBLE

EXAMPLES = 2

# At most as many texts as the stage samples, and of each the middle: data sets put their own English words, such as
# "SUBREDDIT:" and "TL;DR:", at the ends. Both are for speed: 20,000 x 300 characters take about 3 s.
MOST_TEXTS = 20_000
MOST_CHARACTERS = 300
# Bytes of letters in UTF-8, which py3langid reads: 40 English letters, 13 Chinese characters. Of beginnings of TL;DR
# summaries, 99.9 % are called English from 40 bytes, 97 % from 15 to 25.
FEWEST_LETTER_BYTES = 40
LEAST_CONFIDENCE = 0.5
UNDETERMINED = "und"
NO_LANGUAGE = "zxx"
_NO_LETTER = re.compile(r"[\W\d_]+")


@dataclass(frozen=True)
class Occurrence:
    """In how many texts something is found, and where to look."""

    texts: int
    examples: tuple[int, ...]
    """Positions of the first `EXAMPLES` of them."""


@dataclass(frozen=True)
class Languages:
    """Languages by py3langid, a naive Bayes classifier over byte n-grams (Lui & Baldwin 2012)."""

    read: int
    """Texts looked at: all of them, or `MOST_TEXTS` evenly spread over them."""
    too_short: Occurrence
    """Texts with fewer letters than a language can be told from."""
    found: dict[str, Occurrence]
    """{ISO 639 code: texts}, the most frequent first. `UNDETERMINED`: the likeliest language has a probability below
    `LEAST_CONFIDENCE`; `NO_LANGUAGE`: numbers, markup and the like."""


def languages(texts: Sequence[str]) -> Languages:
    """Tell the language of each text by up to `MOST_CHARACTERS` from its middle."""
    step = max(1, -(-len(texts) // MOST_TEXTS))
    too_short = []
    found: dict[str, list[int]] = {}
    for position in range(0, len(texts), step):
        start = max(0, (len(texts[position]) - MOST_CHARACTERS) // 2)
        part = texts[position][start : start + MOST_CHARACTERS]
        if len(_NO_LETTER.sub("", part).encode(errors="replace")) < FEWEST_LETTER_BYTES:
            too_short.append(position)
        else:
            found.setdefault(_identifier().classify(part)[0], []).append(position)
    by_frequency = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return Languages(
        len(range(0, len(texts), step)), _occurrence(too_short), {code: _occurrence(at) for code, at in by_frequency}
    )


class Oddity(StrEnum):
    """A kind of character that ordinary text has no use for; `MEANINGS` explains each."""

    NUL = "NUL"
    CONTROL = "control character"
    LONE_CARRIAGE_RETURN = "lone carriage return"
    BIDIRECTIONAL = "bidirectional control"
    ZERO_WIDTH = "zero-width character"
    REPLACEMENT = "replacement character"
    MOJIBAKE = "mojibake"
    PRIVATE_USE = "private use"


MEANINGS = {
    Oddity.NUL: "U+0000: programs in C take it for the end of the text",
    Oddity.CONTROL: "C0 or C1 other than tab, line feed and carriage return; U+2028 and U+2029",
    Oddity.LONE_CARRIAGE_RETURN: "without a line feed after it: the line break of old Macs, or the rest of a lost one",
    Oddity.BIDIRECTIONAL: "reorders what is shown (Trojan Source, CVE-2021-42574); ordinary in Hebrew and Arabic",
    Oddity.ZERO_WIDTH: "cannot be seen, splits words for a tokenizer, or hides text: U+200B, U+FEFF, tags",
    Oddity.REPLACEMENT: "U+FFFD: stands where something could not be decoded, and is lost",
    Oddity.MOJIBAKE: "UTF-8 read as Windows-1252 or Latin-1: 'â€™' for an apostrophe, 'Ã©' for 'é'",
    Oddity.PRIVATE_USE: "means something in one font only: icons of a web page, an Apple logo",
}

# Windows-1252's letters and signs for the bytes 0x80 to 0x9f, less quotation marks, dashes, dots and the bullet, which
# may follow a letter in good text.
_CP1252 = "€‚ƒ„†‡ˆ‰Š‹ŒŽ˜™š›œžŸ"
# The commonest beginnings of UTF-8 sequences misread: accents and signs, punctuation, emoji, byte order mark, U+FFFD,
# Cyrillic. All that could be such would take in «CAFÉ» (as ftfy explains: Speer 2019).
_MOJIBAKE = re.compile(
    f"[ÂÃ][\x80-\xbf]|Ã[{_CP1252}]|â[€\x80]|ð[Ÿ\x9f]|ï»¿|ï¿½|(?:[ÐÑ][\x80-\xbf{_CP1252}‘’“”•–—…]){{3}}"
)
_PRIVATE_USE = re.compile("[\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
_LONE_CARRIAGE_RETURN = re.compile(r"\r(?!\n)")
# The flags of England, Scotland and Wales are spelt in tag characters (Unicode Technical Standard 51, ED-14a).
_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f")


def odd_characters(texts: Iterable[str]) -> tuple[Occurrence, dict[Oddity, Occurrence]]:
    """Count texts with characters that ordinary text has no use for: of any kind, and by kind; every kind is there.

    What does not show is what a report makes visible (`rlhf.report.page.visible`); so the joiners U+200C and U+200D,
    which Persian and emoji need, do not count.
    """
    found: dict[Oddity, list[int]] = {oddity: [] for oddity in Oddity}
    anywhere = []
    for position, text in enumerate(texts):
        oddities = _oddities(text)
        if oddities:
            anywhere.append(position)
        for oddity in oddities:
            found[oddity].append(position)
    return _occurrence(anywhere), {oddity: _occurrence(positions) for oddity, positions in found.items()}


def _oddities(text: str) -> set[Oddity]:
    oddities = {_oddity(character) for character in set(INVISIBLE.findall(_FLAG.sub("", text))) - {"\r"}}
    if _LONE_CARRIAGE_RETURN.search(text):
        oddities.add(Oddity.LONE_CARRIAGE_RETURN)
    if not text.isascii():
        if "\ufffd" in text:
            oddities.add(Oddity.REPLACEMENT)
        if _MOJIBAKE.search(text):
            oddities.add(Oddity.MOJIBAKE)
        if _PRIVATE_USE.search(text):
            oddities.add(Oddity.PRIVATE_USE)
    return oddities


def _oddity(invisible: str) -> Oddity:
    """The kind of a character that does not show, by its Unicode properties."""
    if invisible == "\0":
        return Oddity.NUL
    category = unicodedata.category(invisible)
    if category in ("Cc", "Zl", "Zp"):
        return Oddity.CONTROL
    if category == "Cf" and unicodedata.bidirectional(invisible) not in ("BN", "ON"):
        return Oddity.BIDIRECTIONAL
    return Oddity.ZERO_WIDTH


def _occurrence(positions: Sequence[int]) -> Occurrence:
    return Occurrence(len(positions), tuple(positions[:EXAMPLES]))


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=LEAST_CONFIDENCE)
