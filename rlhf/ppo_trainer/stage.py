"""Tune the policy with PPO against the reward model."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rlhf.data.store import read_dataset
from rlhf.errors import DataError
from rlhf.models.card import ModelCard
from rlhf.ppo_trainer.config import PPOTrainerConfig
from rlhf.progress import Progress, say

STAGE = "ppo_trainer"


def run(
    config: PPOTrainerConfig,
    *,
    prompts: str,
    policy: str,
    reward_model: str,
    tuned_policy: str,
    samples: str,
    report: str,
    tensorboard: str,
) -> dict[str, float]:
    """Tune `policy` on `prompts` so that `reward_model` scores its completions higher, at a cost for leaving it.

    Args:
        prompts: Canonical prompts from data_validation.
        policy: Model folder of the policy to start from; it is also the reference of the KL penalty.
        reward_model: Model folder of the reward model.
        tuned_policy: Folder for the Model artifact.
        samples: File for JSON lines `update, id, completion, score, kl` of episodes through training.
        report: File for the HTML report.
        tensorboard: Folder for event files.

    Returns:
        updates, episodes, reward_before and reward_after (mean score of the first and the last updates' episodes),
        kl (nats a completion between the tuned policy and the reference), ended (share of completions that stopped by
        themselves), skipped_steps.

    Raises:
        DataError: The prompts cannot be read, or there are none.
        ModelError: A model cannot be loaded, or was made with another template.
        TrainingError: Too many optimiser steps were not finite.
    """
    rows, manifest, template = read_dataset(prompts, "prompts")
    if not rows:
        raise DataError(f"prompts {prompts}: found no rows, expected at least one")

    from rlhf.models.loading import prepare_torch
    from rlhf.models.policy import Policy
    from rlhf.models.scoring import RewardModel
    from rlhf.ppo_trainer.loop import Prompt, train
    from rlhf.tracking import Tracker

    prepare_torch(config.seed)
    actor = Policy.load(policy, template, merged=True)
    scorer = RewardModel.load(reward_model, template, merged=True)
    for model, folder in ((actor, policy), (scorer, reward_model)):
        if model.card is not None:
            model.card.require_template(template, folder)
    fitted = [template.fit(row["prompt"], actor.count_tokens, row.get("messages")) for row in rows]
    ready = [Prompt(row["id"], text, actor.encode_prompt(text)) for row, (text, _) in zip(rows, fitted, strict=True)]
    cut = sum(cut for _, cut in fitted) / len(rows)
    say(STAGE, f"{len(ready)} prompts, {config.train_steps} updates of {config.batch_size} episodes")

    tracker = Tracker(tensorboard)
    with Progress(STAGE, config.train_steps, unit="update") as progress, _json_lines(samples) as write_sample:
        result = train(
            config, actor, scorer, ready, template.target_sequence_length, progress, tracker.scalars, write_sample
        )
    tracker.close()
    metrics = {"prompts_cut": cut, **result.metrics}
    base = actor.card.base if actor.card else policy
    actor.save(
        tuned_policy,
        ModelCard(
            kind="policy",
            base=base,
            template_digest=template.digest,
            data_digest=manifest.digest,
            training=metrics,
        ),
    )
    _report(report, metrics, result.history, result.examples)
    return metrics


@contextlib.contextmanager
def _json_lines(path: str) -> Iterator[Any]:
    unfinished = Path(path).with_name(f".{Path(path).name}.unfinished")
    with open(unfinished, "w", encoding="utf-8") as file:
        yield lambda row: _write_line(file, row)
    unfinished.replace(path)


def _write_line(file: IO[str], row: dict[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _report(path: str, metrics: dict[str, float], history: dict[str, list], examples: list[dict[str, Any]]) -> None:
    from rlhf.report import figures
    from rlhf.report.page import Page, Section, figure, paragraph, table, write_page

    summary = paragraph(
        f"Over {metrics['updates']:,} updates ({metrics['episodes']:,} episodes) the reward model's mean score went "
        f"from {metrics['reward_before']:.3f} to {metrics['reward_after']:.3f}, at {metrics['kl']:.2f} nats of KL per "
        f"completion from the policy it started from. {metrics['ended']:.1%} of the last completions stopped by "
        "themselves. Whether people would agree that they got better, the evaluator's report says."
    )
    curves = [
        ("ppo/score", "Reward", "reward model's score", "Mean score of each update's episodes, before the KL penalty."),
        ("ppo/kl", "KL", "nats a completion", "KL from the policy that training started from (estimator k1)."),
        ("ppo/length", "Length", "tokens", "Mean length of completions."),
        ("ppo/entropy", "Entropy", "nats a token", "Mean of -log p over sampled tokens."),
        ("ppo/explained_variance", "Critic", "explained variance", "1 is a perfect critic, 0 one that knows the mean."),
    ]
    plots = [
        figure(
            figures.lines(title, {title.lower(): history[tag]}, "update", unit),
            alt=f"{title} from {history[tag][0][1]:.3g} to {history[tag][-1][1]:.3g}",
            caption=caption,
        )
        for tag, title, unit, caption in curves
    ]
    shown = table(
        ["update", "completion", "score", "KL"],
        [[e["update"], e["completion"], f"{e['score']:.3f}", f"{e['kl']:.2f}"] for e in examples],
    )
    numbers = table(["metric", "value"], [[name, f"{value:.4g}"] for name, value in metrics.items()])
    sections = [
        Section("Result", summary + numbers, "result"),
        Section("Training", plots[0] + plots[1] + plots[2] + plots[3] + plots[4], "training"),
        Section("Completions through training", shown, "completions"),
    ]
    write_page(path, Page("PPO trainer", "Proximal policy optimisation", sections))
