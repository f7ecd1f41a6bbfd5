"""Packing lays demonstrations out in one row and changes nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from rlhf.errors import ConfigError
from rlhf.models.policy import Policy
from rlhf.sft_trainer.packing import PackingCollator, fill_rows, require_packable
from rlhf.tracking import read_scalars
from tests.sft import rows, train, write_demonstrations

VOCABULARY = 64
TINY = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def causal(architecture: str):
    """A model of two layers, with weights large enough for tokens to move each other."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "llama": {**TINY, "intermediate_size": 64},
        "qwen2": {**TINY, "intermediate_size": 64, "num_key_value_heads": 2},
        "mistral": {**TINY, "intermediate_size": 64, "num_key_value_heads": 2, "sliding_window": 6},
        "gpt_neox": {**TINY, "intermediate_size": 64},
        "gpt2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4},
        "opt": {**TINY, "ffn_dim": 64, "word_embed_proj_dim": 32},
        "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        "falcon": {**TINY, "alibi": False},
        "mamba": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2},
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **sizes[architecture], initializer_range=0.3, init_std=0.3)
    for dropout in ("attn_pdrop", "embd_pdrop", "resid_pdrop", "dropout", "attention_dropout", "hidden_dropout"):
        if getattr(config, dropout, None):
            setattr(config, dropout, 0.0)
    return AutoModelForCausalLM.from_config(config)


def policy_of(model) -> Policy:
    policy = Policy.__new__(Policy)
    policy.model, policy.kind = model, "seq2seq" if model.config.is_encoder_decoder else "causal"
    return policy


def examples(learn_prompt: bool) -> list[dict[str, list[int]]]:
    """Prompts and completions of various lengths; token 1 ends each."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for prompt, completion in [(7, 3), (2, 6), (11, 1), (4, 4), (1, 2), (9, 5)]:
        ids = torch.randint(2, VOCABULARY, (prompt + completion,), generator=draw).tolist()
        ids[-1] = 1
        made.append({"input_ids": ids, "labels": ids if learn_prompt else [-100] * prompt + ids[prompt:]})
    return made


def loss_and_gradients(model, batches: list[dict]) -> tuple[float, dict[str, torch.Tensor]]:
    """Summed cross-entropy of batches, and the gradient of every weight."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        labels = batch.pop("labels")
        logits = model(**batch, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        loss.backward()
        total += loss.item()
    return total, {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("learn_prompt", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "qwen2", "mistral", "gpt2"])
def test_a_packed_batch_has_the_loss_and_gradients_of_its_demonstrations_one_by_one(architecture, learn_prompt):
    model = causal(architecture).double()  # so that only what is wrong differs
    packed = PackingCollator(length=24, pad=0)(examples(learn_prompt))
    assert len(packed["input_ids"]) == 3 < len(examples(learn_prompt))
    alone = [{name: torch.tensor([ids]) for name, ids in each.items()} for each in examples(learn_prompt)]
    loss, gradients = loss_and_gradients(model, [packed])
    expected, expected_gradients = loss_and_gradients(model, alone)
    assert loss == pytest.approx(expected, rel=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-7, atol=1e-9)


def test_a_first_token_is_never_predicted_from_the_demonstration_before():
    packed = PackingCollator(length=100, pad=0)(examples(learn_prompt=True))
    (ids,), (positions,), (labels,) = packed["input_ids"], packed["position_ids"], packed["labels"]
    starts = (positions == 0).nonzero().flatten().tolist()
    assert len(starts) == len(examples(True))
    assert all(labels[start] == -100 for start in starts)
    assert all(labels[i] == ids[i] for i in range(len(ids)) if i not in starts)
    assert all(ids[start - 1] == labels[start - 1] == 1 for start in starts[1:]), "each end is learned"


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 30))
def test_rows_hold_everything_once_and_are_no_longer_than_the_room(lengths, room):
    filled = fill_rows(lengths, room)
    assert sorted(item for row in filled for item in row) == list(range(len(lengths)))
    for row in filled:
        assert len(row) == 1 or sum(lengths[item] for item in row) <= room


def test_rows_are_filled_where_least_is_left_over():
    assert fill_rows([3, 6, 4, 7], room=10) == [[3, 0], [1, 2]]


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "qwen2", "mistral", "gpt2"])
def test_architectures_that_keep_demonstrations_apart_are_taken(architecture):
    require_packable(policy_of(causal(architecture)))


@pytest.mark.parametrize("architecture", ["opt", "bloom", "falcon", "mamba"])
def test_architectures_in_which_demonstrations_see_each_other_are_refused(architecture):
    with pytest.raises(ConfigError, match=f"packing: .*'{architecture}' demonstrations .* see each other"):
        require_packable(policy_of(causal(architecture)))


def test_an_encoder_decoder_cannot_be_packed(t5_folder, tmp_path):
    with pytest.raises(ConfigError, match="packing: found true, but 't5' is an encoder-decoder model"):
        train(write_demonstrations(tmp_path, rows()), t5_folder, tmp_path, packing=True)


@pytest.mark.parametrize("loss_on", ["completion", "prompt_and_completion"])
def test_a_packed_run_learns_what_an_unpacked_one_learns(loss_on, llama_folder, tmp_path):
    demonstrations = write_demonstrations(tmp_path, rows())
    options = {"train_steps": 8, "loss_on": loss_on, "learning_rate_schedule": "constant"}
    train(demonstrations, llama_folder, tmp_path / "plain", **options)
    train(demonstrations, llama_folder, tmp_path / "packed", packing=True, microbatch_size=8, **options)
    plain, packed = (read_scalars(tmp_path / name / "logs") for name in ("plain", "packed"))
    for tag in ("sft/loss", "sft/eval_loss"):
        assert [v for _, v in packed[tag]] == pytest.approx([v for _, v in plain[tag]], rel=1e-4)
