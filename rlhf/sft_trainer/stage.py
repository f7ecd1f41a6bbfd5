"""Fine-tune the policy on demonstrations, before preferences come in."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.data.chat import without_marks
from rlhf.data.store import read_dataset
from rlhf.errors import ConfigError, TrainingError
from rlhf.metrics import late_mean
from rlhf.models.card import ModelCard
from rlhf.progress import say
from rlhf.sft_trainer.config import SFTTrainerConfig
from rlhf.training import processes

STAGE = "sft_trainer"
_SAID = "said"  # in the Trainer's own log, which its checkpoints hold
_TAGS = {"loss": "sft/loss", "learning_rate": "learning_rate"}


def run(
    config: SFTTrainerConfig, *, demonstrations: str, base_model: str, policy: str, report: str, tensorboard: str
) -> dict[str, float]:
    """Train `base_model` on the demonstrations with cross-entropy and write the policy.

    A share of the demonstrations is held out, by prompt, to measure the policy on while it is trained. Without
    demonstrations the policy is the base model itself: the folder then only refers to it. Under torchrun every
    process trains and the first one alone writes.

    Args:
        demonstrations: Canonical demonstrations from data_validation.
        base_model: Hugging Face id, short name, path or URI of a causal or encoder-decoder model.
        policy: Folder for the Model artifact.
        report: File for the HTML report.
        tensorboard: Folder for event files.

    Returns:
        demonstrations (trained on), held_out, steps, kept_step, skipped_steps, prompts_cut and completions_cut
        (shares), and the loss averaged over the last logs. With demonstrations held out also eval_loss, rouge_1,
        rouge_2, rouge_l, rouge_lsum and ended, each of the weights kept. Empty on all processes but the first.

    Raises:
        ConfigError: The options do not fit the model, each other, or the checkpoint found.
        DataError: The demonstrations cannot be read, do not fit the model, or show it no end.
        ModelError: The base model cannot be loaded, cannot generate, or was made with another template.
        Stopped: SIGTERM came.
        TrainingError: Too many steps were not finite, or there is no room for checkpoints or model.
    """
    rows, manifest, template = read_dataset(demonstrations, "demonstrations")
    if not rows:
        return _pass_through(base_model, policy, report, tensorboard) if processes.is_main() else {}

    from rlhf.models.loading import Source, prepare_torch
    from rlhf.models.policy import Policy
    from rlhf.report.page import write_page
    from rlhf.sft_trainer.demonstrations import split, tokenise
    from rlhf.sft_trainer.packing import require_packable
    from rlhf.sft_trainer.page import Training, training_page
    from rlhf.tracking import Tracker
    from rlhf.training.checkpoints import checkpoints_of, raise_if_full

    _require_even_shares(config, processes.count())
    prepare_torch(config.seed)
    model, trainee = Policy.to_train(base_model, template, config)
    if config.packing:
        require_packable(model)
    everything = tokenise(rows, template, model)
    training, held_out = split(everything, config.eval_fraction, config.eval_rows)
    steps = config.train_steps or math.ceil(len(training) * config.epochs / config.batch_size)
    if processes.is_main():
        say(
            STAGE,
            f"{len(training):,} demonstrations, {steps:,} steps of {config.batch_size}; {len(held_out):,} held out; "
            f"tuned: {trainee.in_words}",
        )
    tracker = Tracker(tensorboard if processes.is_main() else None)
    checkpoints = checkpoints_of(
        STAGE,
        config,
        data=manifest.digest,
        template=template.digest,
        starts_from=Source.of(base_model).fingerprint,
    )
    state, said = _train(model, training, held_out, config, steps, tracker, checkpoints)
    tracker.close()
    if state.skipped_steps == steps:
        raise TrainingError(
            f"all {steps} steps had a loss or gradient that is not finite, so nothing was learned; look for broken "
            "weights in the base model"
        )
    if not processes.is_main():
        return {}
    metrics = _metrics(everything, training, held_out, steps, state)
    model.model = trainee.trained()
    card = ModelCard(
        kind="policy",
        base=trainee.base,
        template_digest=template.digest,
        data_digest=manifest.digest,
        base_in_4_bits=trainee.keeps_adapter and config.tuning == "qlora",
        training=metrics,
    )
    page = training_page(
        Training(
            base_model=base_model,
            tuning=trainee.in_words,
            why_none=_why_none_held_out(everything, config),
            target_length=template.target_sequence_length,
            metrics=metrics,
            history=state.history,
            said=said,
        )
    )
    try:
        model.save(policy, card)
        write_page(report, page)
    except Exception as error:
        raise_if_full(error, f"outputs of {STAGE} in {policy}")
        raise
    if checkpoints is not None:
        checkpoints.remove()
    return metrics


def _metrics(
    everything: Sequence[Any],
    training: Sequence[Any],
    held_out: Sequence[Any],
    steps: int,
    state: Any,
) -> dict[str, float]:
    from rlhf.sft_trainer.held_out import MEASURES

    kept_step = state.best_step or steps
    metrics = {
        "demonstrations": len(training),
        "held_out": len(held_out),
        "steps": steps,
        "kept_step": kept_step,
        "skipped_steps": state.skipped_steps,
        "prompts_cut": sum(each.prompt_cut for each in everything) / len(everything),
        "completions_cut": sum(each.completion_cut for each in everything) / len(everything),
        "loss": late_mean(state.history["sft/loss"]),
    }
    if held_out:
        metrics |= {tag.removeprefix("sft/"): dict(state.history[tag])[kept_step] for tag in MEASURES}
    return metrics


def _require_even_shares(config: SFTTrainerConfig, processes: int) -> None:
    share, rest = divmod(config.batch_size, processes)
    if rest:
        raise ConfigError(
            f"batch_size: found {config.batch_size}, which cannot be shared evenly by {processes} processes; expected "
            f"a multiple of {processes}"
        )
    if share % (config.microbatch_size or share):
        raise ConfigError(
            f"microbatch_size: found {config.microbatch_size}, expected a divisor of the {share} demonstrations that "
            "each process gets of a batch"
        )


def _train(
    policy: Any,
    training: Sequence[Any],
    held_out: Sequence[Any],
    config: SFTTrainerConfig,
    steps: int,
    tracker: Any,
    checkpoints: Any,
) -> tuple[Any, list[Any]]:
    """Train in place.

    Returns:
        The run's state, with held-out measures from step 0 on, and what the policy said on the way.
    """
    from rlhf.models.loading import Kind
    from rlhf.sft_trainer.held_out import LOSS, HeldOut
    from rlhf.sft_trainer.trainers import make_trainer
    from rlhf.training.run import EVALUATIONS_PER_RUN, Evaluation, fit

    learn_prompt = config.loss_on == "prompt_and_completion"
    examples = [each.example(policy.kind is Kind.SEQ2SEQ, learn_prompt) for each in training]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(policy, examples, config, steps, folder)
        rows = trainer.args.per_device_train_batch_size
        watched = HeldOut(policy, held_out, learn_prompt, config.eval_samples, rows)

        def measure() -> dict[str, float]:
            measures, said = watched.measure()
            trainer.state.log_history.append({"step": trainer.state.global_step, _SAID: said})
            return measures

        before: dict[str, float] = {}
        by_step, evaluation = {}, None
        if held_out:
            before, by_step[0] = watched.measure()
            tracker.scalars(0, before)
            every = config.eval_every or max(1, steps // EVALUATIONS_PER_RUN)
            key = (lambda measures: -measures[LOSS]) if config.keep == "best" else None
            evaluation = Evaluation(measure, every, key)
        state = fit(
            trainer,
            config,
            stage=STAGE,
            tags=_TAGS,
            tracker=tracker,
            checkpoints=checkpoints,
            evaluation=evaluation,
        )
        policy.model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    for tag, value in before.items():
        state.history[tag].insert(0, (0, value))
    by_step |= {entry["step"]: entry[_SAID] for entry in trainer.state.log_history if _SAID in entry}
    return state, _said(watched.shown, by_step, state.best_step)


def _said(shown: Sequence[Any], by_step: dict[int, list], kept_step: int) -> list[Any]:
    """What the policy answered to the prompts shown: before training, half-way, with the weights kept, at the end."""
    from rlhf.sft_trainer.page import Said

    if not by_step:
        return []
    last = max(by_step)
    middle = min(by_step, key=lambda step: (abs(step - last / 2), step))
    steps = sorted({0, middle, kept_step or last, last})
    return [
        Said(each.id, without_marks(each.text), each.answer, {step: tuple(by_step[step][row]) for step in steps})
        for row, each in enumerate(shown)
    ]


def _why_none_held_out(demonstrations: Sequence[Any], config: SFTTrainerConfig) -> str:
    from rlhf.training.held_out import FEWEST_PROMPTS

    prompts = len({each.key for each in demonstrations})
    if config.eval_fraction and prompts < FEWEST_PROMPTS:
        return f"there are {prompts:,} different prompts, and fewer than {FEWEST_PROMPTS} would say nothing"
    return f"eval_fraction is {config.eval_fraction:g} of {len(demonstrations):,} demonstrations"


def _pass_through(base_model: str, policy: str, report: str, tensorboard: str) -> dict[str, float]:
    from rlhf.report.page import write_page
    from rlhf.sft_trainer.page import skipped_page
    from rlhf.tracking import Tracker

    say(STAGE, "no demonstrations: the policy starts as the base model")
    Path(policy).mkdir(parents=True, exist_ok=True)
    ModelCard(kind="base", base=base_model).save(policy)
    write_page(report, skipped_page(base_model))
    Tracker(tensorboard).close()
    return {"demonstrations": 0, "steps": 0}
