"""One update of PPO (Schulman et al. 2017; details of Huang et al. 2024): estimate advantages, then improve on them."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlhf.errors import TrainingError
from rlhf.models.batching import by_length
from rlhf.models.draws import generator
from rlhf.ppo import maths
from rlhf.ppo.config import PPOTrainerConfig
from rlhf.ppo.networks import Batch, Episode, Networks
from rlhf.ppo.sharding import clip_gradients, is_spread, spread_like, whole
from rlhf.training import processes

MEASURED = (
    "policy_loss",
    "value_loss",
    "clip_fraction",
    "value_clip_fraction",
    "update_kl",
)


@dataclass
class Rollout:
    """One update's episodes, and what was known of them when they were sampled. Tensors are (episodes, positions)."""

    episodes: Sequence[Episode]
    mask: torch.Tensor  # 1 on response tokens
    value_mask: torch.Tensor  # 1 on positions that have a value: the same, or one more after EOS
    log_probs: torch.Tensor
    kl: torch.Tensor | None  # nats, by the estimator of the penalty; None without a reference
    log_ratio: torch.Tensor | None  # log policy / reference: KL by k1
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


class Learner:
    """The networks, their optimiser, and one update's work on them."""

    def __init__(self, config: PPOTrainerConfig, networks: Networks, response_length: int):
        """Args: response_length: Tokens of a completion, at most."""
        self.config, self.networks, self.response_length = config, networks, response_length
        rates = (
            (networks.policy_parameters(), config.peak_learning_rate),
            (networks.critic_parameters(), config.value_rate),
        )
        # Weights that are spread over processes and weights that are not cannot be stepped together.
        groups = [
            {"params": alike, "lr": rate}
            for parameters, rate in rates
            for alike in ([p for p in parameters if is_spread(p)], [p for p in parameters if not is_spread(p)])
            if alike
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            betas=(0.9, config.adam_beta2),
            eps=1e-5,  # Huang et al. 2024, detail 16
            weight_decay=0.0,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda done: rate_factor(config, done))
        self.skipped_steps = 0
        self._zero = None
        if networks.uses_deepspeed:
            from rlhf.ppo.zero import Zero

            self._zero = Zero(config, networks.as_module(), self.optimizer)

    def estimate(
        self, episodes: Sequence[Episode], rewards: torch.Tensor, kl_coeff: float, groups: Sequence[int] = ()
    ) -> Rollout:
        """What the policy, the reference and the critic make of the episodes, and the advantage of every token.

        Args:
            rewards: (episodes,) what each episode earned, scaled.
            groups: Of which prompt each episode is, for advantages within groups.
        """
        config, networks = self.config, self.networks
        mask, value_mask, log_probs, reference, values = self._read(episodes)
        kl = torch.zeros_like(mask)
        if networks.has_reference:
            kl = maths.kl_penalty(log_probs, reference, mask, config.kl_estimator)
        if config.advantage == "group":
            earned = rewards - kl_coeff * kl.sum(1)
            advantages, returns = maths.GROUP_ADVANTAGES[config.group_baseline](earned, groups)[:, None] * mask, values
        else:
            earned = maths.token_rewards(rewards, kl, value_mask, kl_coeff)
            advantages, returns = maths.gae(earned, values, value_mask, config.gamma, config.gae_lambda)
            advantages = maths.whiten(advantages, mask)
        return Rollout(
            episodes=episodes,
            mask=mask,
            value_mask=value_mask,
            log_probs=log_probs,
            kl=kl if networks.has_reference else None,
            log_ratio=(log_probs - reference) * mask if networks.has_reference else None,
            values=values,
            advantages=advantages,
            returns=returns,
        )

    def watch(self, episodes: Sequence[Episode]) -> tuple[float, list[float] | None]:
        """Entropy of the policy, nats a token, and KL to the reference of each episode in nats, where there is one."""
        mask, _, log_probs, reference, _ = self._read(episodes)
        kl = ((log_probs - reference) * mask).sum(1).tolist() if self.networks.has_reference else None
        return -maths.masked_mean(log_probs, mask).item(), kl

    def _read(self, episodes: Sequence[Episode]) -> tuple[torch.Tensor, ...]:
        """Mask, value mask, log-probabilities by the policy and the reference, values: (episodes, positions) each."""
        config, networks = self.config, self.networks
        spans = [self._values(episode) for episode in episodes]
        shape = (len(episodes), max(spans))
        mask, value_mask = torch.zeros(shape), torch.zeros(shape)
        for row, (episode, count) in enumerate(zip(episodes, spans, strict=True)):
            mask[row, : len(episode.response)] = 1
            value_mask[row, :count] = 1
        found: list[tuple[int, list[float], list[float], list[float]]] = []
        mine = range(len(episodes))[processes.rank() :: processes.count()]
        with torch.no_grad(), networks.precision():
            for rows, batch, _ in self._batches(episodes, list(mine)):
                # Without gradients some kernels differ in the last bit, and the first ratio would not be exactly 1.
                with torch.enable_grad(), networks.training():
                    hidden = networks.hidden(batch).detach()
                how = (batch, config.temperature, config.logits_at_once)
                old = networks.log_probs(hidden, *how)
                with networks.valuing():
                    values = networks.values(hidden, batch)
                reference = old
                if networks.has_reference:
                    reference = networks.reference_log_probs(*how)
                said, valued = ([len(episodes[i].response) for i in rows], [spans[i] for i in rows])
                parts = zip(
                    rows, old.cpu().split(said), reference.cpu().split(said), values.cpu().split(valued), strict=True
                )
                found += parts
        log_probs, reference, values = (torch.zeros(shape) for _ in range(3))
        for row, *known in (entry for part in processes.gather(found) for entry in part):
            for tensor, numbers in zip((log_probs, reference, values), known, strict=True):
                tensor[row, : len(numbers)] = numbers
        return mask, value_mask, log_probs, reference, values

    def improve(self, rollout: Rollout, update: int) -> dict[str, float]:
        """Pass over the episodes `epochs` times in shuffled minibatches.

        Args:
            update: Its number; the order of the episodes depends on it and on the seed alone.

        Returns:
            Means over the optimiser steps that were taken of what was measured at each, NaN where none was;
            `gradient_norm` and `steps`.

        Raises:
            TrainingError: More than `max_skipped_steps` optimiser steps were not finite.
        """
        config = self.config
        sums: dict[str, float] = dict.fromkeys((*MEASURED, "gradient_norm"), 0.0)
        steps = 0
        for rows in self._minibatches(len(rollout.episodes), update):
            measured = self.gradient(rollout, rows)
            if config.stop_at_update_kl is not None and measured["update_kl"] > config.stop_at_update_kl:
                break  # the gradient is dropped
            if not self._step(measured):
                self._skip(update)
                continue
            steps += 1
            for name, value in measured.items():
                sums[name] += value
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return {name: total / steps if steps else math.nan for name, total in sums.items()} | {"steps": steps}

    def gradient(self, rollout: Rollout, rows: Sequence[int]) -> dict[str, float]:
        """The gradient of the loss on a minibatch, accumulated over micro-batches and processes; and its parts.

        Logits are held for `logits_at_once` tokens at a time: their loss goes back to the hidden states at once, and
        from there through the trunk in one pass.

        Args:
            rows: Of the minibatch, in `rollout`.
        """
        networks = self.networks
        counts = [m[rows].sum().item() for m in (rollout.mask, rollout.value_mask)]
        measured = torch.zeros(len(MEASURED), device=networks.device)
        self.optimizer.zero_grad(set_to_none=True)
        mine = sorted(rows, key=lambda i: (len(rollout.episodes[i]), i))[processes.rank() :: processes.count()]
        with networks.training(), self._zero.one_gradient() if self._zero else contextlib.nullcontext():
            for micro, batch, weight in self._batches(rollout.episodes, mine):
                with networks.precision():
                    hidden = networks.hidden(batch)
                leaf = hidden.detach().requires_grad_()
                with networks.valuing():
                    with networks.precision():
                        values = networks.values(leaf, batch)
                    self._value_loss(rollout, micro, values, weight / counts[1], measured)
                spoken = leaf.detach()[batch.spoken]
                back = self._policy_loss(rollout, micro, batch, spoken, weight / counts[0], measured)
                gradient = torch.zeros_like(hidden) if leaf.grad is None else leaf.grad
                gradient[batch.spoken] += back
                hidden.backward(gradient)
        self._sum_over_processes(measured)
        return dict(zip(MEASURED, measured.tolist(), strict=True))

    def _value_loss(
        self, rollout: Rollout, rows: list[int], values: torch.Tensor, weight: float, measured: torch.Tensor
    ) -> None:
        """Take the value loss of a micro-batch back to what its values were computed from."""
        real = rollout.value_mask[rows].bool()
        old, returns = (known[rows][real].to(values.device) for known in (rollout.values, rollout.returns))
        losses, clipped = maths.value_loss(values, old, returns, self.config.value_clip_range)
        loss = weight * losses.sum()
        (self.config.value_coeff * loss).backward()
        measured[1] += loss.detach()
        measured[3] += weight * clipped.sum()

    def _policy_loss(
        self,
        rollout: Rollout,
        rows: list[int],
        batch: Batch,
        hidden: torch.Tensor,
        weight: float,
        measured: torch.Tensor,
    ) -> torch.Tensor:
        """Take the policy loss of a micro-batch, piece by piece, back to the hidden states that predict its tokens.

        Args:
            hidden: These hidden states, (tokens, hidden).

        Returns:
            Their gradient.
        """
        config, device = self.config, self.networks.device
        real = rollout.mask[rows].bool()
        known = [known[rows][real].to(device) for known in (rollout.log_probs, rollout.advantages)]
        gradients = []
        for part, tokens, old, advantages in self.networks.pieces(config.logits_at_once, hidden, batch.tokens, *known):
            leaf = part.detach().requires_grad_()
            with self.networks.precision():
                logits = self.networks.logits(leaf, config.temperature)
            now = maths.chosen_log_probs(logits, tokens)
            losses, clipped = maths.policy_loss(now, old, advantages, config.clip_range)
            loss = weight * losses.sum()
            bonus = weight * config.entropy_coeff * maths.entropy(logits).sum() if config.entropy_coeff else 0.0
            (loss - bonus).backward()
            gradients.append(leaf.grad)
            with torch.no_grad():
                log_ratio = now - old
                measured[0] += loss
                measured[2] += weight * clipped.sum()
                measured[4] += weight * (torch.expm1(log_ratio) - log_ratio).sum()
        return torch.cat(gradients)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What a checkpoint needs: tensors by name, and what JSON can hold. Every process has to ask."""
        rest = {"updates": self.schedule.last_epoch, "skipped_steps": self.skipped_steps}
        if self._zero is not None:
            return self._zero.state(self.networks.named_parameters()), rest
        tensors = {f"weight.{name}": _for_file(value.detach()) for name, value in self.networks.named_parameters()}
        for name, parameter in self.networks.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{name}.{moment}": _for_file(value) for moment, value in moments.items()}
        return tensors, rest

    def load_state(self, tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> None:
        if self._zero is not None:
            self._zero.load_state(self.networks.named_parameters(), tensors)
        else:
            self._load_tensors(tensors)
        # Not all of the schedule's state: it has a rate for each group, and other processes may have other groups.
        self.schedule.last_epoch = rest["updates"]
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate_factor(self.config, rest["updates"])
        self.skipped_steps = rest["skipped_steps"]

    def _load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.networks.named_parameters():
                parameter.copy_(spread_like(tensors[f"weight.{name}"], parameter))
        # By name, for their order depends on which are spread, and so on how many processes there are.
        named = dict(self.networks.named_parameters())
        for key, value in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                name, _, moment = rest.rpartition(".")
                like = spread_like(value, named[name]) if value.dim() else value  # the count of steps has none
                self.optimizer.state[named[name]][moment] = like.to(named[name].device)

    def _values(self, episode: Episode) -> int:
        """Positions of an episode that have a value."""
        said = len(episode.response)
        return min(said + 1, self.response_length) if self.config.score_position == "after_eos" else said

    def _minibatches(self, episodes: int, update: int) -> Iterator[list[int]]:
        for epoch in range(self.config.epochs):
            order = torch.randperm(episodes, generator=generator(self.config.seed, update, epoch)).tolist()
            for start in range(0, episodes, self.config.episodes_per_step):
                yield order[start : start + self.config.episodes_per_step]

    def _batches(self, episodes: Sequence[Episode], rows: Sequence[int]) -> Iterator[tuple[list[int], Batch, float]]:
        """Micro-batches of rows of similar length, longest first, so that memory is short at once or not at all.

        Where weights are spread, every process has to take as many: one that is done takes one episode again, with
        weight 0.
        """
        cut = reversed(by_length([len(episodes[i]) for i in rows], self.config.microbatch_tokens))
        micro_batches = [([rows[i] for i in chosen], 1.0) for chosen in cut]
        if self.networks.is_sharded:
            most = max(processes.gather(len(micro_batches)))
            micro_batches += [([0], 0.0)] * (most - len(micro_batches))
        for micro, weight in micro_batches:
            spans = [self._values(episodes[i]) for i in micro]
            yield micro, Batch.of(self.networks.policy, [episodes[i] for i in micro], spans), weight

    def _step(self, measured: dict[str, float]) -> bool:
        """Take an optimiser step where all that was measured is finite, and the gradient's norm; whether it was."""
        if self._zero is None:
            measured["gradient_norm"] = self._clip_gradients()
        finite = all(map(math.isfinite, measured.values()))
        if finite and self._zero is None:
            self.optimizer.step()
        elif finite:
            measured["gradient_norm"] = self._zero.step()
        return finite and math.isfinite(measured["gradient_norm"])

    def _clip_gradients(self) -> float:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return clip_gradients(parameters, self.config.max_gradient_norm)

    def _sum_over_processes(self, measured: torch.Tensor) -> None:
        if processes.count() == 1:
            return
        for group in self.optimizer.param_groups if self._zero is None else ():
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                if not is_spread(parameter):  # the others' were summed on their way back
                    torch.distributed.all_reduce(parameter.grad)
        torch.distributed.all_reduce(measured)

    def _skip(self, update: int) -> None:
        self.skipped_steps += 1
        if self.skipped_steps > self.config.max_skipped_steps:
            raise TrainingError(
                f"{self.skipped_steps} optimiser steps had a loss or gradient that is not finite, the last one in "
                f"update {update}: more than max_skipped_steps ({self.config.max_skipped_steps}) allows; lower the "
                "learning rate"
            )


def _for_file(value: torch.Tensor) -> torch.Tensor:
    """All of a tensor, of which other processes may hold parts: in the memory of the first process's machine alone."""
    value = whole(value)
    return value.cpu() if processes.is_main() else value.new_empty(0)


def rate_factor(config: PPOTrainerConfig, done: int) -> float:
    """What the learning rates are multiplied with after so many updates, as transformers' schedules have it.

    Those come with a Trainer whose imports take as much memory as a small model.
    """
    if done < config.warmup_steps:
        return done / config.warmup_steps
    left = max(0.0, (config.train_steps - done) / max(1, config.train_steps - config.warmup_steps))
    factors = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left)))}
    return factors[config.learning_rate_schedule]
