"""Small PPO runs for tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf.models.policy import Policy
from rlhf.models.scoring import RewardModel
from rlhf.ppo.learner import Learner
from rlhf.ppo.loop import Prompt, Run, RunState, train
from rlhf.ppo.networks import Episode, Networks
from rlhf.ppo_trainer.config import PPOTrainerConfig
from rlhf.progress import Progress
from rlhf.rewards.combined import Rewards

SMALL = {"train_steps": 3, "batch_size": 8, "minibatch_size": 4, "epochs": 2, "learning_rate": 1e-3}
RESPONSE = 10  # tokens of a completion


class _Reward:
    def score_each(self, prompts: Sequence[str], completions: Sequence[str]) -> tuple[list[float], dict[int, str]]:
        return self.score(prompts, completions), {}


class WordReward(_Reward):
    """Stands where a reward model does: pays 1 for a word. The optimum, to say it always, is known."""

    def __init__(self, wanted: str):
        self.wanted = wanted.strip()

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        return [float(self.wanted in text.split()) for text in completions]


class LetterReward(_Reward):
    """Pays for the share of one letter: a reward that is hardly ever the same for two completions."""

    def __init__(self, letter: str = "o"):
        self.letter = letter

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        return [10.0 * text.count(self.letter) / max(1, len(text)) for text in completions]


def config_of(**options: Any) -> PPOTrainerConfig:
    return PPOTrainerConfig.parse({**SMALL, **options}, "ppo")


def policy_of(folder: Path, config: PPOTrainerConfig) -> Policy:
    from rlhf.data.template import Template

    torch.manual_seed(0)
    return Policy.to_train(folder, Template(), config)[0]


def learner_of(folder: Path, reward_model: RewardModel | None = None, **options: Any) -> Learner:
    config = config_of(**options)
    return Learner(config, Networks(policy_of(folder, config), config, reward_model), RESPONSE)


def prompts_of(policy: Policy, count: int = 12) -> list[Prompt]:
    texts = [f"My brother sold my guitar{' on monday' * (i % 4)} {i}.\nTL;DR:" for i in range(count)]
    return [Prompt(str(i), text, policy.encode_prompt(text), text) for i, text in enumerate(texts)]


def episodes_of(policy: Policy, count: int = 8, seed: int = 0) -> list[Episode]:
    """Prompts and sampled answers of different lengths, some of which end."""
    prompts = [prompt.ids for prompt in prompts_of(policy, count)]
    draws = torch.rand(count, RESPONSE, generator=torch.Generator().manual_seed(seed))
    responses = policy.generate(prompts, RESPONSE, 0.7, draws=draws)
    cut = [ids[: 3 + 2 * i] if i % 3 else [*ids[: 2 + i], policy.eos] for i, ids in enumerate(responses)]
    return [Episode(prompt, ids) for prompt, ids in zip(prompts, cut, strict=True)]


def some_rewards(count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(1))


def run_of(
    networks: Networks,
    config: PPOTrainerConfig,
    reward: Any,
    prompts: Sequence[Prompt],
    response_length: int = RESPONSE,
    **more: Any,
) -> RunState:
    """Train, and see what came of it."""
    with Progress("test", config.train_steps, shown=False) as progress:
        run = Run(prompts, more.pop("held_out", []), response_length, progress, **more)
        return train(config, networks, Rewards(reward, 1.0, []), run)[0]


def gradients(learner: Learner) -> torch.Tensor:
    """Of everything that is trained, one after the other."""
    parts = [p.grad if p.grad is not None else torch.zeros_like(p) for _, p in learner.networks.named_parameters()]
    return torch.cat([part.flatten().clone() for part in parts])


def move_critic(learner: Learner) -> None:
    """A head that is not 0, so that values have gradients back to the trunk."""
    with torch.no_grad():
        weight = learner.networks.value_head.weight
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
