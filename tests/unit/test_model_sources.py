"""Where a Model artifact lies changes nothing of what it is."""

import json
import os
import shutil

import fsspec
import pytest
from safetensors.torch import load_file, save_file

from rlhf.data.template import Template
from rlhf.errors import ModelError
from rlhf.models.card import ModelCard
from rlhf.models.loading import Source
from rlhf.models.policy import Policy
from rlhf.models.scoring import RewardModel
from rlhf.reward_trainer.config import RewardTrainerConfig
from rlhf.sft_trainer.config import SFTTrainerConfig
from tests.models import untrained_reward_model

TEXTS = [("My brother sold my guitar.\nTL;DR:", " sue them"), ("So this is about my boss.\nTL;DR:", " my bike")]


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/models", recursive=True)


def test_an_adapter_at_a_uri_is_put_on_its_base(bucket, llama_folder, tmp_path):
    policy, trainee = Policy.to_train(llama_folder, Template(), SFTTrainerConfig(tuning="lora"))
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.5
    card = ModelCard(kind="policy", base=trainee.base, template_digest=Template().digest)
    policy.save(tmp_path / "adapter", card)
    bucket.put(str(tmp_path / "adapter"), "/models/adapter", recursive=True)
    there = Source.of("memory://models/adapter")
    assert there.card == card
    assert there.base == str(llama_folder)
    prompts = [[5, 6, 7], [8, 9]]
    found, expected, base = (
        Policy.load(folder).generate(prompts, 8, 0.0)
        for folder in ("memory://models/adapter", tmp_path / "adapter", llama_folder)
    )
    assert found == expected != base


def test_a_reward_model_at_a_uri_keeps_what_its_card_says(bucket, llama_folder, tmp_path):
    model = untrained_reward_model(llama_folder)
    card = ModelCard(kind="reward_model", base=str(llama_folder), template_digest="abc", score_shift=2.5)
    model.save(tmp_path / "reward", card)
    bucket.put(str(tmp_path / "reward"), "/models/reward", recursive=True)
    found, expected = (RewardModel.load(folder) for folder in ("memory://models/reward", tmp_path / "reward"))
    assert found.card == expected.card == card
    assert found.score(*zip(*TEXTS, strict=True)) == expected.score(*zip(*TEXTS, strict=True))
    assert Source.of("memory://models/reward").fingerprint == Source.of(tmp_path / "reward").fingerprint
    with pytest.raises(ModelError, match="reward_model"):
        Policy.load("memory://models/reward")


def test_a_reward_model_on_the_hub_keeps_what_its_card_says(monkeypatch, llama_folder, tmp_path):
    card = ModelCard(kind="reward_model", base=str(llama_folder), template_digest="abc", score_shift=2.5)
    repository = tmp_path / "hub/models--org--reward"
    untrained_reward_model(llama_folder).save(repository / "snapshots/abc", card)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for reference in ("org/reward", "hf://org/reward"):
        found = RewardModel.load(reference)
        assert (found.card, found.shift) == (card, 2.5)


def test_a_plain_model_is_told_by_what_it_is_and_not_by_where_it_lies(bucket, llama_folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        shutil.copytree(llama_folder, folder)
    os.utime(second / "config.json", (0, 0))
    bucket.put(str(first), "/models/plain", recursive=True)
    ModelCard(kind="base", base=str(second)).save(tmp_path)
    known = Source.of(first).fingerprint
    assert {Source.of(place).fingerprint for place in (second, "memory://models/plain", tmp_path)} == {known}
    weights = load_file(second / "model.safetensors")
    name = max(weights, key=lambda name: weights[name].numel())
    save_file(weights | {name: weights[name] + 1}, second / "model.safetensors", {"format": "pt"})
    others = {known, Source.of(second).fingerprint, Source.of(tmp_path).fingerprint}
    assert len(others) == 2, "other weights at the same place"
    config = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert Source.of(first).fingerprint not in others


def test_a_plain_model_on_the_hub_is_told_by_its_commit(monkeypatch, llama_folder, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub/models--org--plain"
    (repository / "refs").mkdir(parents=True)
    found = []
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(llama_folder, repository / "snapshots" / commit)
        (repository / "refs/main").write_text(commit)
        found.append(Source.of("hf://org/plain").fingerprint)
        assert found[-1] == Source.of("org/plain").fingerprint
    assert found == [f"org/plain@{commit * 40}" for commit in "ab"]


def test_an_adapted_score_head_of_two_layers_is_trained_further(roberta_folder, tmp_path):
    config = RewardTrainerConfig(tuning="lora")
    model, trainee = RewardModel.to_train(roberta_folder, Template(), config)
    for parameter in model.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    card = ModelCard(kind="reward_model", base=trainee.base, template_digest=Template().digest)
    model.save(tmp_path / "reward", card)
    further, trainee = RewardModel.to_train(tmp_path / "reward", Template(), config)
    assert not trainee.new_modules
    expected = model.score(*zip(*TEXTS, strict=True))
    assert further.score(*zip(*TEXTS, strict=True)) == pytest.approx(expected, abs=1e-5)
