"""What samples completions, and that vLLM is asked for only where it can be had."""

import inspect

import pytest
import torch

from rlhf.errors import ConfigError
from rlhf.models import engines
from rlhf.models.engines import Transformers, sample, training_engine
from rlhf.models.policy import Policy


@pytest.fixture
def policy(llama_folder):
    return Policy.load(llama_folder)


def engine(wanted: str, policy: Policy) -> engines.Engine:
    return training_engine(wanted, policy, 8, 0.7, 4096, torch.float32)


def test_without_vllm_auto_is_transformers(policy, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    assert isinstance(engine("auto", policy), Transformers)


def test_vllm_is_refused_where_it_is_not_installed(policy, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="engine: found 'vllm', but vllm is not installed"):
        engine("vllm", policy)


def test_vllm_is_refused_without_a_gpu(policy, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="there is no GPU"):
        engine("vllm", policy)
    assert isinstance(engine("auto", policy), Transformers)


def test_vllm_is_refused_for_an_encoder_decoder(t5_folder, monkeypatch):
    policy = Policy.load(t5_folder)
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="encoder-decoder"):
        engine("vllm", policy)


class Recorded:
    """Stands for TRL's VLLMGeneration, which needs a GPU; takes what the real one takes, and answers with EOS."""

    def __init__(self, **options):
        from trl.generation.vllm_generation import VLLMGeneration

        inspect.signature(VLLMGeneration.__init__).bind(self, **options)
        self.options, self.synced = options, 0

    def sync_weights(self):
        self.synced += 1

    def generate(self, *arguments):
        from trl.generation.vllm_generation import VLLMGeneration

        named = inspect.signature(VLLMGeneration.generate).bind(self, *arguments).arguments
        assert named["num_generations"] == 1
        completions = [[5, 1] for _ in named["prompts"]]
        return named["prompts"], completions, None, None


def test_vllm_is_asked_in_the_words_of_trls_interface(policy, monkeypatch):
    from rlhf.models import vllm

    monkeypatch.setattr(vllm, "VLLMGeneration", Recorded)
    asked = vllm.VLLM(policy, 8, 0.7)
    asked.follow()
    assert sample(asked, [[3, 4], [3]], torch.rand(2, 8), 0.7) == [[5, 1], [5, 1]]
    assert asked._generation.synced == 1
    assert asked._generation.options["max_completion_length"] == 8
    assert set(asked._generation.options["generation_kwargs"]["logit_bias"]) == set(policy.forbidden)
    with pytest.raises(ValueError, match="temperature"):
        sample(asked, [[3]], torch.rand(1, 8), 1.0)
