"""The evaluator's page: the verdict in words, then the numbers, then the texts themselves."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from markupsafe import Markup

from rlhf.data.chat import without_marks
from rlhf.data.predictions import Prediction
from rlhf.evaluator import health
from rlhf.evaluator.compare import ties_half
from rlhf.evaluator.config import EvaluatorConfig
from rlhf.evaluator.curves import Series, training_curves
from rlhf.evaluator.judgements import REWARD_MODEL, Judgement
from rlhf.evaluator.measures import Measures, length_of
from rlhf.evaluator.pairs import Pair
from rlhf.evaluator.verdict import Verdict
from rlhf.models.card import ModelCard
from rlhf.report import figures
from rlhf.report.browser import SCRIPT, Row, browser
from rlhf.report.page import (
    Page,
    Section,
    figure,
    figures_row,
    note,
    paragraph,
    table,
    tiles,
    verdict,
)
from rlhf.words import count, minus, percent, signed

BROWSER_BYTES = 4_500_000  # of the side-by-side browser: mail and chat refuse pages much larger, and frames load slowly
BEYOND_MATTERS = 0.05  # share of completions whose reward is outside what the reward model was trained on


@dataclass(frozen=True)
class Evaluation:
    """All that the page shows."""

    pairs: Sequence[Pair]
    judgements: Sequence[Judgement]
    """The main one first: the reward model's, or the grader's where there is none."""
    measures: Measures
    verdict: Verdict
    metrics: Mapping[str, float]
    logs: Mapping[str, Mapping[str, Series]]
    """{"sft" | "reward" | "ppo" | "grpo": {tag: series}}."""
    digest: str
    """Of what is compared: votes on the page are kept under it."""

    @property
    def main(self) -> Judgement:
        return self.judgements[0]

    @property
    def unit(self) -> str:
        """What the main judge gives: reward, or grade."""
        return "reward" if self.main.name == REWARD_MODEL else "grade"


def evaluation_page(config: EvaluatorConfig, result: Evaluation) -> Page:
    first = result.pairs[0]
    sections = [
        Section("Verdict", _verdict(result), "verdict"),
        Section("Key numbers", _numbers(result), "numbers"),
        Section("Who says so", _judges(result), "judges"),
    ]
    curves = training_curves(config, result.logs)
    if curves:
        sections.append(Section("Training", curves, "training"))
    sections += [
        Section(f"{result.unit.capitalize()}s", _rewards(result), "rewards"),
        Section("Health of the texts", _health(result), "health"),
        Section("Side by side", _side_by_side(config, result), "side-by-side", script=SCRIPT),
    ]
    models = (
        ""
        if first.before.model == first.after.model
        else f" Before: {_short(first.before.model)}. After: {_short(first.after.model)}."
    )
    return Page(
        "Did tuning make the model better?",
        f"Two models on the same {count(len(result.pairs), 'prompt')}, one completion each.{models}",
        sections,
    )


@dataclass(frozen=True)
class Remark:
    """What a reader should know before believing the numbers."""

    text: str
    warning: bool


def remarks(result: Evaluation) -> list[Remark]:
    measures = result.measures
    said: list[Remark] = []
    said += _prompt_sensitivity(measures.card)
    said += _beyond(result)
    said += [Remark(text, warning=True) for text in health.disagreements(_changes(result))]
    said += [Remark(text, warning) for text, warning in health.remarks(measures.health_before, measures.health_after)]
    for judgement in result.judgements:
        said += [Remark(f"{judgement.name}: {text}", warning=True) for text in judgement.remarks]
    without = len(result.pairs) - sum(pair.reference is not None for pair in result.pairs)
    if without:
        verb = "has no reference and is" if without == 1 else "have no reference and are"
        text = f"{count(without, 'prompt')} {verb} left out of ROUGE and of the reference's reward."
        said.append(Remark(text, warning=False))
    return said


def _changes(result: Evaluation) -> dict[str, float]:
    """By how much each judge, and ROUGE-L, finds the tuned model better, in units of its own; 0 where the 95 % interval
    does not say which of the two."""
    m = result.metrics
    changes = {}
    if "rouge_l_change_low" in m and not m["rouge_l_change_low"] <= 0 <= m["rouge_l_change_high"]:
        changes["ROUGE-L"] = m["rouge_l_after"] - m["rouge_l_before"]
    for judgement in result.judgements:
        wins = judgement.wins
        if wins.rate is not None:
            changes[judgement.name] = 0.0 if wins.low <= 0.5 <= wins.high else wins.rate - 0.5
    return changes


def _beyond(result: Evaluation) -> list[Remark]:
    if result.measures.beyond is None:
        return []
    before, after = result.measures.beyond
    text = (
        f"{percent(after.rate)} of the tuned model's completions, and {percent(before.rate)} of those before, are "
        "scored outside the range of scores that the reward model gave to what it was trained on: there nobody has "
        "told it what people prefer."
    )
    return [Remark(text, warning=after.rate > BEYOND_MATTERS)]


def _verdict(result: Evaluation) -> Markup:
    v = result.verdict
    banner = verdict("Promote" if v.promote else "Hold", v.headline, v.reasons, good=v.promote)
    said = sorted(remarks(result), key=lambda remark: not remark.warning)
    return Markup("").join([banner, *((note if r.warning else paragraph)(r.text) for r in said)])


def _prompt_sensitivity(card: ModelCard | None) -> list[Remark]:
    known = {} if card is None else card.training
    ignored, with_right, with_swapped = map(
        known.get, ("ignores_prompt", "accuracy_unswapped", "accuracy_prompt_swapped")
    )
    if None in (ignored, with_right, with_swapped):
        return []
    if ignored:
        text = (
            f"The reward model ignores the prompt: its accuracy on held-out pairs is {percent(with_right)} with the "
            f"right prompts and {percent(with_swapped)} with those of other pairs. It judges how a completion looks, "
            "not whether it fits what was asked, and so does every reward and win rate on this page."
        )
        return [Remark(text, warning=True)]
    text = (
        f"The reward model reads the prompt: its accuracy on held-out pairs drops from {percent(with_right)} to "
        f"{percent(with_swapped)} when it is given the prompts of other pairs."
    )
    return [Remark(text, warning=False)]


def _numbers(result: Evaluation) -> Markup:
    m = result.metrics
    unit, slug = result.unit.capitalize(), result.main.slug
    graded = f"{slug}_after" in m
    change = signed(m[f"{slug}_after"] - m[f"{slug}_before"]) if graded else "–"
    length = result.measures.length
    cards = [
        ("Win rate", *_win_rate(result.main)),
        (unit, change, "mean, after minus before"),
        ("KL", f"{m['kl']:.2f}" if "kl" in m else "–", "nats per completion"),
        ("Length", f"{m[f'{length}_after']:.1f}", f"{length}, {m[f'{length}_before']:.1f} before"),
    ]
    if result.measures.endings_known:
        ended = ("Ended", percent(m["ended_after"]), f"by themselves; {percent(m['ended_before'])} before")
        cards.insert(3, ended)
    if "rouge_l_after" in m:
        cards.append(("ROUGE-L", f"{m['rouge_l_after']:.3f}", f"{m['rouge_l_before']:.3f} before; decides nothing"))
    references = [p.reference for p in result.pairs if p.reference is not None]
    texts = ([p.before.prediction for p in result.pairs], [p.after.prediction for p in result.pairs], references)
    rows = []
    if graded:
        rows.append(_row(f"{unit}, mean", m[f"{slug}_before"], m[f"{slug}_after"], m.get(f"{slug}_reference")))
    rows += [
        _row(f"{judgement.name}, mean", m[f"{judgement.slug}_before"], m[f"{judgement.slug}_after"])
        for judgement in result.judgements[1:]
        if f"{judgement.slug}_after" in m
    ]
    rows += [
        _row(label, m[f"{name}_before"], m[f"{name}_after"], digits=digits)
        for name, label, digits in _OVERLAPS
        if f"{name}_after" in m
    ]
    rows += [
        _row("Length, mean characters", *(fmean(map(len, found)) for found in texts if found), digits=1),
        _row(f"Length, mean {length}", m[f"{length}_before"], m[f"{length}_after"], digits=1),
    ]
    if result.measures.endings_known:
        rows.append(_row("Ended by themselves, %", 100 * m["ended_before"], 100 * m["ended_after"], digits=1))
    rows.append(_row("Empty, %", 100 * m["empty_before"], 100 * m["empty_after"], digits=1))
    caption = (
        f"{count(len(result.pairs), 'prompt')}; ROUGE (F measure), BLEU and chrF (0 to 100) over those "
        f"{len(references):,} that have a reference. {unit}s are in the {result.main.name}'s own unit; only "
        "differences mean something."
    )
    return tiles(cards) + table(["", "before", "after", "change", "reference"], rows, caption)


def _win_rate(main: Judgement) -> tuple[str, str]:
    """A figure, and what it is."""
    wins, controlled = main.wins, main.controlled
    if wins.rate is None:
        return "none", f"no pair is decided; {count(wins.ties, 'tie')}"
    found, of = wins, "as the lengths are; not known at equal ones"
    if controlled.rate is not None:
        found, of = controlled, "at equal lengths"
    return percent(found.rate), f"{of}; {percent(found.low)} to {percent(found.high)} (95\u00a0% interval)"


_OVERLAPS = (
    ("rouge_1", "ROUGE-1", 3),
    ("rouge_2", "ROUGE-2", 3),
    ("rouge_l", "ROUGE-L", 3),
    ("rouge_lsum", "ROUGE-Lsum", 3),
    ("bleu", "BLEU", 1),
    ("chrf", "chrF", 1),
    ("bertscore", "BERTScore", 3),
)


def _judges(result: Evaluation) -> Markup:
    rows = []
    for judgement in result.judgements:
        wins, controlled = judgement.wins, judgement.controlled
        needed = result.metrics.get("rows_needed" if judgement is result.main else f"{judgement.slug}_rows_needed")
        rows.append(
            [
                judgement.name,
                _share(wins.rate, wins.low, wins.high),
                None if (half := ties_half(wins)) is None else percent(half),
                _share(controlled.rate, controlled.low, controlled.high),
                f"{wins.wins:,} / {wins.losses:,} / {wins.ties:,}",
                None if needed is None else f"{needed:,.0f}",
            ]
        )
    said = table(
        ["judge", "win rate", "ties half", "at equal lengths", "wins / losses / ties", "pairs needed"],
        rows,
        "The tuned model against the one before, with 95 % intervals. Ties count for nothing in the win rate, and half "
        "in the next two. At equal lengths: what is left of the rate with ties counted half once a logistic regression "
        "has taken away what the difference in length explains (Dubois et al. 2024). Pairs needed: decided pairs that "
        "tell a win rate of this size from chance in four of five experiments.",
    )
    if result.measures.strengths:
        ranked = sorted(result.measures.strengths.items(), key=lambda item: -item[1].mean)
        strengths = [[name, signed(i.mean), f"{signed(i.low)} to {signed(i.high)}"] for name, i in ranked]
        said += table(
            ["", "strength", "95 % interval"],
            strengths,
            f"Bradley-Terry strengths by the {result.main.name}, in log-odds around their mean: 1 more wins 73 % of "
            "pairs.",
        )
    return said


def _share(rate: float | None, low: float | None, high: float | None) -> str | None:
    return None if rate is None else f"{percent(rate)} ({percent(low)} to {percent(high)})"


def _health(result: Evaluation) -> Markup:
    before, after = result.measures.health_before, result.measures.health_after
    rows = [_row("Words, mean", before.words, after.words, digits=1)]
    if result.measures.endings_known:
        rows.append(_row("Cut off, %", 100 * before.truncated, 100 * after.truncated, digits=1))
    for name, label in (
        ("empty", "Empty, %"),
        ("repetition", "Repeated 4-grams, %"),
        ("copied", "4-grams copied from the prompt, %"),
        ("distinct_1", "Distinct words, %"),
        ("distinct_2", "Distinct pairs of words, %"),
    ):
        shares = getattr(before, name), getattr(after, name)
        if None not in shares:
            rows.append(_row(label, *(100 * share for share in shares), digits=1))
    rows.append(_row("Entropy of the words, bits", before.entropy, after.entropy, digits=2))
    caption = (
        "Of all completions together. A policy that found out what pleases a reward model says it again and again: "
        "repetition rises, distinct words and entropy fall (Welleck et al. 2020, Li et al. 2016)."
    )
    return table(["", "before", "after", "change"], [row[:4] for row in rows], caption)


def _row(label: str, before: float, after: float, reference: float | None = None, digits: int = 3) -> list[str | None]:
    values = [None if v is None else minus(f"{v:.{digits}f}") for v in (before, after, reference)]
    return [label, values[0], values[1], signed(after - before, digits), values[2]]


def _rewards(result: Evaluation) -> Markup:
    main = result.main
    shown = {"before": main.before, "after": main.after, "reference": list(main.reference.values())}
    shown = {label: [v for v in values if v is not None] for label, values in shown.items()}
    shown = {label: values for label, values in shown.items() if values}
    unit = result.unit
    means = ", ".join(f"{label} {signed(fmean(values))}" for label, values in shown.items())
    both = zip(main.before, main.after, strict=True)
    margins = [a - b for b, a in both if a is not None and b is not None]
    drawn = [
        figure(
            figures.histogram(f"{unit.capitalize()} by the {main.name}", shown, unit, "share of completions"),
            alt=f"Histogram of {unit}s. Means: {means}.",
            caption=f"Means (dotted): {means}.",
        )
    ]
    if margins:
        drawn.append(
            figure(
                figures.histogram(
                    f"Change of {unit}, prompt by prompt",
                    {"after − before": margins},
                    f"{unit} after minus before",
                    "share of prompts",
                ),
                alt=f"Histogram of {unit} after minus {unit} before. Median {signed(median(margins))}.",
                caption=f"To the right of 0 the tuned model wins. Median {signed(median(margins))}.",
            )
        )
    return figures_row(drawn)


def _side_by_side(config: EvaluatorConfig, result: Evaluation) -> Markup:
    rows = min(config.side_by_side_rows, len(result.pairs))
    why = ""
    while len(said := _some(config, result, rows)) > BROWSER_BYTES and rows > 1:
        rows = max(1, int(0.95 * rows * BROWSER_BYTES / len(said)))
        why = "; with more of this length the page would exceed 5 MB"
    if rows == len(result.pairs):
        return said
    how = f"{rows:,} of {count(len(result.pairs), 'prompt')}, drawn at random (seed {config.seed}){why}."
    return paragraph(how) + said


def _some(config: EvaluatorConfig, result: Evaluation, rows: int) -> Markup:
    chosen = sorted(random.Random(config.seed).sample(range(len(result.pairs)), rows))
    return browser([_browsed(result, place) for place in chosen], digest=result.digest, seed=config.seed)


def _browsed(result: Evaluation, place: int) -> Row:
    pair, main = result.pairs[place], result.main
    before, after = main.before[place], main.after[place]
    facts = {
        "before": _facts(result, pair.before, before, result.measures.rouge_before.get(pair.id)),
        "after": _facts(result, pair.after, after, result.measures.rouge_after.get(pair.id)),
    }
    if pair.id in main.reference:
        facts["reference"] = f"{result.unit} {signed(main.reference[pair.id])}"
    scores = {judgement.name: _change(judgement, place) for judgement in result.judgements[1:]}
    if result.measures.rouge_after:
        change = None
        if pair.reference is not None:
            change = result.measures.rouge_after[pair.id] - result.measures.rouge_before[pair.id]
        scores["ROUGE-L"] = change
    length = result.measures.length
    scores[length] = float(length_of(pair.after, length) - length_of(pair.before, length))
    return Row(
        id=pair.id,
        prompt=without_marks(pair.prompt),
        original=pair.original,
        texts={"before": pair.before.prediction, "after": pair.after.prediction, "reference": pair.reference},
        facts=facts,
        margin=None if after is None or before is None else after - before,
        outcome={1.0: "win", 0.5: "tie", 0.0: "loss", None: None}[main.outcomes[place]],
        cut=pair.before.is_cut or pair.after.is_cut,
        scores=scores,
    )


def _change(judgement: Judgement, place: int) -> float | None:
    """By which a judge finds the completion after better: in its scores, or as won and lost."""
    if judgement.before is None or judgement.after is None:
        outcome = judgement.outcomes[place]
        return None if outcome is None else 2 * outcome - 1
    before, after = judgement.before[place], judgement.after[place]
    return None if before is None or after is None else after - before


def _facts(result: Evaluation, prediction: Prediction, reward: float | None, rouge_l: float | None) -> str:
    length = result.measures.length
    facts = [
        f"{result.unit} {'not known' if reward is None else signed(reward)}",
        count(length_of(prediction, length), length.removesuffix("s")),
    ]
    if rouge_l is not None:
        facts.append(f"ROUGE-L {rouge_l:.2f}")
    if prediction.is_cut:
        facts.append("cut off")
    return " · ".join(facts)


def _short(model: str) -> str:
    """With the end of a path; a Hugging Face id as it is."""
    name, of, base = model.rpartition(" of ")
    return name + of + "/".join(base.rstrip("/").split("/")[-2:])
