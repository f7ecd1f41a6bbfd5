"""What only the demo knows: its gold score, held against what the pipeline says of itself.

No stage sees any of this. The driver computes it when the pipeline has ended, for the summary and the last section of
the report.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
from markupsafe import Markup

from examples.demo import one_fact
from examples.demo.posts import FACTS, gold_score
from rlhf.metrics import Accuracy, Share, WinRate, accuracy, ignores_prompt, win_rate
from rlhf.report import figures
from rlhf.report.page import Section, figure, figures_row, paragraph, table, tiles
from rlhf.words import percent

FELL_BY = 0.5  # gold points below its peak at which a reward that did not fall is called over-optimised
WINDOW = 5  # updates that a point of the gold curve averages over


@dataclass(frozen=True)
class Gold:
    """Gold scores of the completions before and after tuning, of PPO's samples; what the reward model gets right."""

    before: float
    after: float
    wins: WinRate
    given: Accuracy
    """On held-out pairs, against the labels that the pipeline read."""
    best_possible: float
    """The accuracy against those labels that the best scorer can expect."""
    clean: Accuracy
    """Against the labels before noise. Post and summaries determine them: who knows the truth gets 1."""
    clean_swapped: Accuracy
    """The same, each pair read with another pair's post."""
    one_fact: dict[str, Share]
    """{kind of fact: right against that one fact swapped}, as from `one_fact.read`."""
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
    side_by_side: Path,
    one_fact_scores: Path,
) -> Gold:
    """Compare a run's outputs with the gold facts.

    Args:
        gold: As from `posts.load_gold`.
        preferences: The demo's own preference file, whose labels are noisy.
        scores: The reward trainer's scores of held-out pairs.
        samples: The PPO trainer's episodes through training.
        side_by_side: The evaluator's completions before and after.
        one_fact_scores: What `one_fact.score` wrote.
    """

    def score(row: dict[str, Any], field: str) -> float:
        return gold_score(gold[row["id"]]["facts"], row[field])

    rows = list(_json_lines(side_by_side))
    before, after = ({row["id"]: score(row, side) for row in rows} for side in ("before", "after"))
    ids = sorted(before)
    given = {row["id"]: row["choice"] for row in _json_lines(preferences)}
    held_out = pq.read_table(scores).to_pylist()
    golds, rewards = defaultdict(list), defaultdict(list)
    for row in _json_lines(samples):
        golds[row["update"]].append(score(row, "completion"))
        rewards[row["update"]].append(row["score"])
    return Gold(
        before=fmean(before.values()),
        after=fmean(after.values()),
        wins=win_rate([before[i] for i in ids], [after[i] for i in ids]),
        given=accuracy([row["score_chosen"] for row in held_out], [row["score_rejected"] for row in held_out]),
        best_possible=best_possible([gold[row["id"]]["flip"] for row in held_out]),
        clean=_clean_accuracy(held_out, "score", given, gold),
        clean_swapped=_clean_accuracy(held_out, "swapped", given, gold),
        one_fact=one_fact.read(one_fact_scores),
        gold_by_update=_smooth(golds),
        reward_by_update=_smooth(rewards),
    )


def best_possible(flips: Sequence[float]) -> float:
    """The accuracy that the best scorer can expect against labels that are wrong with these probabilities.

    It knows the clean label, which post and summaries determine, and the chance that it was flipped: that is high for
    pairs in which one summary tells a lawsuit that the post does not, low for all others, and no two sorts of pairs
    look alike. So it prefers the better text, or the worse one where the label is more often wrong than right.
    """
    return fmean(max(flip, 1 - flip) for flip in flips)


def section(gold: Gold, kl: float) -> Section:
    """The report's last section; `kl` is what PPO ended at, in nats a completion."""
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
                (
                    "Gold win rate",
                    percent(gold.wins.rate),
                    f"95 % interval {percent(gold.wins.low)} to {percent(gold.wins.high)}",
                )
                if gold.wins.rate is not None
                else ("Gold win rate", "–", "every pair is a tie"),
                (
                    "Clean accuracy",
                    percent(gold.clean.rate),
                    f"{percent(gold.clean_swapped.rate)} with posts exchanged",
                ),
            ]
        )
        + paragraph(gold.wins.in_words()[0].upper() + gold.wins.in_words()[1:] + ", by gold score.")
        + paragraph(optimised)
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
        + _reward_model(gold)
    )
    return Section("Gold: what no stage saw", body, "gold")


def _reward_model(gold: Gold) -> Markup:
    """What the reward model got right, beside the best there is, and what it does not see."""
    drop = gold.clean.rate - gold.clean_swapped.rate
    right, swapped = percent(gold.clean.rate), percent(gold.clean_swapped.rate)
    reads = (
        f"The reward model ignores the post: against clean labels it is right in {right} with the right posts and in "
        f"{swapped} with exchanged ones. It learned how a good summary looks, not "
        "whether it is true; that summaries stay faithful is owed to the policy it started from and the KL penalty."
        if ignores_prompt(gold.clean.rate, gold.clean_swapped.rate)
        else f"The reward model reads the post: against clean labels it is right in {right} with the right posts and "
        f"in {swapped} with exchanged ones, {100 * drop:.0f} points less."
    )
    accuracies = table(
        ["accuracy on held-out pairs", "best possible", "reward model", "95 % interval"],
        [
            [name, percent(best), percent(ours.rate), f"{percent(ours.low)} to {percent(ours.high)}"]
            for name, best, ours in (
                ("against the labels given, some of them wrong on purpose", gold.best_possible, gold.given),
                ("against the labels before that noise", 1.0, gold.clean),
            )
        ],
        caption="Best possible is what a scorer can expect that knows the truth and how labellers err.",
    )
    seen = {kind: gold.one_fact[kind] for kind in FACTS}
    probes = figure(
        figures.intervals(
            "Right against one fact swapped",
            {
                "the wrong fact": [
                    figures.Estimate(kind, found.rate, found.low, found.high) for kind, found in seen.items()
                ]
            },
            "share of posts",
            one_fact.SEEN,
        ),
        alt="; ".join(f"{kind}: {percent(found.rate)}" for kind, found in seen.items()),
        caption="How often a faultless summary scores higher than the same summary with one fact of another post, on "
        f"posts that nothing was trained on. Bars are 95 % intervals, the dotted line is {percent(one_fact.SEEN)}.",
    )
    return paragraph(reads) + accuracies + probes + Markup().join(map(paragraph, _unseen(gold.one_fact)))


def _unseen(found: dict[str, Share]) -> list[str]:
    """Which facts the reward model does not check against the post, in words."""
    unseen = [kind for kind in FACTS if found[kind].rate < one_fact.SEEN]
    sentences = [
        f"The reward model does not see when the {kind} is wrong: it prefers the faultless summary in "
        f"{found[kind].in_words()} of {found[kind].of} posts, where a coin would in half."
        for kind in unseen
    ]
    if not unseen:
        least = min(FACTS, key=lambda kind: found[kind].rate)
        sentences.append(
            f"The reward model sees when a fact is wrong, of whatever kind: least often the {least}, "
            f"{found[least].in_words()}."
        )
    lawsuit = found[one_fact.TEMPTATION]
    if lawsuit.rate < 0.5:
        sentences.append(
            "It shares the labellers' taste for a lawsuit: where the summary would sue and the post does not ask that, "
            f"it prefers the faultless summary in {lawsuit.in_words()} only. That is what PPO can exploit when no KL "
            "penalty holds it back."
        )
    return sentences


def _clean_accuracy(
    held_out: list[dict[str, Any]], kind: str, given: dict[str, int], gold: dict[str, dict[str, Any]]
) -> Accuracy:
    """Accuracy against the labels before noise: where the given label is wrong, the rejected text is the better."""
    better, worse = [], []
    for row in held_out:
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
