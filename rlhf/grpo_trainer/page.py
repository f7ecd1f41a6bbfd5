"""The page of a trainer by groups: what happened to the policy in words, then curves, then what it said on the way."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rlhf.grpo_trainer.alarms import ADVICE
from rlhf.metrics import late_mean
from rlhf.report import figures
from rlhf.report.page import (
    Comparison,
    Page,
    Section,
    comparisons,
    figure,
    figures_row,
    fold,
    paragraph,
    table,
    tiles,
    verdict,
    write_page,
)
from rlhf.training.alarms import Alarm, History
from rlhf.words import percent, three

ENDS = 0.95  # share of completions from which a policy is said to end them, as in the other trainers' reports
MOST_TIMES = 3  # completions of one prompt, side by side
MOST_PARTS = 5  # of one plot
ERRORS = 2  # standard errors between two means of the held-out prompts that are more than chance

NAMES = {"grpo": "group relative policy optimisation", "rloo": "REINFORCE with a leave-one-out baseline"}

Series = Sequence[tuple[int, float]]


def write_report(
    path: str | Path,
    algorithm: str,
    metrics: Mapping[str, float],
    history: History,
    samples: Sequence[Mapping[str, Any]],
    examples: Sequence[Mapping[str, Any]],
    alarms: Sequence[Alarm],
    facts: Mapping[str, Any],
) -> None:
    """Write the page.

    Args:
        algorithm: A key of `NAMES`.
        metrics: As the stage returns them.
        history: {tag: [(update, value), ...]}, by TensorBoard tag.
        samples: `update, id, completion, score` of training; of the last update the best and the worst are shown.
        examples: The same of held-out prompts through training, with `prompt`.
        facts: {what: value} of models, graders and options.
    """
    seen = {tag: [(x, y) for x, y in points if math.isfinite(y)] for tag, points in history.items()}
    seen = {tag: points for tag, points in seen.items() if points}
    sections = [
        Section("In short", _verdict(metrics, seen, alarms), "verdict"),
        Section("Training", figures_row(_figures(seen, alarms)), "training"),
    ]
    if examples:
        sections.append(Section("Completions through training", _through_training(examples), "completions"))
    if samples:
        sections.append(Section("Best and worst of the last samples", _ends(samples), "samples"))
    body = table(["of this run", ""], facts.items()) if facts else Markup("")
    body += fold("Measures", table(["measure", "value"], metrics.items(), "As logged for KFP."))
    sections.append(Section("Numbers", body, "numbers"))
    subtitle = f"{metrics['updates']:,} updates of {NAMES[algorithm]}, {metrics['completions']:,} completions."
    write_page(path, Page(f"{algorithm.upper()} trainer", subtitle, sections))


def _verdict(metrics: Mapping[str, float], seen: Mapping[str, Series], alarms: Sequence[Alarm]) -> Markup:
    held_out, error = seen.get("eval/grade"), seen.get("eval/grade_error")
    if held_out:
        before, after = held_out[0][1], held_out[-1][1]
        noise = ERRORS * math.hypot(error[0][1], error[-1][1]) if error else 0.0
        where = "on prompts that it was not trained on"
    else:
        before, after, noise = metrics["grade_before"], metrics["grade_after"], 0.0
        where = "on the prompts that it was trained on"
    went = f"The mean grade {where} went from {three(before)} to {three(after)}"
    if "kl" in metrics:
        went += f", at a KL of {three(metrics['kl'])} nats a completion from the policy that it started from"
    if after - before <= noise:
        word, good, headline = "No gain", False, f"{went}: no more than chance can do."
    elif alarms:
        word, good, headline = "Doubtful", None, f"{went}, but not all is well."
    else:
        word, good, headline = "Learned", True, f"{went}."
    reasons: list[tuple[bool | None, str]] = [
        (False, f"Update {alarm.update:,}: {alarm.words} {ADVICE[alarm.kind]}") for alarm in alarms
    ]
    if not alarms:
        reasons.append((True, "No alarm was raised: groups, spread, KL, length and ends stayed within bounds."))
    share = metrics["no_signal"]
    reasons.append((None, f"In {percent(share)} of the last groups all completions got one grade: no signal."))
    ended = metrics["ended"]
    reasons.append((ended >= ENDS, f"{percent(ended)} of its completions end by themselves."))
    for key, text in (
        ("bad_grades", "completions got no finite grade and were left out"),
        ("skipped_steps", "optimiser steps had a loss or gradient that is not finite, and were skipped"),
    ):
        if count := metrics.get(key):
            reasons.append((False, f"{count:,} {text}."))
    if count := metrics.get("not_judged"):
        reasons.append((None, f"{count:,} completions were judged by no grader and left out."))
    if cut := metrics.get("prompts_cut"):
        reasons.append((None, f"{percent(cut)} of the prompts are longer than prompt_sequence_length and were cut."))
    reasons.append((None, "A grade says what the grader rewards: read the completions, and try it with `rlhf grade`."))
    cards = [
        (label, three(points[-1][1] if tag.startswith("eval/") else late_mean(points)), unit)
        for tag, label, unit in (
            ("grpo/grade", "grade", "of the last updates' completions"),
            ("eval/grade", "grade, held out", "at the end"),
            ("grpo/kl", "KL", "nats a completion"),
            ("grpo/no_signal", "no signal", "share of groups"),
            ("grpo/length", "length", "tokens"),
        )
        if (points := seen.get(tag))
    ]
    return verdict(word, headline, reasons, good) + tiles(cards)


def _figures(seen: Mapping[str, Series], alarms: Sequence[Alarm]) -> list[Markup]:
    parts = {tag.removeprefix("grpo/grade/"): points for tag, points in seen.items() if tag.startswith("grpo/grade/")}
    plots = [
        (
            "Grade",
            {"training prompts": seen.get("grpo/grade"), "held-out prompts": seen.get("eval/grade")},
            "mean grade",
            "Where the two part, the policy learns its prompts by heart.",
            {"held_out", "bad_grades"},
        ),
        (
            "Groups without a signal",
            {"groups": seen.get("grpo/no_signal")},
            "share",
            "All completions of the prompt got one grade, so that none is better than the others.",
            {"no_signal"},
        ),
        (
            "Spread within groups",
            {"spread": seen.get("grpo/spread")},
            "standard deviation",
            "Of the grades of one prompt's completions, on average: what there is to learn from.",
            {"spread"},
        ),
        (
            "KL",
            {"KL": seen.get("grpo/kl")},
            "nats a completion",
            "How far the policy is from the one that training started from.",
            {"kl"},
        ),
        ("Entropy", {"entropy": seen.get("grpo/entropy")}, "nats a token", "How freely it chooses its words.", set()),
        (
            "Length",
            {"training prompts": seen.get("grpo/length"), "held-out prompts": seen.get("eval/length")},
            "tokens",
            "Mean length of completions.",
            {"length"},
        ),
        (
            "Completions that end",
            {"training prompts": seen.get("grpo/ended"), "held-out prompts": seen.get("eval/ended")},
            "share",
            "By themselves, before they are cut off.",
            {"cut_off"},
        ),
        (
            "What the grade is made of",
            dict(list(parts.items())[:MOST_PARTS]) if len(parts) > 1 else {},
            "mean",
            "Before weights. Where one rises and another falls, the policy trades them.",
            set(),
        ),
    ]
    drawn = []
    for title, series, y_label, caption, kinds in plots:
        shown = {label: points for label, points in series.items() if points}
        if not shown:
            continue
        marks: dict[int, list[str]] = defaultdict(list)
        for alarm in alarms:
            if alarm.kind in kinds:
                marks[alarm.update].append(alarm.kind.replace("_", " "))
        ends = "; ".join(f"{label} from {three(p[0][1])} to {three(late_mean(p))}" for label, p in shown.items())
        alarmed = "".join(f" Alarm at update {update:,}: {', '.join(names)}." for update, names in marks.items())
        ringed = {update: ", ".join(names) for update, names in marks.items()}
        drawn.append(
            figure(
                figures.lines(title, shown, "update", y_label, marks=ringed),
                alt=f"{title} by update: {ends}.{alarmed}",
                caption=caption,
            )
        )
    return drawn


def _through_training(examples: Sequence[Mapping[str, Any]]) -> Markup:
    by_prompt: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for example in examples:
        by_prompt[str(example["id"])].append(example)
    shown = []
    for said in by_prompt.values():
        places = sorted({round(i * (len(said) - 1) / (MOST_TIMES - 1)) for i in range(MOST_TIMES)})
        columns = [
            (f"Update {said[i]['update']:,}", said[i]["completion"], f"grade {three(said[i]['score'])}") for i in places
        ]
        outcome = f"grade {three(said[0]['score'])} → {three(said[-1]['score'])}"
        shown.append(Comparison("Held out", str(said[0]["id"]), outcome, None, said[0].get("prompt", ""), columns))
    intro = "The same held-out prompts through training. They were not chosen by how they came out."
    return paragraph(intro) + comparisons(shown)


def _ends(samples: Sequence[Mapping[str, Any]]) -> Markup:
    last = max(sample["update"] for sample in samples)
    known = [sample for sample in samples if sample["update"] == last and sample["score"] is not None]
    known.sort(key=lambda sample: sample["score"])
    rows = [(s["score"], str(s["id"]), s["completion"]) for s in [*known[:-6:-1], *known[:5][::-1]]]
    return table(["grade", "id", "completion"], rows, f"Of update {last:,}: what the grader likes best, and least.")
