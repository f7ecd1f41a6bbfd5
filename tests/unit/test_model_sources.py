"""Where a Model artifact lies changes nothing of what it is."""

import fsspec
import pytest

from rlhf.data.template import Template
from rlhf.errors import ModelError
from rlhf.models.card import ModelCard
from rlhf.models.loading import Source
from rlhf.models.policy import Policy
from rlhf.models.scoring import RewardModel
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
