"""What nobody reads of the last layer is not computed, and nothing that is read changes."""

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rlhf.models import generation, sparing
from rlhf.models.policy import Policy
from tests.models import untrained_reward_model

PROMPTS = ["My brother sold my guitar.\nTL;DR:", "So this is about my boss. Should I sue them?\nTL;DR:", "a\nTL;DR:"]
SIZE = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
SIZE |= {"bos_token_id": 1, "eos_token_id": 2}
MODELS = {
    "keys_shared_by_queries": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 1}),
    "normed_queries": (Qwen3ForCausalLM, Qwen3Config, {"num_key_value_heads": 2, "head_dim": 8}),
    "sliding_window": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
    ),
    "experts": (MixtralForCausalLM, MixtralConfig, {"num_key_value_heads": 2, "num_local_experts": 2}),
    "queries_and_keys_in_one": (Phi3ForCausalLM, Phi3Config, {}),
    "attention_not_by_torch": (LlamaForCausalLM, LlamaConfig, {"attn_implementation": "eager"}),
}
WIDTH = 20


def positions_in(part: torch.nn.Module, seen: list[int]) -> None:
    """Note how many positions a part of a layer works on."""
    part.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[:-1].numel()))


@pytest.fixture(params=MODELS)
def model(request) -> PreTrainedModel:
    kind, config, options = MODELS[request.param]
    torch.manual_seed(0)
    return kind(config(**SIZE, intermediate_size=16, **options)).eval()


@pytest.fixture(params=[None, 7], ids=["full_rows", "padded_on_the_left"])
def batch(request) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 20, (3, WIDTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, : request.param or 0] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(params=[False, True], ids=["plain", "sparing"])
def spares(request, monkeypatch) -> bool:
    if not request.param:
        monkeypatch.setattr(sparing, "_last_layer", lambda model: None)
    return request.param


@pytest.mark.parametrize("part", ["mlp.up_proj", "self_attn.q_proj", "self_attn.o_proj"])
def test_of_a_prompt_the_last_layer_works_on_its_last_token(part, llama_folder, spares):
    policy = Policy.load(llama_folder)
    prompts = [policy.encode_prompt(text) for text in PROMPTS]
    first, last = [], []
    positions_in(policy.model.model.layers[0].get_submodule(part), first)
    positions_in(policy.model.model.layers[-1].get_submodule(part), last)
    policy.generate(prompts, 6, 0.0)
    last = last[-len(first) :]  # without the one that shows what the feed-forward part is
    assert first[0] == 3 * (max(map(len, prompts)) - 1)
    assert last[0] == (3 if spares else first[0])
    assert last[1:] == first[1:], "a token at a time everything is read"


@pytest.mark.parametrize("at_once", [10_000, 16], ids=["at_once", "in_parts"])
def test_completions_are_those_of_the_whole_computation(at_once, llama_folder, monkeypatch):
    monkeypatch.setitem(generation.PROMPT_TOKENS_AT_ONCE, "cpu", at_once)
    policy = Policy.load(llama_folder)
    prompts = [policy.encode_prompt(text) for text in PROMPTS]
    assert 16 < sum(map(len, prompts)) < 10_000
    spared = policy.generate(prompts, 20, 0.0)
    monkeypatch.setattr(sparing, "_last_layer", lambda model: None)
    assert policy.generate(prompts, 20, 0.0) == spared


def test_scores_are_those_of_the_whole_computation(llama_folder, monkeypatch):
    torch.manual_seed(0)
    model = untrained_reward_model(llama_folder)
    texts = (PROMPTS, ["my brother sold", "should i sue", "b"])
    seen: list[int] = []
    positions_in(model.model.model.layers[-1].mlp.up_proj, seen)
    spared = model.score(*texts)
    monkeypatch.setattr(sparing, "_last_layer", lambda model: None)
    assert model.score(*texts) == pytest.approx(spared, abs=1e-6)
    assert seen[-2] == 3 < seen[-1]


def test_logits_of_last_tokens_are_those_of_the_whole_computation(model, batch):
    with torch.no_grad(), sparing.LastLayer(model).read_last():
        found = model(**batch).logits[:, -1]
    torch.testing.assert_close(found, model(**batch).logits[:, -1], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "at",
    [
        pytest.param([9, 10, 11, 30, 31, 32, 33, 58, 59], id="a_few_of_each_row"),
        pytest.param([9, 10, 58], id="none_of_a_row"),
        pytest.param([*range(8, 20), 30, 31, *range(50, 60)], id="most_of_a_row"),
    ],
)
def test_logits_and_gradients_are_those_of_the_whole_computation(at, model, batch):
    places = torch.tensor(at)

    def found(context) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        with context:
            logits = model(**batch).logits.flatten(0, 1)[places]
        logits.square().sum().backward()
        return logits, {name: value.grad for name, value in model.named_parameters() if value.grad is not None}

    logits, gradients = found(sparing.LastLayer(model).read_at(places))
    whole_logits, whole_gradients = found(torch.enable_grad())
    torch.testing.assert_close(logits, whole_logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradients, whole_gradients, atol=1e-5, rtol=1e-4)


def test_where_few_positions_are_read_attention_has_no_more_queries(monkeypatch):
    kind, config, options = MODELS["keys_shared_by_queries"]
    model = kind(config(**SIZE, intermediate_size=16, **options)).eval()
    queries: list[int] = []
    sdpa = sparing._sdpa
    monkeypatch.setattr(
        sparing, "_sdpa", lambda *args, **more: (queries.append(args[1].shape[2]), sdpa(*args, **more))[1]
    )
    for at in ([9, 10, 11, 30], [*range(11), 30]):
        with torch.no_grad(), sparing.LastLayer(model).read_at(torch.tensor(at)):
            model(torch.ones(2, WIDTH, dtype=torch.long))
    assert queries == [3, WIDTH], "a band of more than half of a triangle is the larger part"


def test_one_model_is_read_within_another(model, batch):
    other = LlamaForCausalLM(LlamaConfig(**SIZE, intermediate_size=16)).eval()
    expected = model(**batch).logits[:, -1], other(**batch).logits[:, :3]
    first = torch.tensor([row * WIDTH + place for row in range(3) for place in range(3)])
    with torch.no_grad(), sparing.LastLayer(model).read_last(), sparing.LastLayer(other).read_at(first):
        found = model(**batch).logits[:, -1], other(**batch).logits[:, :3]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_afterwards_everything_is_computed_again(model, batch):
    whole = model(**batch).logits
    with torch.no_grad(), sparing.LastLayer(model).read_last():
        model(**batch)
    assert torch.equal(model(**batch).logits, whole)


def test_a_feed_forward_part_that_takes_more_than_states_is_left_whole():
    model = BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=16, n_layer=2, n_head=2)).eval()
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad(), sparing.LastLayer(model).read_last():
        found = model(ids).logits
    assert torch.equal(found, model(ids).logits)
