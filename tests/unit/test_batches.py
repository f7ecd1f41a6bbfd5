from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.reward_trainer.batches import chunks, training_order
from rlhf.training.held_out import FEWEST_PROMPTS, hold_out

prompts_of_pairs = st.lists(st.integers(0, 8), min_size=1, max_size=60)


@given(prompts_of_pairs, st.integers(1, 12), st.integers(1, 20), st.integers(0, 3))
def test_every_step_gets_its_pairs_and_every_pass_has_each_pair_once(prompts, batch_size, steps, seed):
    order = training_order(prompts, batch_size, steps, seed)
    assert len(order) == batch_size * steps
    for start in range(0, len(order) - len(prompts) + 1, len(prompts)):
        assert sorted(order[start : start + len(prompts)]) == list(range(len(prompts)))
    assert len(set(order[: len(prompts)])) == min(len(order), len(prompts))


def test_pairs_of_one_prompt_come_in_one_batch():
    prompts = [f"prompt {number // 4}" for number in range(400)]
    order = training_order(prompts, 32, 12, seed=0)
    batches = [order[start : start + 32] for start in range(0, len(order), 32)]
    for batch in batches:
        together = Counter(prompts[index] for index in batch)
        assert set(together.values()) == {4}


def test_a_prompt_with_more_pairs_than_a_batch_is_spread_over_batches_that_follow():
    prompts = ["many"] * 20 + [f"other {number}" for number in range(12)]
    order = training_order(prompts, 8, 4, seed=0)
    assert sorted(order) == list(range(32))


def test_the_order_depends_on_the_seed_alone():
    prompts = list(range(50))
    assert training_order(prompts, 8, 10, 1) == training_order(prompts, 8, 10, 1) != training_order(prompts, 8, 10, 2)


def test_each_pass_is_in_another_order():
    order = training_order(list(range(40)), 8, 10, seed=0)
    assert sorted(order[:40]) == sorted(order[40:]) == list(range(40))
    assert order[:40] != order[40:]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 5000))
def test_parts_hold_every_pair_once_and_no_more_tokens_than_allowed(lengths, most_tokens):
    parts = chunks(lengths, most_tokens)
    assert sorted(index for part in parts for index in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or 2 * len(part) * max(lengths[index] for index in part) <= most_tokens


def test_parts_waste_little_on_padding():
    lengths = [10, 400, 12, 390, 11, 410, 9, 400]
    padded = sum(2 * len(part) * max(lengths[index] for index in part) for part in chunks(lengths, 3280))
    assert padded <= 1.05 * 2 * sum(lengths)
    assert len(chunks(lengths, 10**9)) == 1


def test_rows_held_out_are_whole_prompts_whatever_the_order():
    keys = [number * 7919 % 101 for number in range(300)]
    held_out = {key for key, is_out in zip(keys, hold_out(keys, 0.1, 1000), strict=True) if is_out}
    assert sum(key in held_out for key in keys) == pytest.approx(30, abs=3)
    assert held_out == {key for key, is_out in zip(keys[::-1], hold_out(keys[::-1], 0.1, 1000), strict=True) if is_out}
    assert sum(hold_out(keys, 0.5, 10)) <= 10


def test_nothing_is_held_out_of_a_handful_of_prompts():
    assert not any(hold_out(list(range(FEWEST_PROMPTS - 1)) * 5, 0.5, 1000))
    assert any(hold_out(list(range(FEWEST_PROMPTS)) * 5, 0.5, 1000))
