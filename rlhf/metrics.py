"""Measures that stages share, each defined once. Nothing here needs torch."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from rlhf.words import count, percent

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@dataclass(frozen=True)
class Share:
    """Hits of so many, with its 95 % Wilson interval; all three None of nothing."""

    hits: int
    of: int
    rate: float | None
    low: float | None
    high: float | None

    def in_words(self) -> str:
        """For example: 61 % (95 % interval 59 % to 63 %)."""
        if self.rate is None:
            return "not known"
        return f"{percent(self.rate)} (95\u00a0% interval {percent(self.low)} to {percent(self.high)})"


def share(hits: int, of: int, worth: float | None = None) -> Share:
    """hits / of with its 95 % interval after Wilson 1927, which keeps its promise near 0 and 1 and for few.

    Args:
        worth: Of how many independent ones it is worth (`independent`); None for all.
    """
    return Share(hits, of, *_share(hits, of, worth))


def independent(hits: Sequence[bool], groups: Sequence[Hashable]) -> float:
    """Of how many independent rows a share is worth, where rows of one group are like each other.

    Rows / design effect, the variance over groups beside that of independent rows (Kish 1965, "Survey Sampling",
    sec. 5.4), at most all rows: 36 pairs that one person's ranking of one prompt gives are not 36 witnesses. A share of
    0 or 1 has no variance, and is worth as many as there are groups.

    Args:
        groups: By position; the same for rows that go together.
    """
    rate, sums = fmean(map(bool, hits)), Counter()
    for hit, group in zip(hits, groups, strict=True):
        sums[group] += bool(hit) - rate
    rows, of_groups = len(hits), len(sums)
    if of_groups == rows or of_groups < 2 or rate in (0, 1):
        return float(of_groups)
    effect = of_groups / (of_groups - 1) * sum(each * each for each in sums.values()) / (rows * rate * (1 - rate))
    return rows / max(1.0, effect)


@dataclass(frozen=True)
class Rouge:
    """ROUGE F measures by type (`ROUGE_TYPES`), each in [0, 1]."""

    rows: dict[str, list[float]]
    """{type: one value per row, in the order given}."""

    @property
    def mean(self) -> dict[str, float]:
        """{type: mean over rows}; empty without rows."""
        return {kind: fmean(values) for kind, values in self.rows.items() if values}


def rouge(
    predictions: Sequence[str], references: Sequence[str], stemming: bool = False, processes: int | None = None
) -> Rouge:
    """ROUGE (Lin 2004) as computed by rouge-score, Google's reimplementation of the original Perl script.

    Args:
        predictions, references: Texts that belong together by position.
        stemming: Reduce words to their Porter stems first. Published figures differ in this: `evaluate` does not.
        processes: At most so many work on it, if it is much; None: one for each core.

    Raises:
        ValueError: The two are not of one length.
    """
    from rlhf.rouge import f_measures

    rows = f_measures(predictions, references, stemming, processes)
    return Rouge({kind: [row[place] for row in rows] for place, kind in enumerate(ROUGE_TYPES)})


@dataclass(frozen=True)
class WinRate:
    """Wins over decided pairs, with its 95 % Wilson interval; all three None when no pair is decided."""

    wins: int
    losses: int
    ties: int
    rate: float | None
    low: float | None
    high: float | None

    def in_words(self) -> str:
        if self.rate is None:
            return f"no pair is decided ({count(self.ties, 'tie')}), so there is no win rate"
        return (
            f"{self.wins:,} of {count(self.wins + self.losses, 'decided pair')} won: {percent(self.rate)}, "
            f"95\u00a0% interval {percent(self.low)} to {percent(self.high)}; "
            f"{count(self.ties, 'tie') + ' apart' if self.ties else 'no ties'}"
        )


def win_rate(before: Sequence[float], after: Sequence[float], tie_margin: float = 0.0) -> WinRate:
    """How often `after` scores higher than `before`: wins / (wins + losses), ties stated apart.

    Args:
        before, after: Finite scores of the same prompts, by position.
        tie_margin: Differences up to this, in the score's unit, are ties.

    Raises:
        ValueError: The two are not of one length.
    """
    margins = [b - a for a, b in zip(before, after, strict=True)]
    return win_rate_of([0.5 if abs(margin) <= tie_margin else float(margin > 0) for margin in margins])


def win_rate_of(outcomes: Sequence[float | None]) -> WinRate:
    """The same of what a judge said of each pair.

    Args:
        outcomes: Above 0.5 where after wins, 0.5 for a tie, None where nobody judged.
    """
    wins = sum(outcome is not None and outcome > 0.5 for outcome in outcomes)
    losses = sum(outcome is not None and outcome < 0.5 for outcome in outcomes)
    return WinRate(wins, losses, list(outcomes).count(0.5), *_share(wins, wins + losses))


@dataclass(frozen=True)
class Accuracy:
    """Share of pairs whose chosen completion scores higher, with its 95 % Wilson interval; None without pairs."""

    correct: int
    pairs: int
    ties: int
    rate: float | None
    low: float | None
    high: float | None


def accuracy(chosen: Sequence[float], rejected: Sequence[float], prompts: Sequence[Hashable] | None = None) -> Accuracy:
    """Pairwise accuracy of a reward model.

    An exact tie counts as wrong, as in TRL's RewardTrainer: a model that gives every text one score prefers nothing
    and gets 0, not 0.5. Ties are stated beside it.

    Args:
        chosen, rejected: Scores of the two completions of each pair, by position.
        prompts: What stands for each pair's prompt: pairs of one prompt are not independent. None: each has its own.

    Raises:
        ValueError: They are not of one length.
    """
    pairs = list(zip(chosen, rejected, strict=True))
    right = [c > r for c, r in pairs]
    ties = sum(c == r for c, r in pairs)
    worth = None if prompts is None or not pairs else independent(right, prompts)
    return Accuracy(sum(right), len(pairs), ties, *_share(sum(right), len(pairs), worth))


def ignores_prompt(accuracy: float, accuracy_swapped: float) -> bool:
    """Whether a reward model loses at most 5 points of accuracy when pairs are read with other pairs' prompts.

    Such a model judges how a completion looks, not whether it fits what was asked.
    """
    return accuracy - accuracy_swapped <= 0.05


def then_and_now(series: Sequence[tuple[int, float]], step: int) -> tuple[float, float]:
    """Where a logged series had come by a step, and where it ended, noise apart (`late_mean`)."""
    until = [point for point in series if point[0] <= step] or series[:1]
    return late_mean(until), late_mean(series)


def late_mean(series: Sequence[tuple[int, float]]) -> float:
    """Mean of the last tenth of a logged series, at least one value: where training ended, less its noise."""
    return fmean(value for _, value in series[-max(1, len(series) // 10) :])


def _share(hits: int, of: int, worth: float | None = None) -> tuple[float, float, float] | tuple[None, None, None]:
    # Wilson's closed form, for SciPy, which has it, is larger than the whole image of data validation may be.
    if not of:
        return None, None, None
    z = NormalDist().inv_cdf(0.975)
    rate, n = hits / of, of if worth is None else worth
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # Rounding must not put the rate of none, or of all, outside.
    return rate, max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))
