"""What only the demo knows: its gold score, held against what the pipeline says of itself.

No stage sees any of this. The driver computes it when the pipeline has ended, for the summary and the last section of
the report.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq

from examples.demo.posts import gold_score
from rlhf.metrics import Accuracy, WinRate, accuracy, ignores_prompt, win_rate
from rlhf.report import figures
from rlhf.report.page import Section, figure, figures_row, paragraph, tiles

FELL_BY = 0.5  # gold points below its peak at which a reward that did not fall is called over-optimised
WINDOW = 5  # updates that a point of the gold curve averages over


@dataclass(frozen=True)
class Gold:
    """Gold scores of the completions before and after tuning, of PPO's samples, and clean accuracies."""

    before: float
    after: float
    wins: WinRate
    clean: Accuracy
    clean_swapped: Accuracy
    gold_by_update: list[tuple[int, float]]
    reward_by_update: list[tuple[int, float]]

    @property
    def peak(self) -> tuple[int, float]:
        """Update and value at which the smoothed gold curve is highest."""
        return max(self.gold_by_update, key=lambda point: point[1])

    @property
    def over_optimised(self) -> bool:
        """The reward model's score did not fall after gold's peak, yet gold did (Gao et al. 2023, sec. 3)."""
        reward_at_peak = dict(self.reward_by_update)[self.peak[0]]
        return self.peak[1] - self.gold_by_update[-1][1] > FELL_BY and self.reward_by_update[-1][1] >= reward_at_peak


def measure(
    gold: dict[str, dict[str, Any]],
    preferences: Path,
    scores: Path,
    samples: Path,
    predictions_before: Path,
    predictions_after: Path,
) -> Gold:
    """Compare a run's outputs with the gold facts.

    Args:
        gold: As from `posts.load_gold`.
        preferences: The demo's own preference file, whose labels are noisy.
        scores: The reward trainer's scores of held-out pairs.
        samples: The PPO trainer's episodes through training.
        predictions_before, predictions_after: Files of bulk_inference.
    """

    def score(row: dict[str, Any], field: str) -> float:
        return gold_score(gold[row["id"]]["facts"], row[field])

    after = {row["id"]: score(row, "prediction") for row in _json_lines(predictions_after)}
    before = {row["id"]: score(row, "prediction") for row in _json_lines(predictions_before)}
    ids = sorted(before)
    given = {row["id"]: row["choice"] for row in _json_lines(preferences)}
    golds, rewards = defaultdict(list), defaultdict(list)
    for row in _json_lines(samples):
        golds[row["update"]].append(score(row, "completion"))
        rewards[row["update"]].append(row["score"])
    return Gold(
        before=fmean(before.values()),
        after=fmean(after.values()),
        wins=win_rate([before[i] for i in ids], [after[i] for i in ids]),
        clean=_clean_accuracy(scores, "score", given, gold),
        clean_swapped=_clean_accuracy(scores, "swapped", given, gold),
        gold_by_update=_smooth(golds),
        reward_by_update=_smooth(rewards),
    )


def section(gold: Gold, kl: float) -> Section:
    """The report's last section; `kl` is what PPO ended at, in nats a completion."""
    drop = gold.clean.rate - gold.clean_swapped.rate
    reads = (
        f"The reward model ignores the post: against clean labels it is right in {gold.clean.rate:.1%} with the right "
        f"posts and in {gold.clean_swapped.rate:.1%} with exchanged ones. It learned how a good summary looks, not "
        "whether it is true; that summaries stay faithful is owed to the policy it started from and the KL penalty."
        if ignores_prompt(gold.clean.rate, gold.clean_swapped.rate)
        else f"The reward model reads the post: against clean labels it is right in {gold.clean.rate:.1%} with the "
        f"right posts and in {gold.clean_swapped.rate:.1%} with exchanged ones, {100 * drop:.0f} points less."
    )
    peak_update, peak = gold.peak
    last = gold.gold_by_update[-1][1]
    optimised = (
        f"Over-optimisation: the reward model's score did not fall, but the gold score peaked at update {peak_update} "
        f"({peak:.2f}) and fell to {last:.2f}. The policy learned to please the reward model, not to summarise. A "
        "larger kl_coeff or fewer updates would have stopped in time."
        if gold.over_optimised
        else f"No over-optimisation: the gold score was highest at update {peak_update} ({peak:.2f}) and ended at "
        f"{last:.2f}."
    )
    body = (
        paragraph(
            "The demo's generator knows which facts each post hides. This gold score (facts carried, minus inventions, "
            "minus words beyond twelve; 5 is the best) was shown to no model and no stage."
        )
        + tiles(
            [
                ("Gold before", f"{gold.before:.2f}", "of 5"),
                ("Gold after", f"{gold.after:.2f}", f"of 5, at {kl:.1f} nats of KL"),
                ("Gold win rate", f"{gold.wins.rate:.0%}", f"95 % interval {gold.wins.low:.0%} to {gold.wins.high:.0%}")
                if gold.wins.rate is not None
                else ("Gold win rate", "–", "every pair is a tie"),
                ("Clean accuracy", f"{gold.clean.rate:.1%}", f"{gold.clean_swapped.rate:.1%} with posts exchanged"),
            ]
        )
        + paragraph(gold.wins.in_words()[0].upper() + gold.wins.in_words()[1:] + ", by gold score.")
        + paragraph(optimised)
        + paragraph(reads)
        + figures_row(
            [
                figure(
                    figures.lines("Gold score", {"gold score": gold.gold_by_update}, "update", "of 5"),
                    alt=f"Gold score of PPO's samples, peak {peak:.2f} at update {peak_update}, at the end {last:.2f}",
                    caption=f"What the summaries are worth: PPO's own samples, means over {WINDOW} updates.",
                ),
                figure(
                    figures.lines("Reward", {"reward model": gold.reward_by_update}, "update", "score"),
                    alt="Reward model's score of the same samples",
                    caption="What the reward model says of the same samples.",
                ),
            ]
        )
    )
    return Section("Gold: what no stage saw", body, "gold")


def _clean_accuracy(scores: Path, kind: str, given: dict[str, int], gold: dict[str, dict[str, Any]]) -> Accuracy:
    """Accuracy against the labels before noise: where the given label is wrong, the rejected text is the better."""
    better, worse = [], []
    for row in pq.read_table(scores).to_pylist():
        pair = row[f"{kind}_chosen"], row[f"{kind}_rejected"]
        right, wrong = pair if given[row["id"]] == gold[row["id"]]["choice"] else reversed(pair)
        better.append(right)
        worse.append(wrong)
    return accuracy(better, worse)


def _smooth(by_update: dict[int, list[float]]) -> list[tuple[int, float]]:
    """Trailing means over up to `WINDOW` updates."""
    updates = sorted(by_update)
    means = [fmean(by_update[update]) for update in updates]
    return [(update, fmean(means[max(0, i + 1 - WINDOW) : i + 1])) for i, update in enumerate(updates)]


def _json_lines(path: Path) -> list[dict[str, Any]]:
    with Path(path).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
