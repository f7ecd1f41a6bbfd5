"""What raises an alarm in PPO, and what does not."""

import json
import math
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from rlhf.ppo.alarms import ADVICE, OVER_OPTIMISATION, Alarm, Alarms
from rlhf.ppo_trainer.config import PPOTrainerConfig

# Logged by runs of examples/demo, rounded: {run: {tag: [[update, value], ...]}}.
RECORDED = json.loads((Path(__file__).parents[1] / "data" / "ppo_demo_histories.json").read_text())
UNLEASHED = [run for run in RECORDED if "kl_coeff 0," in run]
HELD = [run for run in RECORDED if run not in UNLEASHED]

UPDATES = 40
EVALUATIONS = range(0, UPDATES + 1, 4)
CONFIG = PPOTrainerConfig(batch_size=128, held_out_prompts=64, kl_limit=10)
DEMO = CONFIG.model_copy(update={"kl_limit": 4})  # as its parameter files have it


def every_update(course, noise: float = 0.0) -> list[tuple[int, float]]:
    random.seed(0)
    return [(update, course(update) + random.gauss(0, noise)) for update in range(1, UPDATES + 1)]


def measured(course) -> list[tuple[int, float]]:
    return [(update, course(update)) for update in EVALUATIONS]


def good_run() -> dict[str, list[tuple[int, float]]]:
    """A run whose reward rises by one standard deviation, with nothing wrong, noisy as such runs are."""
    return {
        "ppo/reward": every_update(lambda u: 2 * (1 - math.exp(-u / 10)), 0.15),
        "ppo/reward_std": every_update(lambda u: 2.0, 0.1),
        "ppo/kl": every_update(lambda u: 5 * u / UPDATES, 0.3),
        "ppo/update_kl": every_update(lambda u: 0.005, 0.001),
        "ppo/entropy": every_update(lambda u: 0.8 - 0.4 * u / UPDATES, 0.03),
        "ppo/length": every_update(lambda u: 30 + 10 * u / UPDATES, 1.0),
        "ppo/ended": every_update(lambda u: 0.97, 0.01),
        "ppo/explained_variance": every_update(lambda u: 0.6 - 1 / u, 0.05),
        "ppo/bad_rewards": every_update(lambda u: 0.0),
        "eval/reward": measured(lambda u: 2 * (1 - math.exp(-u / 10))),
        "eval/rouge_l": measured(lambda u: 0.25 - 0.03 * u / UPDATES),
        "eval/entropy": measured(lambda u: 0.8 - 0.4 * u / UPDATES),
        "eval/length": measured(lambda u: 30 + 10 * u / UPDATES),
    }


def replay(history, config: PPOTrainerConfig = CONFIG, alarms: Alarms | None = None, since: int = 1) -> list[Alarm]:
    """What is raised when every update is looked at in its turn."""
    alarms = alarms or Alarms(config, config.held_out_prompts)
    last = max(update for points in history.values() for update, _ in points)
    for now in range(since, last + 1):
        seen = {tag: [(u, v) for u, v in points if u <= now] for tag, points in history.items()}
        alarms.look({tag: points for tag, points in seen.items() if points})
    return alarms.raised


def kinds(alarms: list[Alarm]) -> list[str]:
    return [alarm.kind for alarm in alarms]


@pytest.mark.parametrize("run", UNLEASHED)
def test_the_demo_without_a_kl_penalty_is_called_over_optimised_before_half_of_it_is_over(run):
    raised = replay(RECORDED[run], DEMO)
    first = next(alarm for alarm in raised if alarm.over_optimised)
    assert first.update <= 40
    assert len(RECORDED[run]["ppo/reward"]) == 80


@pytest.mark.parametrize("run", HELD)
def test_the_demo_with_its_own_kl_penalty_raises_nothing(run):
    assert replay(RECORDED[run], DEMO) == []


def test_a_good_run_raises_nothing():
    assert replay(good_run()) == []


RAISES = {
    "kl": {"ppo/kl": every_update(lambda u: u / 2, 0.3)},
    "entropy": {"ppo/entropy": every_update(lambda u: 0.8 * math.exp(-u / 8))},
    "entropy, held out": {"eval/entropy": measured(lambda u: 0.8 * math.exp(-u / 8))},
    "length": {"ppo/length": every_update(lambda u: 30 + 2 * u, 1.0)},
    "length, down": {"ppo/length": every_update(lambda u: 30 * math.exp(-u / 15), 0.2)},
    "length, held out": {"eval/length": measured(lambda u: 30 + 2 * u)},
    "held_out_reward": {"eval/reward": measured(lambda u: 2.0 - abs(u - 12) / 8)},
    "rouge": {"eval/rouge_l": measured(lambda u: 0.25 * math.exp(-u / 30))},
    "constant_reward": {
        "ppo/reward": every_update(lambda u: 3.0), "ppo/reward_std": every_update(lambda u: 0.0),
        "eval/reward": measured(lambda u: 3.0),
    },
    "cut_off": {"ppo/ended": every_update(lambda u: max(0.0, 0.9 - u / 20))},
    "kl_blow_up, not finite": {"ppo/kl": [*good_run()["ppo/kl"][:20], (21, math.nan)], },
    "kl_blow_up, left out": {"ppo/kl": good_run()["ppo/kl"][:20]},
    "kl_blow_up, at once": {"ppo/kl": every_update(lambda u: 25.0 if u == 30 else 2.0)},
    "kl_blow_up, one update": {"ppo/update_kl": every_update(lambda u: 0.9 if u == 30 else 0.005)},
    "kl_blow_up, for nothing": {
        "ppo/kl": every_update(lambda u: u / 2), "ppo/reward": every_update(lambda u: 0.0, 0.1),
    },
    "negative_kl": {"ppo/kl": every_update(lambda u: -2.0, 0.1)},
    "critic": {"ppo/explained_variance": every_update(lambda u: -0.1, 0.05)},
    "bad_rewards": {"ppo/bad_rewards": every_update(lambda u: 3.0)},
}  # fmt: skip


@pytest.mark.parametrize("case", RAISES)
def test_each_thing_that_goes_wrong_raises_its_own_alarm_and_no_other(case):
    raised = replay(good_run() | RAISES[case])
    assert kinds(raised) == [case.split(",")[0]]
    assert ADVICE[raised[0].kind]


def test_every_kind_is_shown_by_a_case():
    assert {case.split(",")[0] for case in RAISES} == set(ADVICE)


def test_over_optimisation_may_stop_a_run_and_rouge_may_not():
    stopping = {alarm.kind for case in RAISES.values() for alarm in replay(good_run() | case) if alarm.over_optimised}
    assert stopping == OVER_OPTIMISATION == {"kl", "entropy", "length", "held_out_reward"}


@pytest.mark.parametrize("case", ["kl", "entropy", "entropy, held out", "length", "length, held out", "rouge"])
def test_what_a_reward_that_does_not_rise_goes_with_is_not_called_over_optimisation(case):
    flat = {"ppo/reward": every_update(lambda u: 0.0, 0.15)}
    assert not any(alarm.over_optimised for alarm in replay(good_run() | RAISES[case] | flat))


@pytest.mark.parametrize(
    ("tag", "wild"),
    [
        ("ppo/reward", 1e6), ("ppo/kl", 19.0), ("ppo/kl", -50.0), ("ppo/entropy", 1e-6), ("ppo/length", 500.0),
        ("ppo/length", 1.0), ("ppo/ended", 0.0), ("ppo/reward_std", 0.0), ("ppo/explained_variance", -1e6),
        ("ppo/bad_rewards", 6.0), ("eval/reward", -9.0), ("eval/rouge_l", 0.1), ("eval/entropy", 0.19),
    ],
)  # fmt: skip
@pytest.mark.parametrize("at", [4, 20, 40])
def test_one_wild_update_raises_nothing(tag, wild, at):
    history = good_run()
    history[tag] = [(update, wild if update == at else value) for update, value in history[tag]]
    assert replay(history) == []


def test_noise_of_the_held_out_reward_is_no_fall():
    after_16 = {"eval/reward": measured(lambda u: 1.6 + (0.3 if u <= 16 else -0.3))}
    assert replay(good_run() | after_16) == []
    fewer = {"ppo/reward_std": every_update(lambda u: 0.5)}
    assert kinds(replay(good_run() | after_16 | fewer)) == ["held_out_reward"]


@pytest.mark.parametrize("certain", [1, 4])
def test_updates_without_a_wrong_answer_say_nothing_of_how_held_out_rewards_spread(certain):
    """A grader of right and wrong, near the end: in some updates all answers are right."""
    last = UPDATES - certain
    history = good_run() | {
        "ppo/reward": every_update(lambda u: 0.9 + 0.1 * u / UPDATES if u <= last else 1.0),
        "ppo/reward_std": every_update(lambda u: 0.3 if u <= last else 0.0),
        "eval/reward": measured(lambda u: 0.97 if u < 28 else 0.95),
    }
    assert replay(history) == []


def test_rewards_that_came_to_spread_are_as_noisy_as_they_are_now():
    history = good_run() | {
        "ppo/reward_std": every_update(lambda u: 0.3 if u <= 30 else 2.0),
        "ppo/reward": every_update(lambda u: 0.1 * u),
        "eval/reward": measured(lambda u: 3.0 if u <= 32 else 2.4),
    }
    assert replay(history) == []


@pytest.mark.parametrize(("prompts", "raised"), [(64, ["held_out_reward"]), (8, [])])
def test_a_held_out_reward_falls_by_what_so_few_prompts_can_show(prompts, raised):
    fall = {"eval/reward": measured(lambda u: 1.6 + (0.6 if u <= 16 else -0.6))}
    assert kinds(replay(good_run() | fall, alarms=Alarms(CONFIG, prompts))) == raised


def test_a_held_out_reward_that_falls_with_the_training_reward_is_no_over_optimisation():
    fall = {"eval/reward": measured(lambda u: -u / 5), "ppo/reward": every_update(lambda u: -u / 5)}
    assert replay(good_run() | fall) == []


def test_a_kl_above_the_limit_is_not_called_idle_before_the_reward_had_time_to_rise():
    fast = {"ppo/kl": every_update(lambda u: 4.0 * u)}
    assert kinds(replay(good_run() | fast)) == ["kl"]


def test_the_kl_alarm_is_raised_at_the_limit_of_the_options():
    history = good_run()
    assert kinds(replay(history, CONFIG.model_copy(update={"kl_limit": 3.0}))) == ["kl"]


def test_a_run_without_a_reference_has_no_kl_to_miss():
    history = {tag: points for tag, points in good_run().items() if tag != "ppo/kl"}
    assert replay(history, CONFIG.model_copy(update={"reference": "none", "kl_coeff": 0.0})) == []
    assert kinds(replay(history)) == ["kl_blow_up"]


def test_nothing_logged_raises_nothing():
    assert Alarms(CONFIG, 64).look({}) == []
    assert Alarms(CONFIG, 64).look({"eval/reward": [(0, 1.0)]}) == []


def test_an_alarm_is_raised_once_and_named_with_the_update_that_was_newest():
    alarms = Alarms(CONFIG, 64)
    history = good_run() | RAISES["kl"]
    new = alarms.look(history)
    assert [(alarm.kind, alarm.update) for alarm in new] == [("kl", UPDATES)]
    assert alarms.look(history) == []
    assert alarms.raised == new


@pytest.mark.parametrize("stop", [3, 15, 23, 30])
def test_a_resumed_run_raises_what_an_uninterrupted_one_does(stop):
    history = good_run() | RAISES["kl"] | RAISES["length"]
    before = replay({tag: [(u, v) for u, v in points if u <= stop] for tag, points in history.items()})
    kept = [Alarm(**alarm) for alarm in json.loads(json.dumps([asdict(alarm) for alarm in before]))]
    whole = replay(history)
    assert replay(history, alarms=Alarms(CONFIG, 64, kept), since=stop + 1) == whole
    assert len(whole) == 2
