"""What was found about a reward model, in plain sentences, and the verdict that follows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf.metrics import Accuracy, Share
from rlhf.words import count, listed, percent, signed

if TYPE_CHECKING:
    from rlhf.reward_trainer.findings import Findings

FOLLOWS_LENGTH = 0.5  # rank correlation from which on it is said
CHANGES = {
    "emptied": "An emptied response",
    "shuffled": "A response with its words shuffled",
    "repeated": "A response said over again",
}
"""What can be done to a response, and how a sentence about it begins."""

RULES = {
    "longer wins": "always taking the longer response",
    "shorter wins": "always taking the shorter response",
    "first wins": "always taking the first candidate",
    "second wins": "always taking the second candidate",
}
_COIN = math.log(2)

Statement = tuple[bool | None, str]
"""Good news (True), bad news (False) or neither (None), in a sentence or two."""


@dataclass(frozen=True)
class Verdict:
    """One or two words, a sentence, and whether they are good news (None: neither)."""

    word: str
    headline: str
    good: bool | None


def verdict(findings: Findings) -> Verdict:
    """Whether to believe the model.

    Not usable: every text has one score, or the accuracy's 95 % interval reaches down to one half, so that it is not
    shown to be better than a coin. Doubtful: it ignores the prompt, does not beat a rule of length, memorised, or does
    not punish an emptied response. Else usable.
    """
    if findings.constant:
        return Verdict("Not usable", "Every text gets the same score: the reward model prefers nothing.", False)
    ranks = f"{in_words(findings.accuracy)} of {count(findings.accuracy.pairs, 'held-out pair')}"
    if findings.accuracy.low <= 0.5:
        return Verdict("Not usable", f"It is not shown to be better than a coin: it ranks {ranks} right.", False)
    if doubts := _doubts(findings):
        return Verdict("Doubtful", f"It ranks {ranks} right, but it {listed(doubts)}.", None)
    return Verdict("Usable", f"It ranks {ranks} right.", True)


def statements(findings: Findings) -> list[Statement]:
    """What was found, the bad news first, then the good, then what is neither."""
    said = _training(findings)
    if findings.constant:
        said = [(False, "Every text gets the same score: the reward model tells nothing apart."), *said]
    else:
        said = [
            *_prompt(findings),
            *_baselines(findings),
            *_memorised(findings),
            *_sensitivity(findings),
            *_calibration(findings),
            *_length(findings),
            *_ties(findings),
            *_prompts(findings),
            *said,
        ]
    return sorted(said, key=lambda statement: (False, True, None).index(statement[0]))


def in_words(found: Accuracy) -> str:
    """For example: 61 % (95 % interval 59 % to 63 %)."""
    return Share(found.correct, found.pairs, found.rate, found.low, found.high).in_words()


def _doubts(findings: Findings) -> list[str]:
    emptied = findings.sensitivity.get("emptied")
    return [
        *(["ignores the prompt"] if findings.ignores_prompt else []),
        *(
            f'does not beat "{name}"'
            for name in ("longer wins", "shorter wins")
            if name in findings.baselines and not findings.baselines[name].beaten
        ),
        *(["memorised the pairs it trained on"] if findings.memorised else []),
        *(["does not punish an emptied response"] if emptied and emptied.punished is False else []),
    ]


def _prompt(findings: Findings) -> list[Statement]:
    if findings.accuracy_swapped is None:
        return [(None, f"{findings.not_exchanged}, so whether the reward model reads it is not known.")]
    right, swapped = findings.accuracy_unswapped.rate, findings.accuracy_swapped.rate
    figures = (
        f"{percent(right)} of the pairs are ranked right with their own prompts, {percent(swapped)} with those of "
        "other pairs."
    )
    if findings.unswappable:
        left_out = count(findings.unswappable, "pair")
        figures += f" Left out: {left_out} without room for another prompt in the model's positions."
    if findings.ignores_prompt:
        text = (
            "The reward model ignores the prompt: its scores say how a response looks, not whether it fits the prompt."
        )
        return [(False, f"{text} {figures}")]
    if findings.ignores_prompt is None:
        return [(None, f"Whether the reward model reads the prompt cannot be told from so few pairs. {figures}")]
    return [(True, f"The reward model reads the prompt. {figures}")]


def _baselines(findings: Findings) -> list[Statement]:
    said: list[Statement] = []
    if "longer wins" not in findings.baselines:
        said.append((None, 'The responses of each pair are as long as each other, so "longer wins" decides nothing.'))
    for name, found in findings.baselines.items():
        pairs = count(found.rule.of, "pair") + (" of unequal length" if "er wins" in name else "")
        figures = (
            f"{percent(found.model.rate)} right against {percent(found.rule.rate)} for {RULES[name]}, on {pairs} "
            f"(exact McNemar test, {_p(found.p)})."
        )
        if found.beaten:
            said.append((True, f'It beats "{name}": {figures}'))
        else:
            chance = " The difference may be chance." if found.model.hits > found.rule.hits else ""
            said.append((False, f'It does not beat "{name}": {figures}{chance}'))
    return said


def _memorised(findings: Findings) -> list[Statement]:
    if findings.memorised is None:
        return [(None, "No pair that it trained on was scored, so whether it memorised is not known.")]
    passes = f"{findings.training.passes:,.3g} {'pass' if findings.training.passes == 1 else 'passes'}"
    figures = (
        f"After {passes} over the training pairs it ranks {in_words(findings.accuracy_seen)} of the pairs that it "
        f"trained on right, and {in_words(findings.accuracy)} of the held-out pairs."
    )
    if findings.memorised:
        return [(False, f"It memorised: {figures[0].lower()}{figures[1:]}")]
    if findings.wide_gap:
        return [(None, f"It may have memorised; too few pairs were scored to tell. {figures}")]
    return [(True, f"It did not memorise. {figures}")]


def _sensitivity(findings: Findings) -> list[Statement]:
    said: list[Statement] = []
    for change, found in findings.sensitivity.items():
        is_punished = {True: "is punished", None: "is not always punished", False: "is not punished"}[found.punished]
        said.append(
            (
                found.punished,
                f"{CHANGES[change]} {is_punished}: the score falls in {found.falls.in_words()}, and changes by "
                f"{signed(found.mean_change)} on average.",
            )
        )
    return said


def _calibration(findings: Findings) -> list[Statement]:
    found = findings.calibration
    if found.ece is None:
        return []
    figures = (
        f"on average it is {percent(found.confidence)} sure of its preference, and right in {found.right.in_words()}"
    )
    above = (
        f" Its loss on held-out pairs, {findings.loss:.3g} nats, is above that of a coin, {_COIN:.3f}."
        if findings.loss > _COIN
        else ""
    )
    if found.leaning == "over":
        return [(False, f"It is over-confident: {figures}.{above}")]
    if found.leaning == "under":
        return [(None, f"It is under-confident: {figures}.{above}")]
    return [(None if above else True, f"It is about as sure as it is right: {figures}.{above}")]


def _length(findings: Findings) -> list[Statement]:
    found = findings.length["spearman_within"]
    if found is None or abs(found.value) < FOLLOWS_LENGTH:
        return []
    text = (
        f"Scores follow length: within a pair, the {'longer' if found.value > 0 else 'shorter'} response tends to "
        f"score higher (rank correlation of the differences {signed(found.value)})."
    )
    return [(None, text)]


def _ties(findings: Findings) -> list[Statement]:
    ties = findings.accuracy.ties
    return [(None, f"{count(ties, 'held-out pair')} scored alike, which counts as wrong.")] if ties else []


def _prompts(findings: Findings) -> list[Statement]:
    pairs = findings.accuracy.pairs
    if findings.prompts == pairs:
        return []
    text = (
        f"The {pairs:,} held-out pairs have {count(findings.prompts, 'prompt')}. Pairs of one prompt are like each "
        "other, and the interval of every share here is as wide as that makes it."
    )
    return [(None, text)]


def _training(findings: Findings) -> list[Statement]:
    training = findings.training
    said: list[Statement] = []
    if training.skipped_steps:
        text = (
            f"{training.skipped_steps:,} of {count(training.steps, 'step')} changed nothing, because loss or "
            "gradients were not finite."
        )
        said.append((False, text))
    if (step := findings.overfit_after) is not None:
        losses, selection = (training.history[tag] for tag in ("rank_loss", "reward_model/eval_loss"))
        kept = training.best_step <= step
        text = (
            f"Training overfitted from step {step:,} on: the loss on the selection pairs rose from "
            f"{dict(selection)[step]:.3g} to {selection[-1][1]:.3g} nats, while that on training batches ended at "
            f"{losses[-1][1]:.3g}. The model that is kept, of step {training.best_step:,}, is "
            f"{'from before that' if kept else 'from after that'}."
        )
        said.append((None if kept else False, text))
    if training.stopped_early:
        text = (
            f"Training stopped early, after {training.steps:,} of {training.planned_steps:,} steps, because the "
            f"selection pairs were no longer ranked better. The model of step {training.best_step:,}, their best, is "
            "kept."
        )
        said.append((None, text))
    elif training.best_step < training.steps:
        text = (
            f"Of {training.steps:,} steps, the model of step {training.best_step:,} is kept: the best on the selection "
            "pairs."
        )
        said.append((None, text))
    return said


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
