"""A fine-tuned model ends what it says, whatever its tokenizer calls padding."""

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.sft import THINGS, answers, rows, train, write_demonstrations

FRESH = [f"Number {900 + i}. They broke my {thing}." for i, thing in enumerate(THINGS)]


@pytest.fixture
def padded_with_eos_folder(llama_folder, tmp_path):
    """A Llama whose tokenizer_config.json says that EOS is the padding token, as many on the Hub do."""
    folder = tmp_path / "padded_with_eos"
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(llama_folder)
    model.config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).pad_token_id == tokenizer.eos_token_id
    return folder


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("base", ["pythia", "padded_with_eos"])
def test_completions_end_after_training_on_short_answers(base, packing, request, tmp_path):
    folder = request.getfixturevalue(f"{base}_folder")
    assert not all(ended for _, ended in answers(folder, FRESH)), "before, it does not end"
    metrics = train(
        write_demonstrations(tmp_path, rows()), folder, tmp_path, train_steps=100, learning_rate=1e-2, packing=packing
    )
    assert metrics["ended"] == 1
    said = answers(tmp_path / "policy", FRESH)
    assert all(ended for _, ended in said)
    assert {text for text, _ in said} <= {f"my {thing}" for thing in THINGS}
    assert "It learned to end: 100" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("base", ["pythia", "padded_with_eos"])
def test_the_saved_tokenizer_pads_with_something_else_than_eos(base, request, tmp_path):
    folder = request.getfixturevalue(f"{base}_folder")
    train(write_demonstrations(tmp_path, rows(2)), folder, tmp_path, train_steps=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
