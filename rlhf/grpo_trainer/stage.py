"""Tune the policy by groups of graded completions: against a grader, a reward model, or both."""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

from rlhf.data.store import read_dataset
from rlhf.errors import ConfigError, DataError
from rlhf.grpo_trainer.config import GRPOTrainerConfig
from rlhf.metrics import late_mean
from rlhf.models.card import ModelCard
from rlhf.progress import say

STAGE = "grpo_trainer"


def run(
    config: GRPOTrainerConfig,
    *,
    prompts: str,
    policy: str,
    tuned_policy: str,
    samples: str,
    report: str,
    tensorboard: str,
    reward_model: str = "",
) -> dict[str, float]:
    """Tune `policy` on `prompts`: sample several completions of each, grade them, and move towards the better ones.

    Under torchrun every process samples and trains its share, and the first one alone writes.

    Args:
        prompts: Canonical prompts from data_validation.
        policy: Model to start from: a Model artifact's folder, Hugging Face id, short name, path or URI.
        reward_model: Model folder of a reward model whose score is added; empty where `config.grader` alone grades.
        tuned_policy: Folder for the Model artifact.
        samples: File for JSON lines `update, id, completion, score` of completions through training.
        report: File for the HTML report.
        tensorboard: Folder for event files.

    Returns:
        updates, completions, grade_before and grade_after (means of the first and the last updates' completions),
        no_signal (share of groups whose completions all got one grade) and spread (mean standard deviation within
        groups) of the last updates, kl (nats a completion from the policy started from), ended (share of completions
        that stopped by themselves), bad_grades and not_judged (completions left out because of a fault, and because no
        grader judges them), skipped_steps, alarms, prompts_cut; with prompts held out, held_out_before and
        held_out_after (mean grades). Empty on all processes but the first.

    Raises:
        ConfigError: There is neither a grader nor a reward model, a grader cannot be loaded, options do not fit each
            other or the model, or the checkpoint is another run's.
        DataError: The prompts cannot be read, there are none, or one leaves no room for a completion.
        ModelError: A model cannot be loaded, or was made with another template.
        Stopped: SIGTERM came before training was over.
        TrainingError: Too many steps or grades were not finite, or a grader failed.
    """
    rows, manifest, template = read_dataset(prompts, "prompts")
    if not rows:
        raise DataError(f"prompts {prompts}: found no rows, expected at least one")
    if config.grader is None and not reward_model:
        raise ConfigError("grader: found none, and no reward model either, so nothing grades; give one")

    from rlhf.grpo_trainer import alarms
    from rlhf.grpo_trainer.page import write_report
    from rlhf.models.loading import Kind, Source, prepare_torch
    from rlhf.models.policy import Policy
    from rlhf.models.scoring import RewardModel
    from rlhf.rewards.combined import Rewards
    from rlhf.rewards.groups import fingerprint, flattened, make_grader
    from rlhf.tracking import Tracker
    from rlhf.training import processes
    from rlhf.training.checkpoints import checkpoints_of, raise_if_full
    from rlhf.training.prompts import read_prompts, split_prompts

    prepare_torch(config.seed)
    processes.join()
    source = Source.of(policy)
    with contextlib.ExitStack() as stack:
        named = flattened(config.grader) if config.grader is not None else []
        graders = [stack.enter_context(contextlib.closing(make_grader(each, template))) for each in named]
        actor, trainee = Policy.to_train(policy, template, config)
        scorer = RewardModel.load(reward_model, template, merged=True) if reward_model else None
        if scorer is not None and scorer.card is not None:
            scorer.card.require_template(template, reward_model)
        rewards = Rewards(scorer, config.reward_model_weight, graders)
        ready, cut = read_prompts(rows, template, actor, scorer)
        training, held_out = split_prompts(ready, config.held_out_prompts)
        if processes.is_main():
            say(
                STAGE,
                f"{len(training):,} prompts, {config.train_steps:,} updates of {config.batch_size} completions, "
                f"{config.group_size} a prompt; {len(held_out)} prompts held out; tuned: {trainee.in_words}",
            )
        tracker = Tracker(tensorboard if processes.is_main() else None)
        checkpoints = checkpoints_of(
            STAGE,
            config,
            data=manifest.digest,
            template=template.digest,
            starts_from=source.fingerprint,
            rewarded_by=[*([Source.of(reward_model).fingerprint] if reward_model else []), *map(fingerprint, named)],
        )
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        given = (actor, training, held_out, rewards, config, tracker, checkpoints, folder)
        if actor.kind is Kind.CAUSAL:
            from rlhf.grpo_trainer.trainer import tune

            tuned = tune(*given)
        else:
            from rlhf.grpo_trainer import encoder_decoder

            tuned = encoder_decoder.tune(*given, source.adapter is not None and config.tuning != "full")
        tracker.close()
        if not processes.is_main():
            return {}
        raised = alarms.look(tuned.history, config)
        for alarm in raised:
            say(STAGE, f"warning: update {alarm.update}: {alarm.words} {alarms.ADVICE[alarm.kind]}")
        metrics = {"prompts_cut": cut, **_summary(tuned, config, len(raised))}
        actor.model = trainee.trained()
        card = ModelCard(
            kind="policy",
            base=trainee.base,
            template_digest=template.digest,
            data_digest=manifest.digest,
            base_in_4_bits=trainee.keeps_adapter and config.tuning == "qlora",
            training=metrics,
        )
        facts = {
            "algorithm": config.algorithm.upper(),
            "started from": policy,
            "graded by": _graded_by(config, reward_model),
            "tuned": trainee.in_words,
            "saved as": "an adapter on its base" if trainee.keeps_adapter else "a whole model",
            "peak learning rate": config.peak_learning_rate,
            "completions an update": config.batch_size,
            "completions a prompt": config.group_size,
            "KL coefficient": config.kl_coeff,
            "temperature": config.temperature,
            "prompts cut": cut,
        }
        try:
            actor.save(tuned_policy, card)
            _write_lines(Path(samples), tuned.samples)
            write_report(report, config.algorithm, metrics, tuned.history, tuned.samples, tuned.examples, raised, facts)
        except Exception as error:
            raise_if_full(error, f"outputs of {STAGE} in {tuned_policy}")
            raise
        if checkpoints is not None:
            checkpoints.remove()
    return metrics


def _summary(tuned: Any, config: GRPOTrainerConfig, raised: int) -> dict[str, float]:
    history = tuned.history
    metrics = {
        "updates": tuned.updates,
        "completions": tuned.updates * config.batch_size,
        "grade_before": history["grpo/grade"][0][1],
        "grade_after": late_mean(history["grpo/grade"]),
        "no_signal": late_mean(history["grpo/no_signal"]),
        "spread": late_mean(history["grpo/spread"]),
        "ended": late_mean(history["grpo/ended"]),
        "bad_grades": tuned.bad_grades,
        "not_judged": tuned.not_judged,
        "skipped_steps": tuned.skipped_steps,
        "alarms": raised,
    }
    if "grpo/kl" in history:
        metrics["kl"] = late_mean(history["grpo/kl"])
    if held_out := history.get("eval/grade"):
        metrics |= {"held_out_before": held_out[0][1], "held_out_after": held_out[-1][1]}
    return metrics


def _graded_by(config: GRPOTrainerConfig, reward_model: str) -> str:
    from rlhf.rewards.groups import flattened

    parts = [f"{config.reward_model_weight:g} x the reward model"] if reward_model else []
    named = flattened(config.grader) if config.grader is not None else []
    return " + ".join([*parts, *(f"{each.weight:g} x {each.where}" for each in named)])


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """All of a file in one rename."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    # Those that came back from a checkpoint have their fields in the alphabet's order.
    ordered = [{name: row[name] for name in ("update", "id", "completion", "score")} for row in rows]
    unfinished.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in ordered), encoding="utf-8")
    unfinished.replace(path)
