import math

import pytest
import torch

from rlhf.ppo import maths

MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])


def random(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))


def gae_by_definition(rewards, values, length, gamma, lam):
    """Schulman et al. 2016, eq. 16, as the sum it is defined as."""
    values = [*values[:length], 0.0]
    deltas = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(length)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (1.0, 1.0)])
def test_gae_is_the_discounted_sum_of_temporal_differences(gamma, lam):
    rewards, values = random(0), random(1)
    advantages, returns = maths.gae(rewards, values, MASK, gamma, lam)
    for row, length in enumerate((3, 2)):
        expected = gae_by_definition(rewards[row].tolist(), values[row].tolist(), length, gamma, lam)
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-6)
        assert returns[row, :length].tolist() == pytest.approx((advantages + values)[row, :length].tolist(), abs=1e-6)


def test_values_under_the_mask_move_nothing():
    rewards, values, old = random(0) * MASK, random(1), random(2)
    junk = torch.where(MASK.bool(), 0.0, 1e6)
    for clean, dirty in zip(
        maths.gae(rewards, values, MASK, 1.0, 0.95), maths.gae(rewards, values + junk, MASK, 1.0, 0.95), strict=True
    ):
        assert torch.equal(clean, dirty)
    assert torch.equal(maths.whiten(values, MASK), maths.whiten(values + junk, MASK))
    scores = torch.tensor([1.0, 2.0])
    for estimator in ("k1", "k3"):
        clean, dirty = (maths.kl_penalty(given, old, MASK, estimator) for given in (values, values + junk))
        assert torch.equal(clean, dirty)
        rewards = (maths.token_rewards(scores, kl, MASK, 0.1) for kl in (clean, dirty))
        assert torch.equal(*rewards)
    assert maths.explained_variance(values, old, MASK) == maths.explained_variance(values + junk, old, MASK)


def test_whitened_advantages_have_mean_0_and_variance_1_over_real_tokens():
    white = maths.whiten(random(0) * 7 + 3, MASK)
    real = white[MASK.bool()]
    assert real.mean().item() == pytest.approx(0, abs=1e-6)
    assert real.var(correction=1).item() == pytest.approx(1, abs=1e-5)
    assert white[1, 2] == 0


def test_the_score_is_paid_at_the_last_token_and_kl_at_every_one():
    log_probs, reference = random(0), random(1)
    kl = maths.kl_penalty(log_probs, reference, MASK, "k1")
    rewards = maths.token_rewards(torch.tensor([1.0, 2.0]), kl, MASK, kl_coeff=0.1)
    penalty = -0.1 * (log_probs - reference)
    assert torch.allclose(rewards[0], penalty[0] + torch.tensor([0.0, 0.0, 1.0]))
    assert torch.allclose(rewards[1], torch.tensor([penalty[1, 0], penalty[1, 1] + 2.0, 0.0]))


def test_policy_loss_at_ratio_1_is_the_negated_advantage_with_nothing_clipped():
    log_probs, advantages = random(0), random(1)
    loss, clipped = maths.policy_loss(log_probs, log_probs, advantages, 0.2)
    assert torch.equal(loss, -advantages)
    assert clipped.sum() == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "clipped"),
    [(1.5, 1.0, -1.2, 1), (1.5, -1.0, 1.5, 0), (0.5, 1.0, -0.5, 0), (0.5, -1.0, 0.8, 1)],
)
def test_policy_loss_is_the_larger_of_the_plain_and_the_clipped(ratio, advantage, expected, clipped):
    new = torch.tensor([[math.log(ratio)]])
    loss, was_clipped = maths.policy_loss(new, torch.zeros(1, 1), torch.tensor([[advantage]]), 0.2)
    assert loss.item() == pytest.approx(expected)
    assert was_clipped.item() == clipped


@pytest.mark.parametrize(("value", "expected"), [(0.1, 0.5 * 0.9**2), (0.5, 0.5 * 0.8**2), (1.0, 0.5 * 0.8**2)])
def test_value_loss_takes_the_clipped_value_where_that_is_worse(value, expected):
    loss, clipped = maths.value_loss(torch.tensor([[value]]), torch.zeros(1, 1), torch.ones(1, 1), clip_range=0.2)
    assert loss.item() == pytest.approx(expected)
    assert clipped.item() == (value > 0.2)


def test_a_perfect_critic_explains_all_variance_and_a_constant_one_none():
    returns = random(0)
    assert maths.explained_variance(returns, returns, MASK).item() == pytest.approx(1)
    assert maths.explained_variance(torch.full((2, 3), 5.0), returns, MASK).item() == pytest.approx(0, abs=1e-6)


def test_log_probs_and_their_gradient_are_those_of_log_softmax_and_go_back_once():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=draw)
    logits[:, 2] = float("-inf")
    tokens, upstream = torch.tensor([0, 1, 3, 6, 6]), torch.randn(5, generator=draw)
    found, expected = (logits.clone().requires_grad_() for _ in range(2))
    ours = maths.chosen_log_probs(found, tokens)
    theirs = torch.log_softmax(expected, -1)[range(5), tokens]
    assert torch.equal(ours, theirs)
    ours.backward(upstream, retain_graph=True)
    theirs.backward(upstream)
    assert torch.allclose(found.grad, expected.grad, atol=1e-6)
    assert not found.grad[:, 2].any()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ours.backward(upstream)
