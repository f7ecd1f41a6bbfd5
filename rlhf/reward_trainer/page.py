"""The reward trainer's page: the verdict in words, then what the model looks at, then how it was trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from rlhf.metrics import Accuracy, Share, late_mean
from rlhf.report import figures
from rlhf.report.figures import Estimate
from rlhf.report.page import (
    Page,
    Section,
    figure,
    figures_row,
    fold,
    paragraph,
    table,
    tiles,
    verdict,
    write_page,
)
from rlhf.reward_trainer.findings import Findings, HeldOut, Training
from rlhf.reward_trainer.measures import Correlation, Group
from rlhf.words import percent, signed

MOST_WRONG = 10
_WITHOUT_MODEL = "Without a model"


def write_report(
    path: str | Path, findings: Findings, held_out: HeldOut, training: Training, facts: Mapping[str, str | float]
) -> None:
    """Write the page.

    Args:
        path: HTML file, made with the folders above it.
        findings: Of `examine(held_out, training)`.
        facts: {what: value} of model, tuning and data, shown in the order given.
    """
    sections = [
        Section("In short", _summary(findings), "summary"),
        Section("What it ranks right", _accuracy(findings, held_out), "accuracy"),
        Section("Does it read?", _reading(findings, held_out), "reading"),
        Section("How sure it is", _confidence(findings, held_out, training), "confidence"),
        Section("Training", _training(training), "training"),
        Section("Numbers", _numbers(findings, held_out, facts), "numbers"),
    ]
    write_page(path, Page("Reward trainer", "What the reward model learned, and what it looks at.", sections))


def _summary(findings: Findings) -> Markup:
    decision = findings.verdict
    cards = [_tile("right on held-out pairs", findings.accuracy)]
    if findings.accuracy_swapped:
        cards.append(_tile("right with prompts exchanged", findings.accuracy_swapped))
    if longer := findings.baselines.get("longer wins"):
        cards.append(_tile("right by “longer wins”", longer.rule))
    if findings.accuracy_seen:
        cards.append(_tile("right on pairs it trained on", findings.accuracy_seen))
    if findings.calibration.ece is not None:
        cards.append(("calibration error", percent(findings.calibration.ece), "expected (ECE); 0 % is best"))
    return verdict(decision.word, decision.headline, findings.statements(), decision.good) + tiles(cards)


def _tile(label: str, found: Accuracy | Share) -> tuple[str, str, str]:
    return label, percent(found.rate), f"{percent(found.low)} to {percent(found.high)} (95\u00a0% interval)"


def _accuracy(findings: Findings, held_out: HeldOut) -> Markup:
    overall = [("held-out pairs", findings.accuracy), ("with prompts exchanged", findings.accuracy_swapped)]
    overall.append(("pairs it trained on", findings.accuracy_seen))
    whole = {
        "All pairs": [_estimate(label, found, found.pairs) for label, found in overall if found],
        _WITHOUT_MODEL: [_estimate(name, found.rule, found.rule.of) for name, found in findings.baselines.items()],
        "By place": _estimates(findings.by_position),
    }
    kinds = {
        "Chosen response is": _estimates(findings.by_length),
        "Score difference": _estimates(findings.by_own_margin),
        "Data's margin": _estimates(findings.by_margin),
    }
    return figures_row(
        [
            _shares(
                "Pairs ranked right",
                whole,
                "Bars are 95 % intervals, numbers in brackets are pairs, the dotted line is a coin. “Longer wins” "
                "takes the longer response, “first wins” the first candidate as laid out in the data.",
            ),
            _shares(
                "Held-out pairs ranked right, by kind",
                kinds,
                "A model that judges by length is right where the chosen response is longer, and wrong where it is "
                "shorter. Where its scores differ more it should be right more often.",
            ),
            _scores(held_out),
            _length(findings, held_out),
        ]
    )


def _shares(title: str, groups: Mapping[str, Sequence[Estimate]], caption: str) -> Markup:
    said = "; ".join(f"{estimate.label} {percent(estimate.value)}" for rows in groups.values() for estimate in rows)
    return figure(
        figures.intervals(title, groups, "share of pairs", 0.5, compared=_WITHOUT_MODEL),
        alt=f"{title}: {said}.",
        caption=caption,
    )


def _estimate(label: str, found: Accuracy | Share, pairs: int) -> Estimate:
    return Estimate(f"{label} ({pairs:,})", found.rate, found.low, found.high)


def _estimates(groups: Sequence[Group]) -> list[Estimate]:
    return [_estimate(group.label, group.share, group.share.of) for group in groups]


def _scores(held_out: HeldOut) -> Markup:
    return figure(
        figures.histogram(
            "Scores of held-out responses",
            {"rejected": held_out.rejected, "chosen": held_out.chosen},
            "score",
            "share of responses",
        ),
        alt="Histograms of the scores of chosen and of rejected responses.",
        caption="Dotted: the mean of each. The less the two overlap, the better the model tells them apart.",
    )


def _length(findings: Findings, held_out: HeldOut) -> Markup:
    points = {
        side: list(zip(lengths, scores, strict=True))
        for side, lengths, scores in (
            ("rejected", held_out.rejected_length, held_out.rejected),
            ("chosen", held_out.chosen_length, held_out.chosen),
        )
    }
    found = findings.length["spearman"]
    said = "Score or length does not vary." if found is None else f"Rank correlation {_interval(found)}."
    return figure(
        figures.scatter("Score and length", points, "tokens of the response", "score"),
        alt=f"Scores of responses against their lengths. {said}",
        caption=f"{said} At most {figures.MOST_POINTS} responses of each kind are drawn.",
    )


def _interval(found: Correlation) -> str:
    value = signed(found.value)
    return value if found.low is None else f"{value} (95 % interval {signed(found.low)} to {signed(found.high)})"


def _reading(findings: Findings, held_out: HeldOut) -> Markup:
    plots = []
    if held_out.exchanged:
        differences = {
            "another pair's prompt": _differences(*held_out.with_prompts_exchanged),
            "own prompt": _differences(*held_out.with_own_prompts),
        }
        plots.append(
            figure(
                figures.histogram("Prompts exchanged", differences, "score of chosen − rejected", "share of pairs"),
                alt="Histograms of the score differences with the own and with another pair's prompt.",
                caption="A model that reads the prompt loses its preference when it is given another: the "
                "differences move to 0.",
            )
        )
    if findings.sensitivity:
        changes = {
            name: [
                after - before
                for before, after in zip(held_out.chosen, held_out.changed[name], strict=True)
                if after is not None
            ]
            for name in findings.sensitivity
        }
        plots.append(
            figure(
                figures.histogram("Responses spoilt", changes, "change of the score", "share of responses"),
                alt="Histograms of how the scores of chosen responses change when they are spoilt.",
                caption="Chosen responses emptied, with their words shuffled, and said over again. Scores should "
                "fall: what lies right of 0 pays a policy for it.",
            )
        )
    body = figures_row(plots) if plots else Markup("")
    if findings.accuracy_swapped is None:
        body = paragraph(f"{findings.not_exchanged}, so prompts were not exchanged.") + body
    if findings.sensitivity:
        rows = [
            (name, found.falls.in_words(), found.falls.of, signed(found.mean_change))
            for name, found in findings.sensitivity.items()
        ]
        body += table(["response", "score falls in", "responses", "mean change"], rows)
    return body


def _confidence(findings: Findings, held_out: HeldOut, training: Training) -> Markup:
    found = findings.calibration
    points = [(b.confidence, _estimate("", b.right, b.right.of)) for b in found.bins]
    said = (
        "Every pair ties, so the model is sure of nothing."
        if found.ece is None
        else f"Expected calibration error {percent(found.ece)}; mean confidence {percent(found.confidence)}, right in "
        f"{percent(found.right.rate)}."
    )
    plots = [
        figure(
            figures.reliability("Right, by how sure it is", points, "confidence", "share of pairs ranked right"),
            alt=f"Reliability diagram. {said}",
            caption=f"{said} Confidence is sigmoid(|score difference|), ten bins of equal width; bars are 95 % "
            "intervals. Below the dotted line the model is surer than it is right.",
        )
    ]
    differences = {
        "trained on": _differences(training.seen_chosen, training.seen_rejected),
        "held out": _differences(held_out.chosen, held_out.rejected),
    }
    plots.append(
        figure(
            figures.histogram(
                "Score differences, seen and unseen", differences, "score of chosen − rejected", "share of pairs"
            ),
            alt="Histograms of the score differences of held-out pairs and of pairs it trained on.",
            caption="Right of 0 the pair is ranked right. Where the model memorised, pairs that it trained on lie "
            "far to the right of those that it never saw.",
        )
    )
    body = figures_row(plots)
    if found.bins:
        body += fold(
            "The bins in numbers",
            table(
                ["confidence, mean", "ranked right", "pairs"],
                [(percent(b.confidence), b.right.in_words(), b.right.of) for b in found.bins],
            ),
        )
    return body


def _training(training: Training) -> Markup:
    kept = f"The model of step {training.best_step:,} of {training.steps:,} is kept."
    plots = []
    for title, batches, selection, y_label, remark in (
        ("Loss", "rank_loss", "reward_model/eval_loss", "nats a pair", "A coin's loss is ln 2 = 0.693. "),
        ("Accuracy", "reward_model/accuracy", "reward_model/eval_accuracy", "share of pairs ranked right", ""),
    ):
        series = {"training batches": training.history.get(batches), "selection pairs": training.history.get(selection)}
        series = {label: points for label, points in series.items() if points}
        ends = "; ".join(f"{label} {late_mean(points):.3g} at the end" for label, points in series.items())
        plots.append(
            figure(
                figures.lines(title, series, "step", y_label),
                alt=f"{title} by step: {ends or 'nothing was logged'}.",
                caption=f"{remark}{ends[:1].upper()}{ends[1:]}{'. ' if ends else ''}{kept}",
            )
        )
    how = (
        f"{training.steps:,} of {training.planned_steps:,} planned steps, {training.passes:,.3g} passes over the "
        "training pairs. "
    ) + (
        "Selection pairs decide which step is kept; neither they nor the held-out pairs are trained on."
        if training.history.get("reward_model/eval_loss")
        else "No pairs were kept out to decide which step is kept, so it is the last."
    )
    return paragraph(how) + figures_row(plots)


def _numbers(findings: Findings, held_out: HeldOut, facts: Mapping[str, str | float]) -> Markup:
    body = table(["of this run", ""], facts.items()) if facts else Markup("")
    body += fold("Measures", table(["measure", "value"], findings.metrics().items(), "As logged for KFP."))
    differences = _differences(held_out.chosen, held_out.rejected)
    wrong = [row for row in sorted(range(len(differences)), key=differences.__getitem__) if differences[row] < 0]
    if wrong:
        body += fold(
            "Held-out pairs that it ranks most wrong",
            table(
                ["id", "score chosen", "score rejected", "difference", "tokens chosen", "tokens rejected"],
                [
                    (
                        held_out.ids[row],
                        held_out.chosen[row],
                        held_out.rejected[row],
                        differences[row],
                        held_out.chosen_length[row],
                        held_out.rejected_length[row],
                    )
                    for row in wrong[:MOST_WRONG]
                ],
                "Read these first: they are mistakes of the model, or of the labels.",
            ),
        )
    return body


def _differences(chosen: Sequence[float], rejected: Sequence[float]) -> list[float]:
    return [c - r for c, r in zip(chosen, rejected, strict=True)]
