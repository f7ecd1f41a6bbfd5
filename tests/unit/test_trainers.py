"""The stages that train on TRL, and bulk inference, on tiny models."""

import json
import random
from pathlib import Path
from statistics import fmean

import pyarrow.parquet as pq
import pytest

from rlhf.bulk_inference import BulkInferenceConfig
from rlhf.bulk_inference import stage as bulk_inference
from rlhf.data.store import write_dataset
from rlhf.data.template import Template
from rlhf.errors import DataError, ModelError, TrainingError
from rlhf.models.card import ModelCard
from rlhf.reward_trainer import RewardTrainerConfig
from rlhf.reward_trainer import stage as reward_trainer
from rlhf.sft_trainer import SFTTrainerConfig
from rlhf.sft_trainer import stage as sft_trainer
from rlhf.tracking import read_scalars

TEMPLATE = Template(suffix="TL;DR:", prompt_sequence_length=64, target_sequence_length=16)
THINGS = ("guitar", "bike")


def posts(count: int) -> list[tuple[str, str, str]]:
    """(post, the thing it is about, another thing)."""
    draw = random.Random(0)
    chosen = [draw.sample(THINGS, 2) for _ in range(count)]
    return [(f"Number {i}. They broke my {right}.\nTL;DR:", right, wrong) for i, (right, wrong) in enumerate(chosen)]


@pytest.fixture
def demonstrations(tmp_path) -> Path:
    rows = [{"id": str(i), "prompt": post, "completion": f"my {thing}"} for i, (post, thing, _) in enumerate(posts(64))]
    write_dataset(tmp_path / "demonstrations", "demonstrations", rows, TEMPLATE)
    return tmp_path / "demonstrations"


@pytest.fixture
def preferences(tmp_path) -> Path:
    """The better answer says `sold`, the worse one does not: easy to learn, and readable from the answer alone."""
    rows = [
        {"id": str(i), "prompt": post, "chosen": f"sold my {thing}", "rejected": f"my {thing}",
         "split": "eval" if i % 4 == 0 else "train"}
        for i, (post, thing, _) in enumerate(posts(64))
    ]  # fmt: skip
    write_dataset(tmp_path / "preferences", "preferences", rows, TEMPLATE)
    return tmp_path / "preferences"


@pytest.fixture
def prompts(tmp_path) -> Path:
    rows = [{"id": f"p{i}", "prompt": post, "reference": None} for i, (post, _, _) in enumerate(posts(10))]
    write_dataset(tmp_path / "prompts", "prompts", rows, TEMPLATE)
    return tmp_path / "prompts"


def train_policy(demonstrations: Path, base: Path, out: Path, **options) -> dict[str, float]:
    config = SFTTrainerConfig(**{"train_steps": 30, "batch_size": 16, "learning_rate": 3e-3, **options})
    return sft_trainer.run(
        config,
        demonstrations=str(demonstrations),
        base_model=str(base),
        policy=str(out / "policy"),
        report=str(out / "sft.html"),
        tensorboard=str(out / "sft_logs"),
    )


def train_reward_model(preferences: Path, policy: Path, out: Path, **options) -> dict[str, float]:
    config = RewardTrainerConfig(**{"train_steps": 40, "batch_size": 16, "learning_rate": 1e-3, **options})
    return reward_trainer.run(
        config,
        preferences=str(preferences),
        policy=str(policy),
        reward_model=str(out / "reward_model"),
        scores=str(out / "scores.parquet"),
        calibration=str(out / "calibration.json"),
        report=str(out / "reward.html"),
        tensorboard=str(out / "reward_logs"),
    )


def answer(prompts: Path, model: Path, out: Path, **options) -> list[dict]:
    bulk_inference.run(BulkInferenceConfig(**options), prompts=str(prompts), model=str(model), predictions=str(out))
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_sft_learns_the_demonstrations_and_to_stop(demonstrations, prompts, policy_folder, tmp_path):
    metrics = train_policy(demonstrations, policy_folder, tmp_path, train_steps=80)
    losses = [value for _, value in read_scalars(tmp_path / "sft_logs")["sft/loss"]]
    assert losses[-1] < 0.5 * losses[0]
    assert metrics["loss"] == pytest.approx(losses[-1], rel=0.5)
    answers = answer(prompts, tmp_path / "policy", tmp_path / "answers.jsonl", temperature=0)
    assert {row["prediction"] for row in answers} <= {f"my {thing}" for thing in THINGS}
    assert all(row["finish_reason"] == "stop" for row in answers)


def test_only_the_completion_is_in_the_loss_unless_asked(demonstrations, llama_folder):
    from rlhf.data.store import read_dataset
    from rlhf.models.policy import Policy

    rows, _, template = read_dataset(demonstrations, "demonstrations")
    policy = Policy.load(llama_folder)
    example = sft_trainer._tokenise(rows[:1], template, policy, SFTTrainerConfig())[0][0]
    learned = [token for token in example["labels"] if token != -100]
    assert policy.decode(learned) == rows[0]["completion"]
    assert learned[-1] == policy.eos
    assert example["input_ids"][-len(learned) :] == learned
    config = SFTTrainerConfig(loss_on="prompt_and_completion")
    both = sft_trainer._tokenise(rows[:1], template, policy, config)[0][0]
    assert both["labels"] == both["input_ids"] == example["input_ids"]


def test_a_completion_over_the_limit_is_cut_counted_and_not_taught_to_stop_there(demonstrations, llama_folder):
    from rlhf.data.store import read_dataset
    from rlhf.models.policy import Policy

    rows, _, template = read_dataset(demonstrations, "demonstrations")
    policy = Policy.load(llama_folder)
    rows = [{**rows[0], "completion": "guitar " * 40}, rows[1]]
    examples, _, completions_cut = sft_trainer._tokenise(rows, template, policy, SFTTrainerConfig())
    assert completions_cut == 1
    assert sum(label != -100 for label in examples[0]["labels"]) == template.target_sequence_length
    assert policy.eos not in examples[0]["input_ids"]


def test_without_demonstrations_the_policy_is_the_base_model(prompts, policy_folder, tmp_path):
    write_dataset(tmp_path / "none", "demonstrations", [], TEMPLATE)
    assert train_policy(tmp_path / "none", policy_folder, tmp_path) == {"demonstrations": 0, "steps": 0}
    assert not list((tmp_path / "policy").glob("*.safetensors")), "weights are not copied"
    passed_on = answer(prompts, tmp_path / "policy", tmp_path / "a.jsonl", temperature=0)
    direct = answer(prompts, policy_folder, tmp_path / "b.jsonl", temperature=0)
    assert [row["prediction"] for row in passed_on] == [row["prediction"] for row in direct]
    assert str(policy_folder) in (tmp_path / "sft.html").read_text()


@pytest.mark.parametrize("base", ["llama", "bert", "t5"])
def test_the_reward_model_learns_the_preference_and_centres_its_scores(base, request, preferences, tmp_path):
    from rlhf.models.scoring import RewardModel

    folder = request.getfixturevalue(f"{base}_folder")
    metrics = train_reward_model(preferences, folder, tmp_path)
    assert metrics["accuracy"] > 0.9
    scores = pq.read_table(tmp_path / "scores.parquet").to_pydict()
    assert len(scores["id"]) == metrics["held_out"] == 16
    assert fmean(scores["score_chosen"]) == pytest.approx(0, abs=1e-5)
    share = fmean(c > r for c, r in zip(scores["score_chosen"], scores["score_rejected"], strict=True))
    assert share == metrics["accuracy"]
    loaded = RewardModel.load(tmp_path / "reward_model")
    post, thing, _ = posts(1)[0]
    assert loaded.score([post], [f"sold my {thing}"])[0] == pytest.approx(scores["score_chosen"][0], abs=1e-5)
    assert {"rank_loss", "learning_rate"} <= set(read_scalars(tmp_path / "reward_logs"))


def test_a_reward_model_that_ignores_the_prompt_is_called_out(preferences, llama_folder, tmp_path):
    metrics = train_reward_model(preferences, llama_folder, tmp_path)
    assert metrics["accuracy_prompt_swapped"] == pytest.approx(metrics["accuracy"], abs=0.05), (
        "the answer gives it away"
    )
    assert "The reward model ignores the prompt" in (tmp_path / "reward.html").read_text()


def test_with_one_held_out_prompt_nothing_is_said_about_reading_it(llama_folder, tmp_path):
    rows = [
        {"id": str(n), "prompt": "Which?" if n < 4 else f"Which {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"}
        for n in range(12)
    ]
    write_dataset(
        tmp_path / "pairs",
        "preferences",
        [{**row, "split": "eval" if n < 4 else "train"} for n, row in enumerate(rows)],
        TEMPLATE,
    )
    metrics = train_reward_model(tmp_path / "pairs", llama_folder, tmp_path, train_steps=2)
    assert metrics["held_out"] == 4
    assert "accuracy_prompt_swapped" not in metrics
    assert "reward_model/accuracy_prompt_swapped" not in read_scalars(tmp_path / "reward_logs")
    assert "whether the reward model reads it is not known" in (tmp_path / "reward.html").read_text()


def test_swapped_scores_are_those_with_another_prompt(preferences, llama_folder, tmp_path):
    from rlhf.models.scoring import RewardModel

    train_reward_model(preferences, llama_folder, tmp_path, train_steps=2)
    scores = pq.read_table(tmp_path / "scores.parquet").to_pydict()
    held_out = posts(64)[::4]
    model = RewardModel.load(tmp_path / "reward_model")
    (_, thing, _), (other_post, _, _) = held_out[0], held_out[1]
    assert scores["swapped_chosen"][0] == pytest.approx(model.score([other_post], [f"sold my {thing}"])[0], abs=1e-5)
    assert scores["swapped_chosen"][0] != pytest.approx(scores["score_chosen"][0], abs=1e-7)


def test_the_same_seed_gives_the_same_reward_model_and_another_seed_another(preferences, llama_folder, tmp_path):
    shifts = [
        train_reward_model(preferences, llama_folder, tmp_path, train_steps=5, seed=seed)["score_shift"]
        for seed in (1, 1, 2)
    ]
    assert shifts[0] == shifts[1] != shifts[2]


def test_preferences_without_a_held_out_split_are_refused(llama_folder, tmp_path):
    row = {"id": "0", "prompt": "a", "chosen": "b", "rejected": "c", "split": "train"}
    write_dataset(tmp_path / "preferences", "preferences", [row], TEMPLATE)
    with pytest.raises(DataError, match="no pairs in the split 'eval'"):
        train_reward_model(tmp_path / "preferences", llama_folder, tmp_path)


def test_a_loss_that_is_not_finite_ends_the_stage_and_says_what_to_do(preferences, llama_folder, tmp_path):
    with pytest.raises(TrainingError, match="lower the learning rate"):
        train_reward_model(preferences, llama_folder, tmp_path, learning_rate=1e30, max_gradient_norm=1e30)


def test_a_model_trained_with_another_template_is_refused(prompts, preferences, llama_folder, tmp_path):
    from rlhf.models.policy import Policy

    card = ModelCard(kind="policy", base="tiny", template_digest="0123456789abcdef")
    Policy.load(llama_folder).save(tmp_path / "other", card)
    with pytest.raises(ModelError, match="0123456789abcdef"):
        answer(prompts, tmp_path / "other", tmp_path / "answers.jsonl")
    with pytest.raises(ModelError, match="0123456789abcdef"):
        train_reward_model(preferences, tmp_path / "other", tmp_path)


def test_answers_come_in_the_order_of_the_prompts_and_repeat_with_the_seed(prompts, policy_folder, tmp_path):
    first = answer(prompts, policy_folder, tmp_path / "a.jsonl", seed=1, batch_size=3)
    again = answer(prompts, policy_folder, tmp_path / "b.jsonl", seed=1, batch_size=3)
    other = answer(prompts, policy_folder, tmp_path / "c.jsonl", seed=2, batch_size=3)
    assert [row["id"] for row in first] == [f"p{i}" for i in range(10)]
    assert first == again
    assert [row["prediction"] for row in first] != [row["prediction"] for row in other]
    assert all(row["template_digest"] == TEMPLATE.digest for row in first)
    assert first[0]["prompt"] == posts(1)[0][0]


def test_no_prompts_are_an_error_not_an_empty_file(llama_folder, tmp_path):
    write_dataset(tmp_path / "none", "prompts", [], TEMPLATE)
    with pytest.raises(DataError, match="found no rows"):
        answer(tmp_path / "none", llama_folder, tmp_path / "answers.jsonl")
    assert not (tmp_path / "answers.jsonl").exists()
