"""The PPO trainer's page: what happened to the policy in words, then the curves, then what it said on the way."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rlhf.metrics import late_mean
from rlhf.ppo.alarms import ADVICE, Alarm, noise
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
from rlhf.training.alarms import History
from rlhf.words import percent, three

ENDS = 0.95  # share of completions from which a policy is said to end them, as in the SFT report
MOST_PROMPTS = 6
MOST_TIMES = 3  # completions of one prompt, side by side
_MOST_SERIES = 5  # of one plot
_PHASES = ("rollout", "score", "evaluate", "optimise")

Series = list[tuple[int, float]]


def write_report(
    path: str | Path,
    metrics: Mapping[str, float],
    history: History,
    examples: Sequence[Mapping[str, Any]],
    alarms: Sequence[Alarm],
    facts: Mapping[str, Any],
) -> None:
    """Write the page.

    Args:
        path: HTML file, made with the folders above it.
        metrics: As the stage returns them; `updates` and `episodes` at least. `planned_updates`, where it is larger,
            says that an alarm ended the run.
        history: {tag: [(update, value), ...]}, by TensorBoard tag; any may be missing.
        examples: `update, id, completion, score` and, where known, `kl` and `prompt`, in order.
        alarms: In the order raised.
        facts: {what: value} of models, rewards and options, shown in the order given.
    """
    seen = {tag: [(x, y) for x, y in points if math.isfinite(y)] for tag, points in history.items()}
    seen = {tag: points for tag, points in seen.items() if points}
    sections = [
        Section("In short", _verdict(metrics, seen, alarms), "verdict"),
        Section("Reward and what it cost", figures_row(_outcome(seen, alarms)), "training"),
        Section("How it was trained", figures_row(_optimisation(seen, alarms)), "optimisation"),
    ]
    if examples:
        sections.append(Section("Completions through training", _completions(examples), "completions"))
    sections.append(Section("Numbers", _numbers(metrics, facts), "numbers"))
    subtitle = f"{metrics['updates']:,} updates of proximal policy optimisation, {metrics['episodes']:,} episodes."
    write_page(path, Page("PPO trainer", subtitle, sections))


def _verdict(metrics: Mapping[str, float], seen: Mapping[str, Series], alarms: Sequence[Alarm]) -> Markup:
    reward = seen.get("ppo/reward")
    if not reward:
        return verdict("Not known", "No reward was logged.", _alarms(alarms), None)
    before, after = reward[0][1], late_mean(reward)
    rose = after - before > noise(seen, metrics["episodes"] / max(metrics["updates"], 1))
    went = f"The mean reward went from {three(before)} to {three(after)}"
    if "ppo/kl" in seen:
        went += (
            f", at a KL of {three(late_mean(seen['ppo/kl']))} nats a completion from the policy that it started from"
        )
    if any(alarm.over_optimised for alarm in alarms):
        word, good = "Over-optimised", False
        headline = f"{went}. It rose in ways that say that the policy games what rewards it."
    elif not rose:
        word, good, headline = "No gain", False, f"{went}: no more than chance can do."
    elif alarms:
        word, good, headline = "Doubtful", None, f"{went}, but not all is well."
    else:
        word, good, headline = "Learned", True, f"{went}."
    reasons = [*_alarms(alarms), *_reasons(metrics, seen)]
    return verdict(word, headline, reasons, good) + tiles(_tiles(seen))


def _alarms(alarms: Sequence[Alarm]) -> list[tuple[bool | None, str]]:
    if not alarms:
        return [(True, "No alarm was raised: KL, entropy, length, ends, rewards and critic stayed within bounds.")]
    return [(False, f"Update {alarm.update:,}: {alarm.words} {ADVICE[alarm.kind]}") for alarm in alarms]


def _reasons(metrics: Mapping[str, float], seen: Mapping[str, Series]) -> list[tuple[bool | None, str]]:
    said: list[tuple[bool | None, str]] = []
    if metrics.get("planned_updates", 0) > metrics["updates"]:
        text = f"The alarm ended the run after {metrics['updates']:,} of {metrics['planned_updates']:,} updates."
        said.append((None, text))
    if held_out := seen.get("eval/reward"):
        change = f"from {three(held_out[0][1])} to {three(held_out[-1][1])}"
        said.append((None, f"On prompts that it was not trained on the reward went {change}."))
    if "ppo/kl" not in seen:
        said.append((None, "How far it went from the policy that it started from was not measured."))
    if length := seen.get("ppo/length"):
        change = f"from {three(length[0][1])} to {three(late_mean(length))} tokens"
        said.append((None, f"The mean completion went {change}."))
    if ended := seen.get("ppo/ended"):
        share = late_mean(ended)
        text = f"{percent(share)} of its completions end by themselves; others are cut off."
        if share == 1:
            text = "All its completions end by themselves."
        said.append((share >= ENDS, text))
    for key, text in (
        ("bad_rewards", "episodes had no finite reward and were left out"),
        ("skipped_steps", "optimiser steps had a loss or gradient that is not finite, and were skipped"),
    ):
        if count := metrics.get(key):
            said.append((False, f"{count:,} {text}."))
    if count := metrics.get("not_judged"):
        said.append((None, f"{count:,} episodes were judged by nothing and left out."))
    if cut := metrics.get("prompts_cut"):
        said.append((None, f"{percent(cut)} of the prompts are longer than prompt_sequence_length and were cut."))
    said.append((None, "Whether people would agree that it got better, the evaluator's report says."))
    return said


def _tiles(seen: Mapping[str, Series]) -> list[tuple[str, str, str]]:
    cards = []
    for tag, label, unit in (
        ("ppo/reward", "reward", "of the last updates' episodes"),
        ("eval/reward", "reward, held out", "at the end"),
        ("ppo/kl", "KL", "nats a completion"),
        ("ppo/entropy", "entropy", "nats a token"),
        ("ppo/length", "length", "tokens"),
    ):
        if points := seen.get(tag):
            end = points[-1][1] if tag.startswith("eval/") else late_mean(points)
            cards.append((label, three(end), f"{unit}; at first {three(points[0][1])}"))
    return cards


def _outcome(seen: Mapping[str, Series], alarms: Sequence[Alarm]) -> list[Markup]:
    parts = {tag.rsplit("/", 1)[1]: points for tag, points in seen.items() if tag.startswith("ppo/reward/")}
    if "ppo/score" in seen:
        parts = {"reward model": seen["ppo/score"], **parts}
    rows = [
        _curves(
            "Reward",
            {"training prompts": seen.get("ppo/reward"), "held-out prompts": seen.get("eval/reward")},
            "mean reward",
            "Before scaling and without the KL penalty. Where the two part, the policy learns its prompts by heart.",
            _marks(alarms, {*ADVICE}),
        ),
        _frontier(seen, alarms),
        _curves(
            "KL to the reference",
            {"training prompts": seen.get("ppo/kl"), "held-out prompts": seen.get("eval/kl")},
            "nats a completion",
            "How far the policy is from the one that training started from. The reward model was trained near it, and "
            "is the less to be trusted the farther it goes.",
            _marks(alarms, {"kl", "kl_blow_up", "negative_kl"}),
        ),
        _curves(
            "Entropy",
            {"training prompts": seen.get("ppo/entropy"), "held-out prompts": seen.get("eval/entropy")},
            "nats a token",
            "How freely the policy chooses its words. Near 0 it says the same to everybody.",
            _marks(alarms, {"entropy"}),
        ),
        _curves(
            "Length",
            {"training prompts": seen.get("ppo/length"), "held-out prompts": seen.get("eval/length")},
            "tokens",
            "Mean length of completions.",
            _marks(alarms, {"length"}),
        ),
        _curves(
            "Completions that end",
            {"training prompts": seen.get("ppo/ended"), "held-out prompts": seen.get("eval/ended")},
            "share",
            "By themselves, before they are cut off.",
            _marks(alarms, {"cut_off"}),
        ),
        _curves(
            "ROUGE-L on held-out prompts",
            {"held-out prompts": seen.get("eval/rouge_l")},
            "F measure",
            "Against the references. It may fall a little while people like completions better.",
            _marks(alarms, {"rouge"}),
        ),
    ]
    if len(parts) > 1:
        shown = dict(list(parts.items())[:_MOST_SERIES])
        left = f" {len(parts) - len(shown)} more are not drawn." if len(parts) > len(shown) else ""
        caption = f"Before weights. Where one rises and another falls, the policy trades them.{left}"
        rows.append(_curves("What the reward is made of", shown, "mean", caption, {}))
    return [row for row in rows if row]


def _optimisation(seen: Mapping[str, Series], alarms: Sequence[Alarm]) -> list[Markup]:
    rows = [
        _curves(
            "Clip fractions",
            {"policy": seen.get("ppo/clip_fraction"), "value": seen.get("ppo/value_clip_fraction")},
            "share of tokens",
            "Where the clipped loss was taken. Much above 0.2 the steps are too large.",
            {},
        ),
        _curves(
            "KL of one update",
            {"update": seen.get("ppo/update_kl")},
            "nats a token",
            "From the policy that sampled an update's episodes to the one that was trained on them.",
            _marks(alarms, {"kl_blow_up"}),
        ),
        _curves(
            "Critic",
            {"explained variance": seen.get("ppo/explained_variance")},
            "explained variance",
            "1 is a perfect critic, 0 one that knows the mean, less than 0 is worse than that.",
            _marks(alarms, {"critic"}),
        ),
        _curves(
            "Gradient norm",
            {"gradient": seen.get("ppo/gradient_norm")},
            "before clipping",
            "Spikes are updates that the policy was not ready for.",
            {},
        ),
        _curves(
            "KL coefficient",
            {"coefficient": _changing(seen.get("ppo/kl_coeff"))},
            "weight of the penalty",
            "Adapted to kl_target (Ziegler et al. 2019, sec. 2.2).",
            {},
        ),
        _curves(
            "Time",
            {phase: seen.get(f"ppo/seconds/{phase}") for phase in _PHASES},
            "seconds an update",
            _speed(seen),
            {},
        ),
    ]
    return [row for row in rows if row]


def _curves(
    title: str, series: Mapping[str, Series | None], y_label: str, caption: str, marks: Mapping[int, str]
) -> Markup | None:
    """A plot over updates of what there is; None of nothing."""
    shown = {label: points for label, points in series.items() if points}
    if not shown:
        return None
    ends = "; ".join(f"{label} from {three(p[0][1])} to {three(late_mean(p))}" for label, p in shown.items())
    alarmed = "".join(f" Alarm at update {update:,}: {what}." for update, what in marks.items())
    return figure(
        figures.lines(title, shown, "update", y_label, marks=marks),
        alt=f"{title} by update: {ends}.{alarmed}",
        caption=caption,
    )


def _frontier(seen: Mapping[str, Series], alarms: Sequence[Alarm]) -> Markup | None:
    kl, reward = dict(seen.get("ppo/kl", ())), dict(seen.get("ppo/reward", ()))
    points = {update: (math.sqrt(max(kl[update], 0.0)), reward[update]) for update in kl if update in reward}
    if len(points) < 2:
        return None
    title = "Reward against distance"
    start, *_, end = (f"{three(y)} at √KL {three(x)}" for x, y in points.values())
    marks = {points[update]: what for update, what in _marks(alarms, {*ADVICE}).items() if update in points}
    return figure(
        figures.trail(title, list(points.values()), "√KL to the reference, in √nats", "mean reward", marks),
        alt=f"{title}: from {start} to {end}.",
        caption="One point an update, later ones stronger, alarms ringed; axes as in Gao et al. 2023, where what "
        "people would say rises, turns and falls along such a curve while the reward model's score goes on rising.",
    )


def _marks(alarms: Sequence[Alarm], kinds: set[str]) -> dict[int, str]:
    """{update: what was raised at it}."""
    found: dict[int, list[str]] = defaultdict(list)
    for alarm in alarms:
        if alarm.kind in kinds:
            found[alarm.update].append(_name(alarm.kind))
    return {update: ", ".join(names) for update, names in found.items()}


def _name(kind: str) -> str:
    return {"kl": "KL", "kl_blow_up": "KL blow-up", "negative_kl": "negative KL", "rouge": "ROUGE"}.get(
        kind, kind.replace("_", " ")
    )


def _changing(points: Series | None) -> Series | None:
    return points if points and len({value for _, value in points}) > 1 else None


def _speed(seen: Mapping[str, Series]) -> str:
    speeds = {phase: seen.get(f"ppo/tokens_per_second/{phase}") for phase in _PHASES}
    known = [f"{phase} {late_mean(points):,.0f}" for phase, points in speeds.items() if points]
    return f"Tokens a second, at the end: {', '.join(known)}." if known else "By phase."


def _completions(examples: Sequence[Mapping[str, Any]]) -> Markup:
    by_prompt: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for example in examples:
        by_prompt[str(example["id"])].append(example)
    often = [said for said in by_prompt.values() if len(said) > 1]
    if often:
        intro = "The same prompts through training. They were not chosen by how they came out."
        return paragraph(intro) + comparisons([_through_training(said) for said in often[:MOST_PROMPTS]])
    shown = _evenly(examples, MOST_PROMPTS * MOST_TIMES)
    rows = [(e["update"], str(e["id"]), e["completion"], _finite(e.get("score")), _finite(e.get("kl"))) for e in shown]
    return table(["update", "id", "completion", "reward", "KL"], rows, "Taken evenly from all updates.")


def _through_training(said: Sequence[Mapping[str, Any]]) -> Comparison:
    columns = [
        (f"Update {example['update']:,}", example["completion"], _facts(example))
        for example in _evenly(said, MOST_TIMES)
    ]
    outcome = f"reward {three(said[0].get('score'))} → {three(said[-1].get('score'))}"
    return Comparison("Prompt", str(said[0]["id"]), outcome, None, said[0].get("prompt", ""), columns)


def _facts(example: Mapping[str, Any]) -> str:
    kl = f", KL {three(example['kl'])} nats" if _finite(example.get("kl")) is not None else ""
    return f"reward {three(example.get('score'))}{kl}"


def _evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _numbers(metrics: Mapping[str, float], facts: Mapping[str, Any]) -> Markup:
    body = table(["of this run", ""], facts.items()) if facts else Markup("")
    return body + fold("Measures", table(["measure", "value"], metrics.items(), "As logged for KFP."))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
