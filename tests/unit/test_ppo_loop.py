"""The PPO loop: what episodes earn, what a run comes to, and that it goes on where it was."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlhf.errors import Stopped, TrainingError
from rlhf.models.engines import Transformers
from rlhf.ppo import loop
from rlhf.ppo.alarms import ADVICE
from rlhf.ppo.loop import RewardScale, RunState, _finite, _scaled, prompt_batch, sample, summary
from rlhf.ppo.networks import Networks
from rlhf.rewards.combined import Rewards, Scored
from rlhf.rewards.config import RewardFunction
from rlhf.training.checkpoints import Checkpoints
from rlhf.training.interruption import Interruption
from tests.ppo import LetterReward, WordReward, config_of, policy_of, prompts_of, run_of


def run_small(folder, reward=None, response_length=10, **options):
    config = config_of(**options)
    networks = Networks(policy_of(folder, config), config)
    prompts = prompts_of(networks.policy)
    return networks, run_of(networks, config, reward or LetterReward(), prompts, response_length)


def test_a_bandit_with_a_known_best_answer_is_solved(llama_folder):
    """One token an episode, a reward of 1 for one of them: the policy must come to say it almost always."""
    config = config_of(
        train_steps=60,
        batch_size=256,
        minibatch_size=128,
        epochs=4,
        learning_rate=3e-3,
        kl_coeff=0.0,
        temperature=1.0,
        missing_eos_score=None,
    )
    networks = Networks(policy_of(llama_folder, config), config)
    state = run_of(networks, config, WordReward(" guitar"), prompts_of(networks.policy, 1), response_length=1)
    metrics = summary(state, config, 0)
    assert metrics["reward_before"] < 0.1
    assert metrics["reward_after"] > 0.95


def test_the_kl_penalty_holds_the_policy_back(llama_folder):
    size = {"train_steps": 12, "batch_size": 32, "minibatch_size": 32, "missing_eos_score": None}
    loose, held = (
        summary(run_small(llama_folder, response_length=6, kl_coeff=kl, **size)[1], config_of(**size), 0)["kl"]
        for kl in (0.0, 1.0)
    )
    assert held < 0.5 * loose


def test_the_same_seed_gives_the_same_run_whatever_is_sampled_at_once(policy_folder):
    (one, first), (other, second) = (run_small(policy_folder, rollout_tokens=tokens) for tokens in (10**6, 1))
    assert first.history["ppo/reward"] == second.history["ppo/reward"]
    for a, b in zip(one.policy.model.parameters(), other.policy.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_sampled_depends_on_neither_the_batch_nor_its_order(policy_folder):
    config = config_of()
    policy = policy_of(policy_folder, config)
    prompts = prompts_of(policy, 8)
    together = sample(config, Transformers(policy, 10**6), prompts, 10, (0, 1))
    alone = sample(config, Transformers(policy, 1), prompts, 10, (0, 1))
    assert together == alone
    assert sample(config, Transformers(policy, 10**6), prompts, 10, (0, 2)) != together


def test_every_prompt_is_used_once_before_any_is_used_again(llama_folder):
    prompts = prompts_of(policy_of(llama_folder, config_of()), 10)
    drawn = [prompt.id for update in range(1, 6) for prompt in prompt_batch(prompts, 4, update, seed=0)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == sorted(prompt.id for prompt in prompts)
    assert drawn[:10] != drawn[10:]


def test_a_completion_that_does_not_end_gets_the_penalty_in_place_of_its_score_or_off_it():
    rewards, ended = torch.tensor([1.0, 1.0]), [True, False]
    replaced = _scaled(config_of(missing_eos_score=-2.0), RewardScale(), rewards, ended)
    assert replaced.tolist() == [1.0, -2.0]
    less = config_of(missing_eos_score=None, missing_eos_penalty=0.5)
    assert _scaled(less, RewardScale(), rewards, ended).tolist() == [1.0, 0.5]
    kept = _scaled(config_of(missing_eos_score=None), RewardScale(), rewards, ended)
    assert kept.tolist() == [1.0, 1.0]


def test_scores_are_standardised_by_the_first_updates_and_stay_on_that_scale():
    config, scale = config_of(reward_scaling="standardise", missing_eos_score=None), RewardScale()
    first = _scaled(config, scale, torch.tensor([1.0, 3.0]), [True] * 2)
    assert first.mean().item() == pytest.approx(0)
    assert first.std().item() == pytest.approx(1)
    assert _scaled(config, scale, torch.tensor([2.0, 2.0]), [True] * 2).tolist() == pytest.approx([0, 0])


def test_a_scale_is_taken_from_the_first_rewards_that_are_not_all_the_same():
    config, scale = config_of(reward_scaling="standardise", missing_eos_score=None), RewardScale()
    assert _scaled(config, scale, torch.zeros(4), [True] * 4).tolist() == [0] * 4
    scaled = _scaled(config, scale, torch.tensor([1.0, 0.0, 0.0, 0.0]), [True] * 4)
    assert scaled.max().item() == pytest.approx((1 - 1 / 8) / torch.tensor([1.0] + [0] * 7).std().item())
    assert _scaled(config, scale, torch.tensor([9.0]), [True]).item() > 20, "and stays there"
    assert scale.count == 8


def test_running_statistics_are_those_of_all_rewards_so_far_and_clipping_bounds_the_rest():
    config, scale = config_of(reward_scaling="running", reward_clip=1.5, missing_eos_score=None), RewardScale()
    batches = [torch.randn(5, generator=torch.Generator().manual_seed(i)) * (i + 1) + i for i in range(4)]
    for batch in batches:
        last = _scaled(config, scale, batch, [True] * 5)
    together = torch.cat(batches)
    assert scale.mean == pytest.approx(together.mean().item(), rel=1e-5)
    assert scale.deviation == pytest.approx(together.std().item(), rel=1e-5)
    expected = ((batches[-1] - together.mean()) / together.std()).clamp(-1.5, 1.5)
    assert last.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_episodes_without_a_finite_reward_are_left_out_and_counted_and_too_many_end_the_run(llama_folder):
    class Broken(LetterReward):
        def score(self, prompts, completions):
            return [math.nan, *super().score(prompts, completions)[1:]]

    _, state = run_small(llama_folder, Broken(), max_bad_rewards=0.2)
    assert state.bad_rewards == 3
    assert [value for _, value in state.history["ppo/bad_rewards"]] == [1, 1, 1]
    with pytest.raises(TrainingError, match=r"1 of 8 episodes have no finite reward \(reward_model: 0 None, 1 NaN"):
        run_small(llama_folder, Broken(), max_bad_rewards=0.0)


def test_a_run_without_any_reward_ends():
    scored = Scored([math.nan] * 2, {"f": [None, None]})
    with pytest.raises(TrainingError, match=r"2 of 2 episodes have no finite reward \(f: 2 None.*judges one of every"):
        _finite(config_of(), scored, RunState(), None)


def test_episodes_that_nothing_judges_are_left_out_and_are_no_fault():
    scored = Scored([1.0, *[math.nan] * 7], {"f": [1.0, *[None] * 7], "g": [None] * 8})
    state = RunState()
    assert _finite(config_of(max_bad_rewards=0.0), scored, state, None) == [0]
    assert (state.bad_rewards, state.not_judged) == (0, 7)


def test_the_faults_of_one_prompt_do_not_end_a_run_but_those_of_more_do():
    config = config_of(advantage="group", group_size=4, batch_size=8)
    scored = Scored([*[math.nan] * 4, *[1.0] * 4], {"f": [*[math.nan] * 4, *[1.0] * 4]})
    state = RunState()
    assert _finite(config, scored, state, None) == [4, 5, 6, 7]
    assert (state.bad_rewards, state.not_judged) == (4, 0)
    scored = Scored([*[math.nan] * 5, *[1.0] * 3], {"f": [*[math.nan] * 5, *[1.0] * 3]})
    with pytest.raises(TrainingError, match="5 of 8 episodes have no finite reward"):
        _finite(config, scored, state, None)


def test_no_reference_is_kept_where_none_is_asked_for(llama_folder):
    networks, state = run_small(llama_folder, kl_coeff=0.0, reference="none")
    assert networks._reference is None
    assert "ppo/kl" not in state.history
    assert math.isfinite(state.history["ppo/policy_loss"][-1][1])


def test_advantages_within_groups_have_no_critic_to_speak_of(llama_folder):
    _, state = run_small(llama_folder, advantage="group", group_size=4)
    assert len(state.history["ppo/no_signal"]) == len(state.history["ppo/spread"]) == 3
    assert "ppo/explained_variance" not in state.history


def test_the_old_pipelines_tags_are_logged(llama_folder):
    _, state = run_small(llama_folder)
    for tag in ("reward", "kl_loss", "rl_loss", "learning_rate", "ppo/tokens_per_second/rollout"):
        assert [update for update, _ in state.history[tag]] == [1, 2, 3]
    assert [rate for _, rate in state.history["learning_rate"]] == pytest.approx([1e-3, 1e-3 * 2 / 3, 1e-3 / 3])


def test_prompts_held_out_are_measured_and_shown_but_not_trained_on(llama_folder):
    config = config_of(eval_every=2)
    networks = Networks(policy_of(llama_folder, config), config)
    prompts = prompts_of(networks.policy)
    state = run_of(networks, config, LetterReward(), prompts[4:], held_out=prompts[:4])
    assert [update for update, _ in state.history["eval/reward"]] == [0, 2, 3]
    assert {example["id"] for example in state.examples} <= {prompt.id for prompt in prompts[:4]}
    assert all(value > 0 for _, value in state.history["eval/entropy"])
    kl = dict(state.history["eval/kl"])
    assert abs(kl[0]) < 1e-4 < abs(kl[3]), "of the policy that it started from"
    assert [example["kl"] is not None for example in state.examples] == [True] * len(state.examples)


def test_without_prompts_held_out_completions_of_training_are_shown(llama_folder):
    _, state = run_small(llama_folder, eval_every=2)
    assert [example["update"] for example in state.examples] == [2, 2, 3, 3]
    assert all(example["completion"] and math.isfinite(example["score"]) for example in state.examples)


class Constant(LetterReward):
    def score(self, prompts, completions):
        return [2.0] * len(completions)


@pytest.mark.parametrize(
    ("kind", "reward", "options"),
    [
        ("constant_reward", Constant(), {"train_steps": 6}),
        ("cut_off", None, {"train_steps": 6, "response_length": 1}),
        ("kl_blow_up", None, {"train_steps": 2, "learning_rate": 0.3, "max_gradient_norm": 100.0}),
    ],
)
def test_a_run_in_which_something_goes_wrong_says_so(kind, reward, options, llama_folder):
    _, state = run_small(llama_folder, reward, missing_eos_score=None, **options)
    assert kind in [alarm.kind for alarm in state.alarms]


def test_a_process_without_prompts_of_its_own_asks_no_function(monkeypatch):
    class Asked:
        faults, reads_rendered = {}, False

        def __init__(self):
            self.config = RewardFunction(http="http://127.0.0.1/grade")

        def grade(self, prompts, completions, columns):
            raise AssertionError("asked about nothing")

    scored = Rewards(None, 1.0, [Asked()]).score([], [], [], {"id": []})
    assert (scored.total, list(scored.parts.values()), scored.faults) == ([], [[]], {})


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_run_goes_on_from_its_checkpoint_to_the_bit(policy_folder, tuning, tmp_path):
    options = {
        "train_steps": 4,
        "tuning": tuning,
        "kl_target": 1.0,
        "reward_scaling": "running",
        "checkpoint_every": 1,
    }
    config = config_of(**options)

    def train(folder, interruption=None):
        networks = Networks(policy_of(policy_folder, config), config)
        (tmp_path / folder).mkdir(exist_ok=True)
        state = run_of(
            networks,
            config,
            LetterReward(),
            prompts_of(networks.policy),
            checkpoints=Checkpoints(str(tmp_path / folder / "checkpoints"), {}),
            scratch=tmp_path / folder,
            samples=tmp_path / folder / "samples.jsonl",
            interruption=interruption or Interruption(),
        )
        return networks, state

    whole, expected = train("whole")
    interruption = Interruption()
    interruption.requested = True
    for update in (1, 2):
        with pytest.raises(Stopped, match=f"after update {update} of 4"):
            train("cut", interruption)
    resumed, state = train("cut")
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert state.kl_coeff == expected.kl_coeff != config.kl_coeff
    assert state.rewards == expected.rewards
    assert state.history["ppo/reward"] == expected.history["ppo/reward"]
    assert (tmp_path / "cut/samples.jsonl").read_text() == (tmp_path / "whole/samples.jsonl").read_text()


def test_an_alarm_ends_the_run_where_that_is_asked_for(llama_folder, capsys):
    options = {"train_steps": 14, "batch_size": 64, "minibatch_size": 32, "learning_rate": 5e-3, "kl_coeff": 0.0}
    _, state = run_small(llama_folder, kl_limit=0.5, stop_on_alarm=True, missing_eos_score=None, **options)
    assert "kl" in [alarm.kind for alarm in state.alarms]
    assert state.stopped_early
    assert state.update < 14
    (first, *_), said = state.alarms, capsys.readouterr().out
    assert f"[test] warning: update {first.update}: {first.words} {ADVICE[first.kind]}" in said, "in the stage's name"


def test_a_run_that_an_alarm_ended_is_measured_at_its_end(llama_folder, tmp_path):
    """And goes on from its checkpoint where alarms are to end it no more."""
    options = {"train_steps": 14, "batch_size": 64, "minibatch_size": 32, "learning_rate": 5e-3, "kl_coeff": 0.0}
    options |= {"kl_limit": 0.5, "missing_eos_score": None, "eval_every": 14, "sample_every": 14}

    def train(stop_on_alarm):
        config = config_of(stop_on_alarm=stop_on_alarm, **options)
        networks = Networks(policy_of(llama_folder, config), config)
        prompts = prompts_of(networks.policy)
        more = {"checkpoints": Checkpoints(str(tmp_path / "checkpoints"), {}), "scratch": tmp_path}
        samples = tmp_path / "samples.jsonl"
        state = run_of(networks, config, LetterReward(), prompts[1:], held_out=prompts[:1], samples=samples, **more)
        updates = [json.loads(line)["update"] for line in samples.read_text(encoding="utf-8").splitlines()]
        return state, sorted(set(updates))

    state, sampled = train(stop_on_alarm=True)
    assert 1 < state.update < 14
    assert [update for update, _ in state.history["eval/reward"]] == [0, state.update]
    assert sampled == [1, state.update]
    state, _ = train(stop_on_alarm=False)
    assert state.update == 14


def test_an_update_whose_kl_is_not_finite_leaves_the_coefficient_as_it_is(llama_folder, monkeypatch):
    told = loop.describe

    def broken(*given):
        return told(*given) | ({"ppo/kl": math.nan} if next(updates) == 1 else {})

    updates = itertools.count(1)
    monkeypatch.setattr(loop, "describe", broken)
    _, state = run_small(llama_folder, kl_target=1.0)
    coefficient = config_of().kl_coeff
    assert math.isfinite(state.kl_coeff)
    assert state.kl_coeff != coefficient, "the updates after it adapt it"


def test_the_loop_brings_no_reader_of_datasets():
    """pyarrow takes 35 MB of a process; the stage has it, but nothing that only trains."""
    code = "import sys, rlhf.ppo.loop; sys.exit('pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
