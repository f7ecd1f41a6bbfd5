"""Whether completions are healthy texts, whatever a judge thinks of them: signs that a model games its reward.

A *word* is a run of letters, digits or underscores, in lower case. In scripts without spaces that is a whole phrase, so
measures of repetition, copying and variety compare phrases there.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import log2
from statistics import fmean

from rlhf.metrics import Share, share
from rlhf.words import listed, percent

# Changes that are worth a warning.
TRUNCATED = 0.05  # share of completions
REPETITION = 0.05  # share of 4-grams
COPIED = 0.1  # share of 4-grams
ENTROPY = 0.5  # bits
DISTINCT = 0.8  # after / before
LENGTH = 0.2  # |after / before - 1|


@dataclass(frozen=True)
class Health:
    """What completions look like. None where no completion is long enough to say."""

    words: float
    """Mean over completions."""
    ended: float | None
    """Share of completions that end by themselves; None where that was not written down for all."""
    empty: float
    """Share of completions that are blank."""
    repetition: float | None
    """Share of a completion's 4-grams of words that it had before, mean over completions (seq-rep-4 of Welleck et al.
    2020, over words in place of tokens)."""
    copied: float | None
    """Share of a completion's 4-grams of words that stand in its prompt, mean over completions."""
    distinct_1: float | None
    """Different words in all completions / words (Li et al. 2016, distinct-1). It falls as texts become more or
    longer, so compare only models on the same prompts, and look at `words`."""
    distinct_2: float | None
    """Different pairs of words in all completions / words (distinct-2; Li et al. divide by words here, too)."""
    entropy: float
    """Of the words of all completions together, in bits."""

    @property
    def truncated(self) -> float | None:
        """Share of completions that were cut off where they might have gone on."""
        return None if self.ended is None else 1 - self.ended


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def health(prompts: Sequence[str], completions: Sequence[str], ended: Sequence[bool | None]) -> Health:
    """Measure one model's completions.

    Args:
        prompts, completions: By position.
        ended: Whether each completion ended by itself, not at the limit of tokens; None where nobody wrote it down.

    Raises:
        ValueError: The three are not of one length, or empty.
    """
    rows = list(zip(prompts, completions, ended, strict=True))
    if not rows:
        raise ValueError("completions: found none, expected at least one")
    said = [words(completion) for completion in completions]
    runs = [(_grams(words(prompt), 4), _grams(text, 4)) for prompt, text in zip(prompts, said, strict=True)]
    runs = [(set(known), grams) for known, grams in runs if grams]
    counts = Counter(chain.from_iterable(said))
    total = counts.total()
    return Health(
        words=total / len(rows),
        ended=None if None in ended else fmean(ended),
        empty=fmean(not completion.strip() for completion in completions),
        repetition=_mean(1 - len(set(grams)) / len(grams) for _, grams in runs),
        copied=_mean(fmean(gram in known for gram in grams) for known, grams in runs),
        distinct_1=len(counts) / total if total else None,
        distinct_2=len(set(chain.from_iterable(_grams(text, 2) for text in said))) / total if total else None,
        entropy=-sum(count / total * log2(count / total) for count in counts.values()) + 0.0,
    )


def _grams(text: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(text[start:] for start in range(n)), strict=False))


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None


def beyond(scores: Sequence[float], low: float, high: float) -> Share:
    """How many scores are outside what the reward model gave in its training, where nobody knows what they mean.

    Args:
        low, high: The range; its ends are inside. A score that is not a number is outside.
    """
    return share(sum(not low <= score <= high for score in scores), len(scores))


def disagreements(by_judge: Mapping[str, float]) -> list[str]:
    """Sentences on judges that part; none if all say the same.

    Args:
        by_judge: {"ROUGE-L", "reward model", "judge gpt-x" ...: mean change, after minus before}. 0 says neither, and
            so should be passed where the change is not shown.
    """
    up = [judge for judge, change in by_judge.items() if change > 0]
    down = [judge for judge, change in by_judge.items() if change < 0]
    if not up or not down:
        return []
    said = [f"By {_listed(up)} the tuned model is better, by {_listed(down)} it is worse."]
    alone = next((side for side in (up, down) if all(map(_of_overlap, side))), None)
    if alone:
        said.append(
            f"{_listed(alone)} can only say how much a text has in common with one human text. That often falls when a "
            "model is tuned on preferences, and decides nothing here; read the texts side by side for what was lost."
        )
    if "reward model" in up and not all(map(_of_overlap, down)):
        said.append(
            "Tuning raised what the reward model gives, so where another judge contradicts it, the policy may have "
            "learned its weaknesses in place of what people want. Believe the other judge until people have looked."
        )
    return said


def _of_overlap(judge: str) -> bool:
    return judge.upper().startswith(("ROUGE", "BLEU", "CHRF", "BERTSCORE"))


def remarks(before: Health, after: Health) -> list[tuple[str, bool]]:
    """What changed in the completions: (sentence, whether it is a warning), warnings first."""
    warnings, others = [], []
    if after.empty:
        warnings.append(
            f"{percent(after.empty)} of the tuned model's completions are empty, {percent(before.empty)} before tuning."
        )
    known = None not in (before.truncated, after.truncated)
    if known and after.truncated - before.truncated > TRUNCATED:
        warnings.append(
            f"{percent(after.truncated)} of the completions are cut off at the limit of tokens, "
            f"{percent(before.truncated)} before tuning: the model has become worse at stopping."
        )
    # Completions too short for four words repeat nothing; whether they copy is not known.
    repetition = before.repetition or 0.0
    if after.repetition is not None and after.repetition - repetition > REPETITION:
        warnings.append(
            f"The tuned model repeats itself: of the runs of four words in a completion, {percent(after.repetition)} "
            f"stood in it before, {percent(repetition)} before tuning."
        )
    if None not in (before.copied, after.copied) and after.copied - before.copied > COPIED:
        warnings.append(
            f"The tuned model copies from the prompt: of the runs of four words in a completion, "
            f"{percent(after.copied)} stand in its prompt, {percent(before.copied)} before tuning."
        )
    if _monotonous(before, after):
        warnings.append(
            f"The tuned model's completions have become alike: {after.entropy:.1f} bits a word and "
            f"{after.distinct_2:.2f} different pairs of words a word, against {before.entropy:.1f} and "
            f"{before.distinct_2:.2f} before tuning."
        )
    growth = after.words / before.words - 1 if before.words else 0.0
    if abs(growth) > LENGTH:
        others.append(
            f"Completions became {percent(abs(growth))} {'longer' if growth > 0 else 'shorter'}: {after.words:.1f} "
            f"words on average, {before.words:.1f} before tuning."
        )
    if not warnings and not others:
        others.append(
            "Nothing in the completions alarms: none is empty, and they are not "
            f"{'cut off, ' if known else ''}repetitive, copied from the prompt or alike more than before tuning."
        )
    return [(sentence, True) for sentence in warnings] + [(sentence, False) for sentence in others]


def _monotonous(before: Health, after: Health) -> bool:
    if not before.distinct_2 or after.distinct_2 is None:
        return False
    # Longer texts have fewer different pairs a word by themselves, and no less entropy.
    fewer = after.words <= before.words and after.distinct_2 / before.distinct_2 < DISTINCT
    return fewer or before.entropy - after.entropy > ENTROPY


def _listed(names: Sequence[str]) -> str:
    return listed(["the " + name if name in ("reward model", "grader") else name for name in names])
