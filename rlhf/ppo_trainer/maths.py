"""The mathematics of PPO on completions: small pure functions over masked tensors.

All tensors are (episodes, tokens) over response tokens only. `mask` is 1 on real tokens; what lies under 0 never
moves a result.
"""

import torch


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over real tokens; a scalar."""
    return (values * mask).sum() / mask.sum()


def whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Shift and scale to mean 0 and variance 1 over real tokens; 0 under the mask (Huang et al. 2024, detail 20)."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def token_rewards(
    scores: torch.Tensor,
    log_probs: torch.Tensor,
    reference_log_probs: torch.Tensor,
    mask: torch.Tensor,
    kl_coeff: float,
) -> torch.Tensor:
    """Per-token rewards: the KL penalty (estimator k1) at every token, the score at the last (Stiennon et al. 2020).

    Args:
        scores: (episodes,) reward of each whole completion.
        log_probs, reference_log_probs: Of the sampled tokens, under the sampling policy and the reference.
    """
    rewards = -kl_coeff * (log_probs - reference_log_probs) * mask
    last = mask.sum(1).long() - 1
    rewards[torch.arange(len(rewards)), last] += scores
    return rewards


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), over response tokens only.

    The completion's end is the end of the episode: the value after its last token is 0.

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


def policy_loss(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clipped surrogate objective, negated, token by token (Schulman et al. 2017, eq. 7).

    Returns:
        loss, clipped: (episodes, tokens); `clipped` is 1 where the clipped term is the larger loss.
    """
    ratio = torch.exp(log_probs - old_log_probs)
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(plain, bounded), (bounded > plain).float()


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip_range: float
) -> torch.Tensor:
    """Half the clipped squared error, token by token (Huang et al. 2024, detail 17)."""
    near = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """1 - Var(returns - values) / Var(returns) over real tokens: 1 is a perfect critic, 0 one that knows the mean."""
    error, returns = (returns - values)[mask.bool()], returns[mask.bool()]
    return 1 - error.var(correction=0) / returns.var(correction=0).clamp_min(1e-8)
