"""The reward trainer and bulk inference, on tiny models."""

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
from rlhf.evaluator.page import _prompt_sensitivity
from rlhf.models.card import ModelCard
from rlhf.reward_trainer import RewardTrainerConfig
from rlhf.reward_trainer import stage as reward_trainer
from rlhf.tracking import read_scalars

TEMPLATE = Template(suffix="TL;DR:", prompt_sequence_length=64, target_sequence_length=16)
THINGS = ("guitar", "bike")


def posts(count: int) -> list[tuple[str, str, str]]:
    """(post, the thing it is about, another thing)."""
    draw = random.Random(0)
    chosen = [draw.sample(THINGS, 2) for _ in range(count)]
    return [(f"Number {i}. They broke my {right}.\nTL;DR:", right, wrong) for i, (right, wrong) in enumerate(chosen)]


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
    (remark,) = _prompt_sensitivity(ModelCard.load(tmp_path / "reward_model"))
    assert remark.text.startswith("The reward model ignores the prompt"), "so does the evaluator's page, from the card"


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
    assert _prompt_sensitivity(ModelCard.load(tmp_path / "reward_model")) == []
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
    first = answer(prompts, policy_folder, tmp_path / "a.jsonl", seed=1, tokens_at_once=120)
    again = answer(prompts, policy_folder, tmp_path / "b.jsonl", seed=1, tokens_at_once=120)
    other = answer(prompts, policy_folder, tmp_path / "c.jsonl", seed=2, tokens_at_once=120)
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
