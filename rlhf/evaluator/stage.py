"""Did it get better: two models' completions of the same prompts, with each other and with human references."""

import math
from pathlib import Path
from statistics import fmean

from rlhf.data.template import Template
from rlhf.errors import ModelError
from rlhf.evaluator.config import EvaluatorConfig
from rlhf.evaluator.page import Evaluation, evaluation_page
from rlhf.evaluator.pairs import Pair, read_pairs
from rlhf.evaluator.verdict import decide
from rlhf.metrics import ROUGE_TYPES, late_mean, rouge, win_rate
from rlhf.progress import Progress, say
from rlhf.report.page import write_page
from rlhf.tracking import read_scalars

STAGE = "evaluator"

Scalars = dict[str, list[tuple[int, float]]]


def run(
    config: EvaluatorConfig,
    *,
    predictions_before: str,
    predictions_after: str,
    evaluation: str,
    reward_model: str,
    report: str,
    sft_logs: str | None = None,
    reward_logs: str | None = None,
    ppo_logs: str | None = None,
) -> dict[str, float]:
    """Compare the models before and after tuning and write the report.

    Args:
        config: The rule of the verdict, and how the page is made.
        predictions_before, predictions_after: Files of bulk_inference.
        evaluation: Canonical prompts with references; rows without one are left out of ROUGE, and counted.
        reward_model: Model that scores both completions and the reference again.
        report: HTML file to write.
        sft_logs, reward_logs, ppo_logs: Folders of TensorBoard event files of the trainers, for their curves;
            `ppo/kl` is part of the verdict. A folder that a skipped trainer did not write has no curves.

    Returns:
        Flat metrics: `rouge_{1,2,l,lsum}_{before,after}`, `reward_{before,after,reference}`, `win_rate`,
        `win_rate_low`, `win_rate_high`, `wins`, `losses`, `ties`, `kl` (nats per completion), `tokens_{before,after}`
        (mean), `ended_{before,after}`, `empty_{before,after}` (shares), `rows`, `rows_with_reference`, `promote`
        (0 or 1). What cannot be measured (no reference, no decided pair, no log) is left out.

    Raises:
        DataError: The inputs do not pair up or were made with other templates.
        ModelError: The reward model cannot be loaded, was trained with another template, or gives a score that is
            not finite.
    """
    pairs, template = read_pairs(predictions_before, predictions_after, evaluation)
    logs = {"sft": _scalars(sft_logs), "reward": _scalars(reward_logs), "ppo": _scalars(ppo_logs)}
    before, after, reference = _score(config, pairs, reward_model, template)

    with_reference = [pair for pair in pairs if pair.reference is not None]
    references = [pair.reference for pair in with_reference]
    rouge_before = rouge([p.before.prediction for p in with_reference], references, config.rouge_stemming)
    rouge_after = rouge([p.after.prediction for p in with_reference], references, config.rouge_stemming)

    wins = win_rate(before, after, config.tie_margin)
    ended_before = fmean(p.before.finish_reason == "stop" for p in pairs)
    ended_after = fmean(p.after.finish_reason == "stop" for p in pairs)
    kl = late_mean(logs["ppo"]["ppo/kl"]) if logs["ppo"].get("ppo/kl") else None
    verdict = decide(config, wins, kl, ended_before, ended_after)

    metrics: dict[str, float | None] = {"rows": len(pairs), "rows_with_reference": len(with_reference)}
    for kind in ROUGE_TYPES:
        name = kind.replace("rouge", "rouge_").lower()
        metrics |= {f"{name}_before": rouge_before.mean.get(kind), f"{name}_after": rouge_after.mean.get(kind)}
    metrics |= {
        "reward_before": fmean(before),
        "reward_after": fmean(after),
        "reward_reference": fmean(reference) if reference else None,
        "win_rate": wins.rate,
        "win_rate_low": wins.low,
        "win_rate_high": wins.high,
        "wins": wins.wins,
        "losses": wins.losses,
        "ties": wins.ties,
        "kl": kl,
        "tokens_before": fmean(p.before.tokens for p in pairs),
        "tokens_after": fmean(p.after.tokens for p in pairs),
        "ended_before": ended_before,
        "ended_after": ended_after,
        "empty_before": fmean(not p.before.prediction.strip() for p in pairs),
        "empty_after": fmean(not p.after.prediction.strip() for p in pairs),
        "promote": verdict.promote,
    }
    known = {name: float(value) for name, value in metrics.items() if value is not None}

    write_page(
        report,
        evaluation_page(
            config,
            Evaluation(
                pairs=pairs,
                before=before,
                after=after,
                reference=dict(zip((p.id for p in with_reference), reference, strict=True)),
                rouge_before=dict(zip((p.id for p in with_reference), rouge_before.rows["rougeL"], strict=True)),
                rouge_after=dict(zip((p.id for p in with_reference), rouge_after.rows["rougeL"], strict=True)),
                wins=wins,
                verdict=verdict,
                metrics=known,
                logs=logs,
            ),
        ),
    )
    say(STAGE, f"{'promote' if verdict.promote else 'hold'}: {verdict.headline}")
    return known


def _score(
    config: EvaluatorConfig, pairs: list[Pair], folder: str, template: Template
) -> tuple[list[float], list[float], list[float]]:
    """Rewards of the completions before and after, (pairs,) each, and of the references that there are."""
    from rlhf.models.loading import prepare_torch
    from rlhf.models.scoring import RewardModel

    prepare_torch(config.seed)
    model = RewardModel.load(folder, template)
    if model.card is not None and model.card.template_digest not in ("", template.digest):
        raise ModelError(
            f"reward_model {folder}: trained with template {model.card.template_digest}, the evaluation dataset has "
            f"{template.digest}; use the reward model that was trained on this run's data"
        )
    texts = [(p.id, p.prompt, p.before.prediction) for p in pairs]
    texts += [(p.id, p.prompt, p.after.prediction) for p in pairs]
    texts += [(p.id, p.prompt, p.reference) for p in pairs if p.reference is not None]
    ids, prompts, completions = zip(*texts, strict=True)
    with Progress(STAGE, len(texts), unit="completion") as progress:
        scores = model.score(prompts, completions, batch_size=config.batch_size, on_batch=progress.update)
    bad = [row for row, score in zip(ids, scores, strict=True) if not math.isfinite(score)]
    if bad:
        raise ModelError(
            f"reward_model {folder}: {len(bad):,} of {len(scores):,} scores are not finite, the first for id "
            f"{bad[0]!r}; the model's weights are damaged or its training diverged"
        )
    return scores[: len(pairs)], scores[len(pairs) : 2 * len(pairs)], scores[2 * len(pairs) :]


def _scalars(folder: str | None) -> Scalars:
    return read_scalars(folder) if folder and Path(folder).is_dir() else {}
