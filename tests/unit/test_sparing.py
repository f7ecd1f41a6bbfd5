"""What nobody reads of the last layer is not computed, and nothing that is read changes."""

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, MixtralConfig, MixtralForCausalLM

from rlhf.models import sparing
from rlhf.models.policy import Policy
from rlhf.models.scoring import RewardModel

PROMPTS = ["My brother sold my guitar.\nTL;DR:", "So this is about my boss. Should I sue them?\nTL;DR:", "a\nTL;DR:"]
SIZE = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def positions_in(layer, seen: list[int]) -> None:
    """Note how many positions a layer's feed-forward part works on."""
    layer.mlp.up_proj.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1].numel()))


@pytest.fixture(params=[False, True], ids=["plain", "sparing"])
def spares(request, monkeypatch) -> bool:
    if not request.param:
        monkeypatch.setattr(sparing, "_last_feed_forward", lambda model: None)
    return request.param


def test_of_a_prompt_the_last_layer_works_on_its_last_token(llama_folder, spares):
    policy = Policy.load(llama_folder)
    prompts = [policy.encode_prompt(text) for text in PROMPTS]
    first, last = [], []
    positions_in(policy.model.model.layers[0], first)
    positions_in(policy.model.model.layers[-1], last)
    policy.generate(prompts, 6, 0.0)
    last = last[-len(first) :]  # without the one that shows what the part is
    assert first[0] == 3 * max(map(len, prompts))
    assert last[0] == (3 if spares else first[0])
    assert last[1:] == first[1:], "a token at a time everything is read"


def test_completions_are_those_of_the_whole_computation(llama_folder, monkeypatch):
    policy = Policy.load(llama_folder)
    prompts = [policy.encode_prompt(text) for text in PROMPTS]
    spared = policy.generate(prompts, 20, 0.0)
    monkeypatch.setattr(sparing, "_last_feed_forward", lambda model: None)
    assert policy.generate(prompts, 20, 0.0) == spared


def test_scores_are_those_of_the_whole_computation(llama_folder, monkeypatch):
    torch.manual_seed(0)
    model = RewardModel.load(llama_folder)
    texts = (PROMPTS, ["my brother sold", "should i sue", "b"])
    seen: list[int] = []
    positions_in(model.model.model.layers[-1], seen)
    spared = model.score(*texts)
    monkeypatch.setattr(sparing, "_last_feed_forward", lambda model: None)
    assert model.score(*texts) == pytest.approx(spared, abs=1e-6)
    assert seen[-2] == 3 < seen[-1]


def test_a_feed_forward_part_that_takes_more_than_states_is_left_whole():
    model = BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=16, n_layer=2, n_head=2)).eval()
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad(), sparing.LastLayer(model).read_last():
        found = model(ids).logits
    assert torch.equal(found, model(ids).logits)


def test_of_a_mixture_of_experts_what_is_read_is_right():
    config = MixtralConfig(**SIZE, num_key_value_heads=2, intermediate_size=16, num_local_experts=2)
    model = MixtralForCausalLM(config).eval()
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad(), sparing.LastLayer(model).read_last():
        found = model(ids).logits[:, -1]
    assert torch.allclose(found, model(ids).logits[:, -1], atol=1e-6)
