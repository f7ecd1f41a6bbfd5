"""The curves of the evaluator's page: what the trainers logged."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from markupsafe import Markup

from rlhf.evaluator.config import EvaluatorConfig
from rlhf.report import figures
from rlhf.report.page import figure, figures_row, paragraph
from rlhf.words import three

Series = Sequence[tuple[int, float]]


def training_curves(config: EvaluatorConfig, logs: Mapping[str, Mapping[str, Series]]) -> Markup | None:
    """What each trainer logged, where it logged anything.

    Args:
        logs: Scalars by trainer (sft, reward, ppo, grpo) and tag.
    """
    sft, reward, ppo, grpo = (logs.get(name, {}) for name in ("sft", "reward", "ppo", "grpo"))
    plots = [
        _plot("SFT: loss", {"loss": sft.get("sft/loss")}, "step", "nats per token"),
        _plot("Reward model: loss", {"loss": reward.get("rank_loss")}, "step", "nats per pair"),
        _plot(
            "Reward model: accuracy",
            {
                "training batches": reward.get("reward_model/accuracy"),
                "selection pairs": reward.get("reward_model/eval_accuracy"),
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
        _plot("GRPO: grade", {"grade": grpo.get("grpo/grade")}, "update", "mean per completion"),
        _plot(
            "GRPO: KL from the model before",
            {"KL": grpo.get("grpo/kl")},
            "update",
            "nats per completion",
            config.kl_limit,
        ),
        _plot("GRPO: groups without a signal", {"groups": grpo.get("grpo/no_signal")}, "update", "share"),
        _plot("GRPO: spread within groups", {"spread": grpo.get("grpo/spread")}, "update", "standard deviation"),
        _plot("GRPO: length", {"length": grpo.get("grpo/length")}, "update", "mean tokens"),
        _plot("GRPO: completions that end", {"ended": grpo.get("grpo/ended")}, "update", "share"),
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
    first, last = three(fmean(values[:few])), three(fmean(values[-few:]))
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
        alt=f"{title}: from a score of {three(points[0][1])} at a KL of {three(points[0][0])} "
        f"to {three(points[-1][1])} at {three(points[-1][0])}.",
        caption="What distance from the model before bought; later updates are darker. Points that go on to the right "
        "without rising are over-optimisation.",
    )
