"""Fit a reward model on human preferences, and find out what it learned."""

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rlhf.data.store import read_dataset
from rlhf.errors import ConfigError, DataError
from rlhf.models.card import ModelCard
from rlhf.progress import say
from rlhf.reward_trainer.config import RewardTrainerConfig

STAGE = "reward_trainer"
SEEN_PAIRS = 1000  # pairs trained on that are scored to see what was memorised


def run(
    config: RewardTrainerConfig,
    *,
    preferences: str,
    policy: str,
    reward_model: str,
    scores: str,
    calibration: str,
    report: str,
    tensorboard: str,
) -> dict[str, float]:
    """Train a scalar reward model with the pairwise logistic loss of Stiennon et al. 2020, eq. 1.

    Under torchrun every process trains and the first one alone measures and writes.

    Args:
        preferences: Canonical preferences from data_validation; pairs of the split `eval` are held out, and neither
            train nor choose the weights.
        policy: Model folder to start from, unless `config.base_model` names another.
        reward_model: Folder for the Model artifact. Scores are shifted so that held-out chosen responses average 0.
        scores: Parquet file for the held-out pairs: `id, score_chosen, score_rejected`, lengths, and `swapped_chosen,
            swapped_rejected` (read with another pair's prompt, null where none fits) where there is more than one
            prompt.
        calibration: JSON file: reliability bins, ECE, ROC curve and confusion matrix of "the first is preferred".
        report: File for the HTML report.
        tensorboard: Folder for event files.

    Returns:
        pairs, selection_pairs and held_out (counts), steps, best_step, skipped_steps, prompts_cut (share), score_shift,
        score_lowest and score_highest (of a sample of what was trained on), and the measures of
        `findings.Findings.metrics`. Empty on all processes but the first.

    Raises:
        ConfigError: Options do not fit each other or the model, or the checkpoint is another run's.
        DataError: The preferences cannot be read, a pair is too long, or either split is empty.
        ModelError: The base model cannot be loaded, or was made with another template.
        Stopped: SIGTERM came before training was over.
        TrainingError: Too many steps were not finite, or there is no room left to write.
    """
    rows, manifest, template = read_dataset(preferences, "preferences")
    for split in ("train", "eval"):
        if not any(row["split"] == split for row in rows):
            raise DataError(
                f"preferences: no pairs in the split {split!r} of {len(rows)}; give more pairs with other prompts"
            )

    from rlhf.models.loading import Source, prepare_torch
    from rlhf.models.scoring import RewardModel
    from rlhf.reward_trainer.findings import Training, examine
    from rlhf.reward_trainer.page import write_report
    from rlhf.reward_trainer.pairs import encode_pairs, score_held_out, write_scores
    from rlhf.tracking import Tracker
    from rlhf.training import processes
    from rlhf.training.checkpoints import checkpoints_of, raise_if_full
    from rlhf.training.held_out import hold_out

    if config.batch_size % processes.count():
        raise ConfigError(
            f"batch_size: found {config.batch_size}, expected a multiple of the {processes.count()} processes"
        )
    prepare_torch(config.seed)
    start = config.base_model or policy
    model, trainee = RewardModel.to_train(start, template, config)
    pairs, cut = encode_pairs(rows, template, model)
    train, held_out = (
        [pair for pair, row in zip(pairs, rows, strict=True) if row["split"] == split] for split in ("train", "eval")
    )
    chooses = hold_out([pair.key for pair in train], config.selection_fraction, config.selection_pairs)
    selection = [pair for pair, is_held_out in zip(train, chooses, strict=True) if is_held_out]
    train = [pair for pair, is_held_out in zip(train, chooses, strict=True) if not is_held_out]
    if processes.is_main():
        say(
            STAGE,
            f"{len(train)} pairs, {config.train_steps} steps of {config.batch_size}; {len(selection)} pairs choose the "
            f"weights, {len(held_out)} are held out; tuned: {trainee.in_words}",
        )
    tracker = Tracker(tensorboard if processes.is_main() else None)
    checkpoints = checkpoints_of(
        STAGE,
        config,
        data=manifest.digest,
        template=template.digest,
        starts_from=Source.of(start).fingerprint,
    )
    with tempfile.TemporaryDirectory() as scratch:
        state = _train(model, train, selection, config, scratch, tracker, checkpoints)
    if not processes.is_main():
        return {}
    model.model = trainee.trained()

    found = score_held_out(model, held_out, config.eval_batch_size, config.seed, STAGE)
    best_step = state.best_step or state.step
    trained_on = _trained_on(train, config, best_step)
    seen = _score_seen(model, trained_on[:: max(1, len(trained_on) // SEEN_PAIRS)][:SEEN_PAIRS], config.eval_batch_size)
    training = Training(
        history=state.history,
        steps=state.step,
        planned_steps=config.train_steps,
        best_step=best_step,
        passes=best_step * config.batch_size / len(train),
        stopped_early=state.stopped_early,
        skipped_steps=state.skipped_steps,
        seen_chosen=[chosen for _, chosen, _ in seen],
        seen_rejected=[rejected for *_, rejected in seen],
        seen_prompts=[prompt for prompt, *_ in seen],
    )
    findings = examine(found, training)
    metrics = {
        "pairs": len(train),
        "selection_pairs": len(selection),
        "held_out": len(held_out),
        "steps": state.step,
        "best_step": training.best_step,
        "skipped_steps": state.skipped_steps,
        "prompts_cut": cut / len(rows),
        "score_shift": model.shift,
        **_score_range(seen),
        **findings.metrics(),
    }
    tracker.scalars(
        state.step, {f"reward_model/held_out_{name}": findings.metrics()[name] for name in ("accuracy", "loss")}
    )
    tracker.close()
    try:
        model.save(
            reward_model,
            ModelCard(
                kind="reward_model",
                base=trainee.base,
                template_digest=template.digest,
                data_digest=manifest.digest,
                base_in_4_bits=trainee.keeps_adapter and config.tuning == "qlora",
                training=metrics,
                score_shift=model.shift,
            ),
        )
        write_scores(scores, found)
        _write_calibration(calibration, findings)
        facts = {
            "started from": start,
            "tuned": trainee.in_words,
            "saved as": "an adapter on its base" if trainee.keeps_adapter else "a whole model",
            "peak learning rate": config.peak_learning_rate,
            "pairs a step": config.batch_size,
            "label smoothing": config.label_smoothing,
            "prompts cut": cut,
            "score shift": model.shift,
        }
        write_report(report, findings, found, training, facts)
    except Exception as error:
        raise_if_full(error, f"outputs of {STAGE} in {reward_model}")
        raise
    if checkpoints is not None:
        checkpoints.remove()
    return metrics


def _train(
    model: Any,
    train: Sequence[Any],
    selection: Sequence[Any],
    config: RewardTrainerConfig,
    scratch: str,
    tracker: Any,
    checkpoints: Any,
) -> Any:
    from rlhf.reward_trainer.trainer import PairwiseTrainer
    from rlhf.training.run import EVALUATIONS_PER_RUN, Evaluation, fit

    trainer = PairwiseTrainer(
        model,
        config,
        [(pair.chosen, pair.rejected, config.margin_scale * (pair.margin or 0.0)) for pair in train],
        _order(train, config, config.train_steps),
        scratch,
    )
    evaluation = None
    if selection:
        evaluation = Evaluation(
            measure=lambda: _measure(model, selection, config.eval_batch_size),
            every=config.eval_every or max(1, config.train_steps // EVALUATIONS_PER_RUN),
            key=lambda found: (found["reward_model/eval_accuracy"], -found["reward_model/eval_loss"]),
            fell=lambda best, now: _fell(best, now, len(selection)),
            patience=config.early_stopping_patience,
        )
    state = fit(
        trainer,
        config,
        stage=STAGE,
        tags={"loss": "rank_loss", "accuracy": "reward_model/accuracy", "learning_rate": "learning_rate"},
        tracker=tracker,
        checkpoints=checkpoints,
        evaluation=evaluation,
    )
    model.model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return state


def _order(train: Sequence[Any], config: RewardTrainerConfig, steps: int) -> list[int]:
    from rlhf.reward_trainer.batches import training_order

    return training_order([pair.key for pair in train], config.batch_size, steps, config.seed)


def _trained_on(train: Sequence[Any], config: RewardTrainerConfig, steps: int) -> list[Any]:
    """The pairs of so many first steps, each once."""
    return [train[index] for index in dict.fromkeys(_order(train, config, steps))]


def _measure(model: Any, pairs: Sequence[Any], batch_size: int) -> dict[str, float]:
    """Loss and accuracy on pairs, of which every process scores its share."""
    import numpy as np

    from rlhf.reward_trainer.measures import pairwise_loss
    from rlhf.training import processes

    mine = pairs[processes.rank() :: processes.count()]
    scored = model.score_encoded([pair.chosen for pair in mine] + [pair.rejected for pair in mine], batch_size)
    gaps = [chosen - rejected for chosen, rejected in zip(scored[: len(mine)], scored[len(mine) :], strict=True)]
    gaps = np.array(processes.interleave(processes.gather(gaps)))
    return {
        "reward_model/eval_loss": pairwise_loss(gaps),
        "reward_model/eval_accuracy": float((gaps > 0).mean()),
    }


def _score_seen(model: Any, pairs: Sequence[Any], batch_size: int) -> list[tuple[int, float, float]]:
    """Prompts' keys and scores of pairs trained on, less those that are not finite, whose steps were skipped."""
    scored = model.score_encoded([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs], batch_size)
    rows = zip((pair.key for pair in pairs), scored[: len(pairs)], scored[len(pairs) :], strict=True)
    return [row for row in rows if all(map(math.isfinite, row[1:]))]


def _score_range(seen: Sequence[tuple[int, float, float]]) -> dict[str, float]:
    """Between which scores lie those of what was trained on: beyond them nobody told the model what people prefer."""
    scores = [score for _, *pair in seen for score in pair]
    return {"score_lowest": min(scores), "score_highest": max(scores)} if scores else {}


def _fell(best: dict[str, float], now: dict[str, float], pairs: int) -> bool:
    """Whether accuracy lies more than its standard error under the best.

    The error is that of Laplace's estimate, for that of an accuracy of 1 would be 0.
    """
    highest = best["reward_model/eval_accuracy"]
    likely = (highest * pairs + 1) / (pairs + 2)
    return highest - now["reward_model/eval_accuracy"] > math.sqrt(likely * (1 - likely) / pairs)


def _write_calibration(path: str, findings: Any) -> None:
    found = {
        **asdict(findings.calibration),
        "roc": findings.roc and asdict(findings.roc),
        "confusion": findings.confusion,
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1)
