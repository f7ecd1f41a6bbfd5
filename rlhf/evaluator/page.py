"""The evaluator's page: the verdict in words, then the numbers, then the texts themselves."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from markupsafe import Markup

from rlhf.data.chat import without_marks
from rlhf.evaluator.config import EvaluatorConfig
from rlhf.evaluator.pairs import Pair, Prediction
from rlhf.evaluator.verdict import Verdict
from rlhf.metrics import WinRate, ignores_prompt, percent
from rlhf.report import figures
from rlhf.report.page import (
    Comparison,
    Page,
    Section,
    comparisons,
    figure,
    figures_row,
    note,
    paragraph,
    table,
    tiles,
    verdict,
)

LENGTH_MATTERS = 0.2  # relative change of the mean length that is worth a remark

Series = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Evaluation:
    """All that the page shows."""

    pairs: Sequence[Pair]
    before: Sequence[float]
    after: Sequence[float]
    """Rewards by position in `pairs`."""
    reference: Mapping[str, float]
    """Rewards of references by id."""
    rouge_before: Mapping[str, float]
    rouge_after: Mapping[str, float]
    """ROUGE-L by id."""
    wins: WinRate
    verdict: Verdict
    metrics: Mapping[str, float]
    logs: Mapping[str, Mapping[str, Series]]
    """{"sft" | "reward" | "ppo": {tag: series}}."""


def evaluation_page(config: EvaluatorConfig, result: Evaluation) -> Page:
    first = result.pairs[0]
    sections = [
        Section("Verdict", _verdict(result), "verdict"),
        Section("Key numbers", _numbers(result), "numbers"),
    ]
    curves = _curves(config, result.logs)
    if curves:
        sections.append(Section("Training", curves, "training"))
    sections += [
        Section("Rewards", _rewards(result), "rewards"),
        Section("Side by side", _side_by_side(config, result), "side-by-side"),
    ]
    models = (
        ""
        if first.before.model == first.after.model
        else f" Before: {_short(first.before.model)}. After: {_short(first.after.model)}."
    )
    return Page(
        "Did tuning make the model better?",
        f"Two models on the same {_count(len(result.pairs), 'prompt')}, one completion each.{models}",
        sections,
    )


@dataclass(frozen=True)
class Remark:
    """What a reader should know before believing the numbers."""

    text: str
    warning: bool


def remarks(result: Evaluation) -> list[Remark]:
    m = result.metrics
    said = []
    said += _prompt_sensitivity(result.logs["reward"])
    reward_change = m["reward_after"] - m["reward_before"]
    if "rouge_l_after" in m and m["rouge_l_after"] < m["rouge_l_before"] and reward_change > 0:
        said.append(
            Remark(
                f"ROUGE-L against the references fell from {m['rouge_l_before']:.3f} to {m['rouge_l_after']:.3f} while "
                f"the reward rose by {reward_change:.2f}. The two often part ways when a model is tuned on "
                "preferences, so ROUGE does not decide here; read the texts side by side for what was lost.",
                warning=True,
            )
        )
    growth = m["tokens_after"] / m["tokens_before"] - 1 if m["tokens_before"] else 0.0
    if abs(growth) > LENGTH_MATTERS:
        said.append(
            Remark(
                f"Completions became {percent(abs(growth))} {'longer' if growth > 0 else 'shorter'} "
                f"({m['tokens_before']:.1f} to {m['tokens_after']:.1f} tokens on average). The win rate is not "
                f"controlled for length: the reward model may be paying for {'length' if growth > 0 else 'brevity'}.",
                warning=True,
            )
        )
    if m["empty_after"]:
        said.append(Remark(f"{percent(m['empty_after'])} of the tuned model's completions are empty.", warning=True))
    without = len(result.pairs) - len(result.reference)
    if without:
        verb = "has no reference and is" if without == 1 else "have no reference and are"
        text = f"{_count(without, 'prompt')} {verb} left out of ROUGE and of the reference's reward."
        said.append(Remark(text, warning=False))
    return said


def _verdict(result: Evaluation) -> Markup:
    v = result.verdict
    banner = verdict("Promote" if v.promote else "Hold", v.headline, v.reasons, good=v.promote)
    said = sorted(remarks(result), key=lambda remark: not remark.warning)
    return Markup("").join([banner, *((note if r.warning else paragraph)(r.text) for r in said)])


def _prompt_sensitivity(reward_logs: Mapping[str, Series]) -> list[Remark]:
    right, swapped = (reward_logs.get(f"reward_model/{tag}") for tag in ("eval_accuracy", "accuracy_prompt_swapped"))
    if not right or not swapped:
        return []
    with_right, with_swapped = right[-1][1], swapped[-1][1]
    if ignores_prompt(with_right, with_swapped):
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
    if result.wins.rate is None:
        win = ("Win rate", "none", f"all {result.wins.ties:,} pairs are ties")
    else:
        interval = f"{percent(result.wins.low)} to {percent(result.wins.high)} (95\u00a0% interval)"
        win = ("Win rate", percent(result.wins.rate), interval)
    cards = [
        win,
        ("Reward", _signed(m["reward_after"] - m["reward_before"]), "mean, after minus before"),
        ("KL", f"{m['kl']:.2f}" if "kl" in m else "–", "nats per completion"),
        ("Ended", percent(m["ended_after"]), f"by themselves; {percent(m['ended_before'])} before"),
        ("Length", f"{m['tokens_after']:.1f}", f"tokens, {m['tokens_before']:.1f} before"),
    ]
    if "rouge_l_after" in m:
        cards.append(("ROUGE-L", f"{m['rouge_l_after']:.3f}", f"{m['rouge_l_before']:.3f} before; decides nothing"))
    rows = [
        _row("Reward, mean", m["reward_before"], m["reward_after"], m.get("reward_reference")),
        *(
            _row(label, m[f"rouge_{kind}_before"], m[f"rouge_{kind}_after"])
            for kind, label in (("1", "ROUGE-1"), ("2", "ROUGE-2"), ("l", "ROUGE-L"), ("lsum", "ROUGE-Lsum"))
            if f"rouge_{kind}_before" in m
        ),
        _row("Length, mean characters", *(fmean(map(len, texts)) for texts in _texts(result) if texts), digits=1),
        _row("Length, mean tokens", m["tokens_before"], m["tokens_after"], digits=1),
        _row("Ended by themselves, %", 100 * m["ended_before"], 100 * m["ended_after"], digits=1),
        _row("Empty, %", 100 * m["empty_before"], 100 * m["empty_after"], digits=1),
    ]
    caption = (
        f"{_count(len(result.pairs), 'prompt')}; ROUGE (F measure) over those {len(result.reference):,} that have a "
        "reference. "
        f"{result.wins.wins:,} wins, {result.wins.losses:,} losses, {result.wins.ties:,} ties. "
        "Rewards are in the reward model's own unit; only differences mean something."
    )
    return tiles(cards) + table(["", "before", "after", "change", "reference"], rows, caption)


def _row(label: str, before: float, after: float, reference: float | None = None, digits: int = 3) -> list[str | None]:
    values = [None if v is None else _minus(f"{v:.{digits}f}") for v in (before, after, reference)]
    return [label, values[0], values[1], _signed(after - before, digits), values[2]]


def _texts(result: Evaluation) -> tuple[list[str], list[str], list[str]]:
    return (
        [p.before.prediction for p in result.pairs],
        [p.after.prediction for p in result.pairs],
        [p.reference for p in result.pairs if p.reference is not None],
    )


def _curves(config: EvaluatorConfig, logs: Mapping[str, Mapping[str, Series]]) -> Markup | None:
    sft, reward, ppo = logs["sft"], logs["reward"], logs["ppo"]
    plots = [
        _plot("SFT: loss", {"loss": sft.get("sft/loss")}, "step", "nats per token"),
        _plot("Reward model: loss", {"loss": reward.get("rank_loss")}, "step", "nats per pair"),
        _plot(
            "Reward model: accuracy",
            {
                "training batches": reward.get("reward_model/accuracy"),
                "held-out pairs": reward.get("reward_model/eval_accuracy"),
            },
            "step",
            "share of pairs ranked right",
        ),
        _plot(
            "PPO: reward",
            {"score minus KL penalty": _difference(ppo.get("reward"), ppo.get("kl_loss")), "score": ppo.get("reward")},
            "update",
            "mean per completion",
        ),
        _plot(
            "PPO: KL from the model before", {"KL": ppo.get("ppo/kl")}, "update", "nats per completion", config.kl_limit
        ),
        _frontier(ppo),
        _plot("PPO: length", {"length": ppo.get("ppo/length")}, "update", "mean tokens"),
        _plot("PPO: completions that end", {"ended": ppo.get("ppo/ended")}, "update", "share"),
        _plot("PPO: entropy", {"entropy": ppo.get("ppo/entropy")}, "update", "nats per token"),
    ]
    drawn = [plot for plot in plots if plot is not None]
    if not drawn:
        return None
    how = "Bold lines are running means over a tenth of the steps, faint ones are what was logged."
    return paragraph(how) + figures_row(drawn)


def _plot(
    title: str, series: Mapping[str, Series | None], x_label: str, y_label: str, limit: float | None = None
) -> Markup | None:
    present = {label: points for label, points in series.items() if points}
    if not present:
        return None
    said = "; ".join((f"{label} " if len(present) > 1 else "") + _course(points) for label, points in present.items())
    return figure(
        figures.lines(title, present, x_label, y_label, limit),
        alt=f"{title} by {x_label}, {y_label}: {said}.",
        caption=f"{said[0].upper()}{said[1:]}.",
    )


def _course(points: Series) -> str:
    """Where a curve starts and ends: means over its first and last twentieth."""
    values = [value for _, value in points]
    few = max(1, len(values) // 20)
    first, last = _three(fmean(values[:few])), _three(fmean(values[-few:]))
    return f"from {first} to {last}" if first != last else f"at {first}"


def _difference(series: Series | None, other: Series | None) -> Series:
    """series - other, at the steps that both have."""
    subtracted = dict(other or ())
    return [(step, value - subtracted[step]) for step, value in series or () if step in subtracted]


def _frontier(ppo: Mapping[str, Series]) -> Markup | None:
    kl, score = dict(ppo.get("ppo/kl", ())), dict(ppo.get("ppo/score", ()))
    points = [(kl[step], score[step]) for step in kl if step in score]
    if len(points) < 2:
        return None
    title, x_label = "PPO: reward against KL", "KL, nats per completion"
    return figure(
        figures.trail(title, points, x_label, "mean score"),
        alt=f"{title}: from a score of {_three(points[0][1])} at a KL of {_three(points[0][0])} "
        f"to {_three(points[-1][1])} at {_three(points[-1][0])}.",
        caption="What distance from the model before bought; later updates are darker. Points that go on to the right "
        "without rising are over-optimisation.",
    )


def _rewards(result: Evaluation) -> Markup:
    shown = {"before": result.before, "after": result.after, "reference": list(result.reference.values())}
    shown = {label: values for label, values in shown.items() if values}
    means = ", ".join(f"{label} {_signed(fmean(values))}" for label, values in shown.items())
    margins = [a - b for b, a in zip(result.before, result.after, strict=True)]
    return figures_row(
        [
            figure(
                figures.histogram("Reward by the reward model", shown, "reward", "share of completions"),
                alt=f"Histogram of rewards. Means: {means}.",
                caption=f"Means (dotted): {means}.",
            ),
            figure(
                figures.histogram(
                    "Change of reward, prompt by prompt",
                    {"after − before": margins},
                    "reward after minus before",
                    "share of prompts",
                ),
                alt=f"Histogram of reward after minus reward before. Median {_signed(median(margins))}.",
                caption=f"To the right of 0 the tuned model wins. Median {_signed(median(margins))}.",
            ),
        ]
    )


def _side_by_side(config: EvaluatorConfig, result: Evaluation) -> Markup:
    count = min(config.side_by_side_rows, len(result.pairs))
    margins = [a - b for b, a in zip(result.before, result.after, strict=True)]
    middle = median(margins)
    chosen = random.Random(config.seed).sample(range(len(margins)), count)
    chosen.sort(key=lambda row: (abs(margins[row] - middle), row))
    how = (
        f"{count:,} of {_count(len(result.pairs), 'prompt')}, drawn at random (seed {config.seed}), the most typical "
        f"first: sorted by how close their change of reward is to the median of {_signed(middle)}. "
        "The unusual ones, good and bad, stand at the end."
    )
    return paragraph(how) + comparisons([_comparison(config, result, row, margins[row]) for row in chosen])


def _comparison(config: EvaluatorConfig, result: Evaluation, row: int, margin: float) -> Comparison:
    pair = result.pairs[row]
    won = None if abs(margin) <= config.tie_margin else margin > 0
    columns = [
        ("Before", pair.before.prediction, _facts(pair.before, result.before[row], result.rouge_before.get(pair.id))),
        ("After", pair.after.prediction, _facts(pair.after, result.after[row], result.rouge_after.get(pair.id))),
    ]
    if pair.reference is not None:
        columns.append(("Reference", pair.reference, f"reward {_signed(result.reference[pair.id])}"))
    outcome = "tie" if won is None else ("after wins" if won else "before wins")
    return Comparison(
        title=f"Prompt {row + 1:,}",
        id=pair.id,
        outcome=f"{outcome}, {_signed(margin)}",
        good=won,
        prompt=without_marks(pair.prompt),
        columns=columns,
    )


def _facts(prediction: Prediction, reward: float, rouge_l: float | None) -> str:
    facts = [f"reward {_signed(reward)}", _count(prediction.tokens, "token")]
    if rouge_l is not None:
        facts.append(f"ROUGE-L {rouge_l:.2f}")
    if prediction.finish_reason == "length":
        facts.append("cut off")
    return " · ".join(facts)


def _signed(value: float, digits: int = 2) -> str:
    return _minus(f"{value:+.{digits}f}") if round(value, digits) else f"{0:.{digits}f}"


def _short(model: str) -> str:
    """The end of a path; a Hugging Face id as it is."""
    return "/".join(model.rstrip("/").split("/")[-2:])


def _three(value: float) -> str:
    return _minus(f"{value:.3g}")


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _count(amount: int, one: str, many: str = "") -> str:
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"
