"""All layers of a T5 read one sum of its relative positions and its mask."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration

from rlhf.models import relative_positions
from rlhf.models.policy import Policy, pad_right

PROMPTS = ["My brother sold my guitar.\nTL;DR:", "So this is about my boss. Should I sue them?\nTL;DR:", "a\nTL;DR:"]


@pytest.fixture
def policy(t5_folder) -> Policy:
    """Whose relative positions count for something."""
    policy = Policy.load(t5_folder)
    torch.manual_seed(0)
    for name, parameter in policy.model.named_parameters():
        if "relative_attention_bias" in name:
            torch.nn.init.normal_(parameter)
    return policy


@pytest.fixture
def whole(policy, t5_folder) -> T5ForConditionalGeneration:
    """The same model as transformers computes it."""
    model = AutoModelForSeq2SeqLM.from_pretrained(t5_folder)
    model.load_state_dict(policy.model.state_dict())
    return model.eval()


def batch(policy: Policy) -> dict[str, torch.Tensor]:
    ids, mask = pad_right([policy.encode_prompt(text) for text in PROMPTS], policy.pad, policy.model.device)
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": torch.tensor([[0, 5, 6]] * 3)}


def test_logits_and_gradients_are_those_of_transformers(policy, whole):
    found, expected = (model(**batch(policy)).logits for model in (policy.model, whole))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    for logits in (found, expected):
        logits.square().sum().backward()
    gradients, of_whole = (dict(model.named_parameters()) for model in (policy.model, whole))
    for name, parameter in of_whole.items():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, atol=1e-5, rtol=1e-4)


def test_completions_are_those_of_transformers(policy, whole):
    prompts = [policy.encode_prompt(text) for text in PROMPTS]
    found = policy.generate(prompts, 12, 0.0)
    policy.model = whole
    assert policy.generate(prompts, 12, 0.0) == found


@pytest.mark.parametrize("training", [False, True], ids=["read", "trained_with_dropout"])
def test_where_nothing_is_computed_again_all_layers_read_one_sum(training, policy, monkeypatch):
    given = []
    sdpa = relative_positions.AttentionInterface()["sdpa"]

    def note(module, query, key, value, attention_mask, **kwargs):
        given.append((attention_mask, kwargs.get("position_bias")))
        return sdpa(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setattr(relative_positions, "_sdpa", lambda: note)
    policy.model.train(training)
    inputs = batch(policy)
    policy.model.get_encoder()(inputs["input_ids"], attention_mask=inputs["attention_mask"])
    (first, bias), (second, other_bias) = given
    assert first is second
    assert first.dtype == (torch.bool if training else torch.float32)
    assert (bias is not None) == (other_bias is not None) == training


def test_a_model_without_relative_positions_is_left_as_it_is(llama_folder):
    assert Policy.load(llama_folder).model.config._attn_implementation == "sdpa"


def test_another_mask_makes_another_sum(policy):
    layer = policy.model.get_encoder().block[0].layer[0].SelfAttention
    states = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    bias = torch.zeros(1, 2, 3, 3)

    def attended(keys: int) -> torch.Tensor:
        mask = (torch.arange(3) < keys).expand(1, 1, 3, 3)
        return relative_positions._attend(layer, states, states, states, mask, bias, scaling=1.0)[0]

    policy.model.eval()
    alone = attended(1)
    torch.testing.assert_close(alone, states[:, :, :1].expand(-1, -1, 3, -1).transpose(1, 2))
    assert not torch.allclose(attended(3), alone)
