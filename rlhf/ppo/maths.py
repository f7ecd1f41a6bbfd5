"""The mathematics of PPO on completions: small pure functions over masked tensors.

Tensors are (episodes, tokens) over response tokens only, or flat (tokens,) where a function works token by token.
`mask` is 1 on real tokens; what lies under 0 never moves a result.
"""

from collections.abc import Callable, Sequence

import torch
from torch.autograd.function import FunctionCtx, once_differentiable


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over real tokens; a scalar."""
    return (values * mask).sum() / mask.sum()


def whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Shift and scale to mean 0 and variance 1 over real tokens; 0 under the mask (Huang et al. 2024, detail 20).

    The variance is the unbiased one, as in TRL's `masked_whiten`.
    """
    mean = masked_mean(values, mask)
    tokens = mask.sum()
    variance = ((values - mean) ** 2 * mask).sum() / (tokens - 1).clamp_min(1)
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def kl_penalty(
    log_probs: torch.Tensor, reference_log_probs: torch.Tensor, mask: torch.Tensor, estimator: str
) -> torch.Tensor:
    """KL(policy || reference) estimated token by token, in nats (Schulman 2020, http://joschu.net/blog/kl-approx.html).

    Args:
        log_probs, reference_log_probs: Of the sampled tokens, under the sampling policy and the reference.
        estimator: k1 = -log r, or k3 = r - 1 - log r, where r = reference / policy. Both are unbiased; k3 is never
            negative and varies less.
    """
    log_ratio = reference_log_probs - log_probs
    kl = -log_ratio if estimator == "k1" else torch.expm1(log_ratio) - log_ratio
    return torch.where(mask.bool(), kl, 0.0)


def adapted_kl_coeff(kl_coeff: float, kl: float, target: float, horizon: int, episodes: int) -> float:
    """The next KL coefficient of the adaptive controller (Ziegler et al. 2019, sec. 2.2).

    Args:
        kl: Mean KL of this update's completions, in nats.
        target: Nats that it is steered to.
        horizon: Episodes over which it is.
        episodes: Of this update.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coeff * (1 + error * episodes / horizon)


def token_rewards(
    scores: torch.Tensor, kl: torch.Tensor, value_mask: torch.Tensor, kl_coeff: float | torch.Tensor
) -> torch.Tensor:
    """Per-token rewards: the KL penalty at every token, the score at the last (Stiennon et al. 2020, sec. 3.4).

    Args:
        scores: (episodes,) reward of each whole completion.
        kl: (episodes, tokens), 0 under the mask.
        value_mask: 1 on every position that has a value; the score is paid at the last of them.
    """
    rewards = -kl_coeff * kl
    last = value_mask.sum(1).long() - 1
    rewards[torch.arange(len(rewards)), last] += scores
    return rewards


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), over response tokens only.

    The completion's end is the end of the episode: the value after its last position is 0.

    Returns:
        advantages, returns: (episodes, tokens), 0 under the mask.
    """
    values = values * mask
    following = torch.cat((values[:, 1:], torch.zeros_like(values[:, :1])), 1)
    deltas = (rewards + gamma * following - values) * mask
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    advantages = advantages * mask
    return advantages, advantages + values


def standardised_advantages(rewards: torch.Tensor, groups: Sequence[int]) -> torch.Tensor:
    """How much better an episode is than the others of its group, in the group's standard deviations (Shao et al.
    2024, sec. 4.1.2); 0 where all of a group earned the same, and in a group of one.

    Args:
        rewards: (episodes,).
        groups: The number of each episode's group.

    Returns:
        (episodes,).
    """
    return _within_groups(rewards, groups, lambda group: (group - group.mean()) / (group.std() + 1e-4))


def leave_one_out_advantages(rewards: torch.Tensor, groups: Sequence[int]) -> torch.Tensor:
    """How much better an episode is than the mean of the others of its group (Kool et al. 2019, "Buy 4 REINFORCE
    samples, get a baseline for free!"; Ahmadian et al. 2024); 0 in a group of one.

    Args:
        rewards: (episodes,).
        groups: The number of each episode's group.

    Returns:
        (episodes,).
    """
    return _within_groups(rewards, groups, lambda group: group - (group.sum() - group) / (len(group) - 1))


def _within_groups(
    rewards: torch.Tensor, groups: Sequence[int], advantages_of: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    advantages = torch.zeros_like(rewards)
    numbers = torch.tensor(groups)
    for group in numbers.unique():
        rows = numbers == group
        if rows.sum() > 1:
            advantages[rows] = advantages_of(rewards[rows])
    return advantages


GROUP_ADVANTAGES = {"standardised": standardised_advantages, "leave_one_out": leave_one_out_advantages}


def policy_loss(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clipped surrogate objective, negated, token by token (Schulman et al. 2017, eq. 7).

    Returns:
        loss, clipped: Of the arguments' shape; `clipped` is 1 where the clipped term is the larger loss.
    """
    ratio = torch.exp(log_probs - old_log_probs)
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(plain, bounded), (bounded > plain).float()


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the clipped squared error, token by token (Huang et al. 2024, detail 17).

    Returns:
        loss, clipped: Of the arguments' shape; `clipped` is 1 where the clipped term is the larger loss.
    """
    near = old_values + (values - old_values).clamp(-clip_range, clip_range)
    plain, bounded = (values - returns) ** 2, (near - returns) ** 2
    return 0.5 * torch.maximum(plain, bounded), (bounded > plain).float()


def chosen_log_probs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of one token each: (tokens, vocabulary) and (tokens,) to (tokens,)."""
    return _ChosenLogProbs.apply(logits, tokens)


class _ChosenLogProbs(torch.autograd.Function):
    """`log_softmax` and `gather`, whose gradient, one-hot less softmax, takes the room of the log-probabilities.

    Logits of a large vocabulary are all that is large: autograd's own way, with two more tensors of their size, takes
    longer than the output layer's matrix product. It can go back only once; autograd itself refuses the second time.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        log_probs = torch.log_softmax(logits, -1)
        ctx.save_for_backward(log_probs, tokens[:, None])
        return log_probs.gather(-1, tokens[:, None])[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        log_probs, tokens = ctx.saved_tensors
        of_logits = log_probs.exp_().mul_(-gradient[:, None])
        return of_logits.scatter_add_(-1, tokens, gradient[:, None]), None


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Of the distribution that each row of logits stands for, in nats; (tokens, vocabulary) to (tokens,).

    A token of logit -inf has no probability and adds nothing.
    """
    log_probs = torch.log_softmax(logits, -1)
    return -(log_probs.exp() * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)).sum(-1)


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """1 - Var(returns - values) / Var(returns) over real tokens: 1 is a perfect critic, 0 one that knows the mean."""
    error, returns = (returns - values)[mask.bool()], returns[mask.bool()]
    return 1 - error.var(correction=0) / returns.var(correction=0).clamp_min(1e-8)
