"""Made-up results of reward training, plain enough to work out by hand."""

import warnings

import pytest

from rlhf.reward_trainer.findings import HeldOut, Training


@pytest.fixture(autouse=True)
def nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def ranked(right: int, pairs: int = 100, sure: float = 1.7) -> tuple[list[float], list[float]]:
    """Scores of chosen and rejected responses, of which `right` pairs are ranked right, each by `sure`."""
    return [0.0] * pairs, [-sure if i * right % pairs < right else sure for i in range(pairs)]


def scored(right: int, sure: float) -> dict:
    chosen, rejected = ranked(right, sure=sure)
    return {"chosen": chosen, "rejected": rejected}


def held_out(pairs: int = 100, **changes) -> HeldOut:
    """Pairs with nothing wrong: of 100, 85 right, 55 with prompts exchanged, as many longer as shorter, all spoilings
    punished, confidence 85 %."""
    chosen, rejected = ranked(85 * pairs // 100, pairs)
    swapped_chosen, swapped_rejected = ranked(55 * pairs // 100, pairs)
    made = {
        "ids": [f"pair-{i}" for i in range(pairs)],
        "prompts": list(range(pairs)),
        "chosen": chosen,
        "rejected": rejected,
        "swapped_chosen": swapped_chosen,
        "swapped_rejected": swapped_rejected,
        "chosen_length": [10 + 10 * (i % 2) for i in range(pairs)],
        "rejected_length": [20 - 10 * (i % 2) for i in range(pairs)],
        "position": [i // 2 % 2 for i in range(pairs)],
        "margin": [None] * pairs,
        "changed": {name: [score - 1 for score in chosen] for name in ("emptied", "shuffled", "repeated")},
    }
    return HeldOut(**made | changes)


def training(**changes) -> Training:
    """100 steps of which the last is the best, 2 passes, 85 of 100 seen pairs right."""
    chosen, rejected = ranked(85)
    made = {
        "history": {
            "rank_loss": [(step, 0.7 - step / 400) for step in range(1, 101)],
            "reward_model/accuracy": [(step, 0.5 + step / 300) for step in range(1, 101)],
            "reward_model/eval_loss": [(50, 0.6), (100, 0.5)],
            "reward_model/eval_accuracy": [(50, 0.7), (100, 0.84)],
        },
        "steps": 100,
        "planned_steps": 100,
        "best_step": 100,
        "passes": 2.0,
        "stopped_early": False,
        "skipped_steps": 0,
        "seen_chosen": chosen,
        "seen_rejected": rejected,
        "seen_prompts": list(range(100)),
    }
    return Training(**made | changes)
