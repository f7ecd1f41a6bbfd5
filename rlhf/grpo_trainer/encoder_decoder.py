"""Encoder-decoders, which TRL's trainers do not take: the PPO trainer's loop, with advantages within groups."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.data.template import Template
from rlhf.grpo_trainer.config import GRPOTrainerConfig
from rlhf.grpo_trainer.grading import STAGE
from rlhf.ppo.config import PPOTrainerConfig
from rlhf.ppo.loop import Run, train
from rlhf.ppo.networks import Networks
from rlhf.progress import Progress
from rlhf.rewards.combined import Rewards
from rlhf.tracking import Tracker
from rlhf.training import processes
from rlhf.training.checkpoints import Checkpoints
from rlhf.training.config import TrainerConfig
from rlhf.training.interruption import heed_sigterm
from rlhf.training.prompts import Prompt

# By the name that the loop logs it under, what it is here; the rest is the critic's, of which there is none.
_TAGS = {
    "reward": "reward",
    "kl_loss": "kl_loss",
    "rl_loss": "rl_loss",
    "learning_rate": "learning_rate",
    "ppo/reward": "grpo/grade",
    "ppo/kl": "grpo/kl",
    "ppo/entropy": "grpo/entropy",
    "ppo/length": "grpo/length",
    "ppo/ended": "grpo/ended",
    "ppo/spread": "grpo/spread",
    "ppo/no_signal": "grpo/no_signal",
    "ppo/gradient_norm": "grpo/gradient_norm",
    "ppo/score": "grpo/grade/reward_model",
    "eval/reward": "eval/grade",
}
_SHARES = {"ppo/bad_rewards": "grpo/bad_grades", "ppo/not_judged": "grpo/not_judged"}
"""What the loop counts, and we log as a share of the completions."""


def ppo_options(config: GRPOTrainerConfig, template: Template) -> PPOTrainerConfig:
    """The loop's options that come to the same: one optimiser step on what was sampled, and no critic.

    In such a step all ratios are 1, so that those of tokens and of completions have one gradient. Of either algorithm
    the loop takes the KL off the grade, and its loss is a mean over tokens.
    """
    common = {name: getattr(config, name) for name in TrainerConfig.model_fields}
    same = ("train_steps", "batch_size", "group_size", "rollout_tokens", "missing_eos_penalty", "max_bad_rewards")
    same += ("kl_coeff", "temperature", "clip_range", "learning_rate_multiplier", "engine", "sample_every")
    same += ("held_out_prompts", "eval_every", "kl_limit", "reward_model_weight")
    length = template.prompt_sequence_length + template.target_sequence_length
    memory = {"microbatch_tokens": config.microbatch_size * length} if config.microbatch_size else {}
    return PPOTrainerConfig(
        **common,
        **memory,
        **{name: getattr(config, name) for name in same},
        advantage="group",
        group_baseline="leave_one_out" if config.algorithm == "rloo" else "standardised",
        epochs=1,
        missing_eos_score=None,
        value_coeff=0.0,
        reference="auto" if config.kl_coeff else "none",
    )


def renamed(scalars: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """What the loop logs, by our names."""
    found = {}
    for tag, value in scalars.items():
        if tag in _SHARES:
            of = [(u, v / batch_size) for u, v in value] if isinstance(value, list) else value / batch_size
            found[_SHARES[tag]] = of
        elif tag.startswith("ppo/reward/"):
            found[f"grpo/grade/{tag.removeprefix('ppo/reward/')}"] = value
        elif tag in _TAGS or tag.startswith("eval/"):
            found[_TAGS.get(tag, tag)] = value
    return found


def tune(
    policy: Any,
    training: Sequence[Prompt],
    held_out: Sequence[Prompt],
    rewards: Rewards,
    config: GRPOTrainerConfig,
    tracker: Tracker,
    checkpoints: Checkpoints | None,
    folder: str,
    continues: bool,
) -> Any:
    """Tune an encoder-decoder in place; as `rlhf.grpo_trainer.trainer.tune`.

    Args:
        continues: Whether training starts from an adapter's weights, not from the base under it.
    """
    from rlhf.grpo_trainer.trainer import Tuned, read_lines

    options = ppo_options(config, policy.template)
    networks = Networks(policy, options, None, continues)
    episodes = Path(folder, "samples.jsonl")
    with (
        heed_sigterm() as interruption,
        Progress(STAGE, config.train_steps, unit="update", shown=processes.is_main()) as progress,
    ):
        state, skipped = train(
            options,
            networks,
            rewards,
            Run(
                prompts=training,
                held_out=held_out,
                response_length=policy.template.target_sequence_length,
                progress=progress,
                log=lambda update, scalars: tracker.scalars(update, renamed(scalars, config.batch_size)),
                samples=episodes if processes.is_main() else None,
                checkpoints=checkpoints,
                scratch=Path(folder),
                interruption=interruption,
            ),
        )
    networks.unshard()
    return Tuned(
        updates=state.update,
        skipped_steps=skipped,
        history=renamed(state.history, config.batch_size),
        samples=read_lines(episodes) if processes.is_main() else [],
        examples=state.examples,
        bad_grades=state.bad_rewards,
        not_judged=state.not_judged,
    )
