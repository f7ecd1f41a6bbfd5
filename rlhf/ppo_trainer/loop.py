"""The PPO loop (Schulman et al. 2017; details of Huang et al. 2024): sample, score, estimate advantages, improve."""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rlhf.errors import TrainingError
from rlhf.metrics import late_mean
from rlhf.models.policy import Policy
from rlhf.models.scoring import RewardModel
from rlhf.ppo_trainer import maths
from rlhf.ppo_trainer.config import PPOTrainerConfig
from rlhf.ppo_trainer.networks import Critic, Episodes, log_probs
from rlhf.progress import Progress

EXAMPLES_PER_UPDATE = 1


@dataclass(frozen=True)
class Prompt:
    id: str
    text: str  # rendered, and within the configured length
    ids: list[int]


@dataclass
class Rollout:
    """One update's episodes: what was said, and what was known of it when it was said."""

    prompts: list[Prompt]
    responses: list[list[int]]
    completions: list[str]
    scores: torch.Tensor  # (episodes,) the reward model's
    kl: torch.Tensor  # (episodes,) nats, estimator k1
    mask: torch.Tensor  # this and all below: (episodes, response tokens)
    log_probs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


@dataclass
class Result:
    metrics: dict[str, float]
    history: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    examples: list[dict[str, Any]] = field(default_factory=list)


def train(
    config: PPOTrainerConfig,
    policy: Policy,
    reward_model: RewardModel,
    prompts: Sequence[Prompt],
    response_length: int,
    progress: Progress,
    log: Callable[[int, dict[str, float]], None],
    write_sample: Callable[[dict[str, Any]], None],
) -> Result:
    """Tune `policy` in place.

    Args:
        response_length: Tokens of a completion, at most.
        log: Takes the update's number and its scalars.
        write_sample: Takes one episode as a JSON-able dict.

    Raises:
        TrainingError: More than `max_skipped_steps` optimiser steps were not finite.
    """
    learner = Learner(config, policy, reward_model)
    batches = prompt_batches(prompts, config.batch_size, config.seed)
    result = Result({})
    for update in range(1, config.train_steps + 1):
        rollout = learner.sample(next(batches), response_length)
        trained = learner.improve(rollout)
        scalars = learner.describe(rollout) | trained
        log(update, scalars)
        for tag, value in scalars.items():
            result.history[tag].append((update, value))
        samples = rollout_samples(update, rollout)
        if (update - 1) % config.sample_every == 0 or update == config.train_steps:
            for sample in samples:
                write_sample(sample)
        result.examples.extend(samples[:EXAMPLES_PER_UPDATE])
        progress.update(update, score=scalars["ppo/score"], kl=scalars["ppo/kl"], length=scalars["ppo/length"])
    result.metrics = {
        "updates": config.train_steps,
        "episodes": config.train_steps * config.batch_size,
        "reward_before": result.history["ppo/score"][0][1],
        "reward_after": late_mean(result.history["ppo/score"]),
        "kl": late_mean(result.history["ppo/kl"]),
        "ended": result.history["ppo/ended"][-1][1],
        "skipped_steps": learner.skipped,
    }
    return result


def prompt_batches(prompts: Sequence[Prompt], batch_size: int, seed: int) -> Iterator[list[Prompt]]:
    """Endless batches: every prompt once in random order, then again in another order."""
    order = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    while True:
        while len(queue) < batch_size:
            queue += torch.randperm(len(prompts), generator=order).tolist()
        yield [prompts[i] for i in queue[:batch_size]]
        del queue[:batch_size]


def rollout_samples(update: int, rollout: Rollout) -> list[dict[str, Any]]:
    return [
        {"update": update, "id": prompt.id, "completion": text, "score": score, "kl": kl}
        for prompt, text, score, kl in zip(
            rollout.prompts, rollout.completions, rollout.scores.tolist(), rollout.kl.tolist(), strict=True
        )
    ]


class Learner:
    """Policy, frozen reference, critic and optimiser, and one update's work on them."""

    def __init__(self, config: PPOTrainerConfig, policy: Policy, reward_model: RewardModel):
        self.config, self.policy, self.reward_model = config, policy, reward_model
        policy.model.eval()  # dropout off, in training too: log-probabilities must mean the same in both phases
        reward_model.model.eval()
        self.reference = copy.copy(policy)
        self.reference.model = copy.deepcopy(policy.model).requires_grad_(False)
        self.critic = Critic(policy, reward_model).eval()
        rate = config.learning_rate * config.learning_rate_multiplier
        value_rate = (config.value_learning_rate or config.learning_rate) * config.learning_rate_multiplier
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(policy.model.parameters()), "lr": rate},
                {"params": list(self.critic.parameters()), "lr": value_rate},
            ],
            eps=1e-5,  # Huang et al. 2024, detail 16
            weight_decay=0.0,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda update: max(0.0, 1 - update / config.train_steps)
        )
        self.shuffle = torch.Generator().manual_seed(config.seed)
        self.score_mean, self.score_std = None, 1.0
        self.skipped = 0

    def sample(self, prompts: list[Prompt], response_length: int) -> Rollout:
        """Let the policy answer, score the answers, and estimate the advantage of every token."""
        config = self.config
        responses = self.policy.generate(
            [prompt.ids for prompt in prompts], response_length, config.temperature, len(prompts)
        )
        completions = [self.policy.decode(ids) for ids in responses]
        scores = torch.tensor(self.reward_model.score([prompt.text for prompt in prompts], completions))
        width = max(map(len, responses))
        old, reference, values = (torch.zeros(len(prompts), width) for _ in range(3))
        mask = torch.zeros(len(prompts), width)
        with torch.no_grad():
            for rows in self._micro_batches(range(len(prompts)), prompts, responses):
                episodes = self._episodes(rows, prompts, responses)
                n = episodes.responses.shape[1]
                old[rows, :n] = log_probs(self.policy, episodes, config.temperature).cpu()
                reference[rows, :n] = log_probs(self.reference, episodes, config.temperature).cpu()
                values[rows, :n] = self.critic(episodes).cpu()
                mask[rows, :n] = episodes.mask.float().cpu()
        rewards = maths.token_rewards(self._rewards(scores, responses), old, reference, mask, config.kl_coeff)
        advantages, returns = maths.gae(rewards, values, mask, config.gamma, config.gae_lambda)
        return Rollout(
            prompts=prompts,
            responses=responses,
            completions=completions,
            scores=scores,
            kl=((old - reference) * mask).sum(1),
            mask=mask,
            log_probs=old,
            values=values,
            advantages=maths.whiten(advantages, mask),
            returns=returns,
        )

    def improve(self, rollout: Rollout) -> dict[str, float]:
        """Pass over the episodes `epochs` times in shuffled minibatches; returns the means of what was measured."""
        size = len(rollout.prompts)
        sums: dict[str, float] = defaultdict(float)
        steps = 0
        learning_rate = self.schedule.get_last_lr()[0]
        for _ in range(self.config.epochs):
            order = torch.randperm(size, generator=self.shuffle).tolist()
            for start in range(0, size, self.config.minibatch_size):
                for name, value in self._step(rollout, order[start : start + self.config.minibatch_size]).items():
                    sums[name] += value
                steps += 1
        self.schedule.step()
        means = {f"ppo/{name}": total / steps for name, total in sums.items()}
        loss = means["ppo/policy_loss"] + self.config.value_coeff * means["ppo/value_loss"]
        return means | {"rl_loss": loss, "learning_rate": learning_rate}

    def describe(self, rollout: Rollout) -> dict[str, float]:
        """Scalars of the episodes; the first two under the tags of the Vertex pipeline."""
        ended = sum(ids[-1] == self.policy.eos for ids in rollout.responses) / len(rollout.responses)
        return {
            "reward": rollout.scores.mean().item(),
            "kl_loss": self.config.kl_coeff * rollout.kl.mean().item(),
            "ppo/score": rollout.scores.mean().item(),
            "ppo/kl": rollout.kl.mean().item(),
            "ppo/entropy": -maths.masked_mean(rollout.log_probs, rollout.mask).item(),
            "ppo/length": rollout.mask.sum(1).mean().item(),
            "ppo/ended": ended,
            "ppo/explained_variance": maths.explained_variance(rollout.values, rollout.returns, rollout.mask).item(),
        }

    def _rewards(self, scores: torch.Tensor, responses: list[list[int]]) -> torch.Tensor:
        """What an episode earns: its score, scaled, and replaced where the completion did not end."""
        if self.score_mean is None:
            standardise = self.config.reward_scaling == "standardise" and len(scores) > 1
            self.score_mean = scores.mean().item() if standardise else 0.0
            self.score_std = max(scores.std().item(), 1e-6) if standardise else 1.0
        rewards = (scores - self.score_mean) / self.score_std
        if self.config.missing_eos_score is not None:
            ended = torch.tensor([ids[-1] == self.policy.eos for ids in responses])
            rewards = torch.where(ended, rewards, self.config.missing_eos_score)
        return rewards

    def _step(self, rollout: Rollout, rows: list[int]) -> dict[str, float]:
        """One optimiser step on a minibatch, its gradient accumulated over micro-batches."""
        config = self.config
        device = self.policy.model.device
        tokens = rollout.mask[rows].sum().to(device)
        measured: dict[str, float] = defaultdict(float)
        self.optimizer.zero_grad(set_to_none=True)
        for micro in self._micro_batches(rows, rollout.prompts, rollout.responses):
            episodes = self._episodes(micro, rollout.prompts, rollout.responses)
            n = episodes.responses.shape[1]
            known = (rollout.log_probs, rollout.values, rollout.advantages, rollout.returns)
            old, old_values, advantages, returns = (tensor[micro, :n].to(device) for tensor in known)
            mask = episodes.mask.float()
            now = log_probs(self.policy, episodes, config.temperature)
            losses, clipped = maths.policy_loss(now, old, advantages, config.clip_range)
            value_losses = maths.value_loss(self.critic(episodes), old_values, returns, config.value_clip_range)
            policy_loss, value_loss = (losses * mask).sum() / tokens, (value_losses * mask).sum() / tokens
            (policy_loss + config.value_coeff * value_loss).backward()
            measured["policy_loss"] += policy_loss.item()
            measured["value_loss"] += value_loss.item()
            measured["clip_fraction"] += ((clipped * mask).sum() / tokens).item()
        norms = [
            torch.nn.utils.clip_grad_norm_(group["params"], config.max_gradient_norm).item()
            for group in self.optimizer.param_groups
        ]
        measured["gradient_norm"] = norms[0]
        if all(map(math.isfinite, (*measured.values(), *norms))):
            self.optimizer.step()
            return measured
        self.skipped += 1
        if self.skipped > config.max_skipped_steps:
            raise TrainingError(
                f"{self.skipped} optimiser steps had a loss or gradient that is not finite, more than "
                f"ppo.max_skipped_steps ({config.max_skipped_steps}) allows; lower the learning rate"
            )
        return {name: 0.0 for name in measured}

    def _micro_batches(
        self, rows: Sequence[int], prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]
    ) -> Iterator[list[int]]:
        """Rows of similar length together, so that little is padded."""
        order = sorted(rows, key=lambda i: (len(prompts[i].ids) + len(responses[i]), i))
        for start in range(0, len(order), self.config.microbatch_size):
            yield order[start : start + self.config.microbatch_size]

    def _episodes(self, rows: list[int], prompts: Sequence[Prompt], responses: Sequence[list[int]]) -> Episodes:
        return Episodes.of(self.policy, [prompts[i].ids for i in rows], [responses[i] for i in rows])
