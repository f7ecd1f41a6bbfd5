import json
import math

import pytest
import torch

from rlhf.errors import ConfigError, TrainingError
from rlhf.models.policy import Policy
from rlhf.ppo_trainer import PPOTrainerConfig
from rlhf.ppo_trainer import stage as ppo
from rlhf.ppo_trainer.loop import Learner, Prompt, prompt_batches, train
from rlhf.ppo_trainer.networks import log_probs
from rlhf.progress import Progress

SMALL = {
    "train_steps": 3,
    "batch_size": 8,
    "minibatch_size": 4,
    "microbatch_size": 3,
    "epochs": 2,
    "learning_rate": 1e-3,
}


class WordReward:
    """Stands where a reward model does: pays for one token. The optimum, to say it always, is known."""

    def __init__(self, policy: Policy, folder, wanted: str = " my"):
        from rlhf.models.scoring import RewardModel

        torch.manual_seed(0)
        real = RewardModel.load(folder)
        self.model, self.kind, self.tokenizer = real.model, real.kind, real.tokenizer
        self.wanted = wanted.strip()

    def score(self, prompts, completions):
        return [float(text.split().count(self.wanted) > 0) for text in completions]


def prompts_of(policy: Policy, count: int = 12) -> list[Prompt]:
    texts = [f"My brother sold my guitar {i}.\nTL;DR:" for i in range(count)]
    return [Prompt(str(i), text, policy.encode_prompt(text)) for i, text in enumerate(texts)]


@pytest.fixture
def policy(policy_folder) -> Policy:
    return Policy.load(policy_folder)


def test_ratio_is_one_before_the_first_update(policy, llama_folder):
    torch.manual_seed(0)
    config = PPOTrainerConfig(**SMALL)
    learner = Learner(config, policy, WordReward(policy, llama_folder))
    rollout = learner.sample(prompts_of(policy)[:8], 10)
    for rows in learner._micro_batches(range(8), rollout.prompts, rollout.responses):
        episodes = learner._episodes(rows, rollout.prompts, rollout.responses)
        now = log_probs(policy, episodes, config.temperature)
        width = now.shape[1]
        ratio = torch.exp(now - rollout.log_probs[rows, :width])[episodes.mask.bool()]
        assert torch.allclose(ratio, torch.ones_like(ratio), atol=1e-6)  # kernels differ without gradients
    assert torch.equal(rollout.kl, torch.zeros(8)), "the policy is still the reference"


def test_a_bandit_with_a_known_best_answer_is_solved(llama_folder):
    """One token an episode, a reward of 1 for one of them: the policy must come to say it almost always."""
    policy = Policy.load(llama_folder)
    torch.manual_seed(0)
    wanted = policy.tokenizer(" guitar", add_special_tokens=False)["input_ids"]
    assert len(wanted) == 1
    config = PPOTrainerConfig(
        train_steps=60,
        batch_size=256,
        minibatch_size=128,
        microbatch_size=256,
        epochs=4,
        learning_rate=3e-3,
        kl_coeff=0.0,
        temperature=1.0,
        missing_eos_score=None,
    )
    reward = WordReward(policy, llama_folder, " guitar")
    prompt = Prompt("0", "a", policy.encode_prompt("My brother sold my"))
    with Progress("test", config.train_steps) as progress:
        result = train(config, policy, reward, [prompt], 1, progress, lambda *_: None, lambda _: None)
    assert result.metrics["reward_before"] < 0.1
    assert result.metrics["reward_after"] > 0.95


def test_the_kl_penalty_holds_the_policy_back(llama_folder):
    def kl_after(coefficient: float) -> float:
        policy = Policy.load(llama_folder)
        torch.manual_seed(0)
        size = {"train_steps": 12, "batch_size": 32, "minibatch_size": 32, "microbatch_size": 32}
        config = PPOTrainerConfig(**{**SMALL, **size}, kl_coeff=coefficient, missing_eos_score=None)
        reward = WordReward(policy, llama_folder)
        with Progress("test", 12) as progress:
            result = train(config, policy, reward, prompts_of(policy), 6, progress, lambda *_: None, lambda _: None)
        return result.metrics["kl"]

    assert kl_after(1.0) < 0.5 * kl_after(0.0)


def test_gradients_accumulated_over_micro_batches_are_those_of_the_whole_minibatch(policy, llama_folder):
    gradients = []
    for size in (8, 3):
        torch.manual_seed(0)
        tuned = Policy(policy.model, policy.tokenizer, None)
        config = PPOTrainerConfig(**{**SMALL, "microbatch_size": size, "minibatch_size": 8, "max_gradient_norm": 1e9})
        learner = Learner(config, tuned, WordReward(tuned, llama_folder))
        rollout = learner.sample(prompts_of(tuned)[:8], 10)
        learner.optimizer.step = lambda *_, **__: None
        learner._step(rollout, list(range(8)))
        gradients.append(torch.cat([p.grad.flatten().clone() for p in tuned.model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, atol=1e-5)


def test_a_completion_that_does_not_end_gets_the_penalty_in_place_of_its_score(llama_folder):
    policy = Policy.load(llama_folder)
    learner = Learner(PPOTrainerConfig(**SMALL, missing_eos_score=-2.0), policy, WordReward(policy, llama_folder))
    scores = torch.tensor([1.0, 1.0])
    assert learner._rewards(scores, [[7, policy.eos], [7, 8]]).tolist() == [1.0, -2.0]


def test_scores_are_standardised_by_the_first_updates_and_stay_on_that_scale(llama_folder):
    policy = Policy.load(llama_folder)
    config = PPOTrainerConfig(**SMALL, reward_scaling="standardise", missing_eos_score=None)
    learner = Learner(config, policy, WordReward(policy, llama_folder))
    first = learner._rewards(torch.tensor([1.0, 3.0]), [[policy.eos]] * 2)
    assert first.mean().item() == pytest.approx(0)
    assert first.std().item() == pytest.approx(1)
    assert learner._rewards(torch.tensor([2.0]), [[policy.eos]]).item() == pytest.approx(0)


def test_a_step_that_is_not_finite_is_skipped_counted_and_fatal_past_the_limit(llama_folder):
    policy = Policy.load(llama_folder)
    torch.manual_seed(0)
    config = PPOTrainerConfig(**{**SMALL, "max_skipped_steps": 1})
    learner = Learner(config, policy, WordReward(policy, llama_folder))
    rollout = learner.sample(prompts_of(policy)[:8], 6)
    rollout.advantages = rollout.advantages * math.nan
    before = [parameter.clone() for parameter in policy.model.parameters()]
    learner._step(rollout, [0, 1])
    assert learner.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))
    with pytest.raises(TrainingError, match="max_skipped_steps"):
        learner._step(rollout, [0, 1])


def test_every_prompt_is_used_once_before_any_is_used_again(llama_folder):
    prompts = prompts_of(Policy.load(llama_folder), 10)
    batches = prompt_batches(prompts, 4, seed=0)
    drawn = [prompt.id for _ in range(5) for prompt in next(batches)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == sorted(prompt.id for prompt in prompts)
    assert drawn[:10] != drawn[10:]


def test_a_minibatch_larger_than_the_batch_is_refused_with_the_config():
    with pytest.raises(ConfigError, match=r"minibatch_size \(512\) must be at most batch_size \(8\)"):
        PPOTrainerConfig.parse({"batch_size": 8}, "ppo")


def test_json_lines_that_were_not_finished_are_not_left_behind(tmp_path):
    path = tmp_path / "samples.jsonl"

    def killed_while_writing() -> None:
        with ppo._json_lines(str(path)) as write:
            write({"update": 1})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed_while_writing()
    assert not path.exists()
    with ppo._json_lines(str(path)) as write:
        write({"update": 1})
    assert json.loads(path.read_text()) == {"update": 1}
