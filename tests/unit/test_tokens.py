"""Lengths in the model's own tokens, and where its tokenizer comes from."""

import fsspec
import huggingface_hub.constants
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from rlhf.data_validation.tokens import load_tokenizer
from rlhf.errors import DataError, ModelError
from tests.intake import write_rows
from tests.validation import pair, validate


def words_are_tokens() -> str:
    """A tokenizer.json of one token a word, with a special token before every text."""
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.enable_truncation(4)  # some are saved so; it must not hide what is long
    return tokenizer.to_str()


def test_texts_over_the_sequence_lengths_are_counted_with_the_models_own_tokenizer(options, tmp_path, capsys):
    (tmp_path / "model" / "tokenizer.json").write_text(words_are_tokens())
    rows = [pair("one two", "a b c", "a b c d"), pair("one two three", "a", "b"), pair("1 2 3 4", "a", "b c d e")]
    write_rows(tmp_path / "pairs.jsonl", rows)
    # A prompt is <s>, the words and [summary]:, a completion its words and the end of the sequence.
    metrics = validate(options | {"prompt_sequence_length": 5, "target_sequence_length": 4}, tmp_path)
    assert {name: value for name, value in metrics.items() if "_share_" in name} == {
        "prompts_cut_share_preferences": pytest.approx(1 / 3),
        "completions_over_share_preferences": pytest.approx(2 / 6),
        "prompts_cut_share_prompts": 0,
        "prompts_cut_share_evaluation": 0,
        "prompts_cut_share_demonstrations": 0,
        "completions_over_share_demonstrations": 0,
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert "prompts of more than 5 tokens" in page
    assert "33\u00a0%" in page
    assert "not counted" not in page
    said = (
        "[data_validation] warning: prompts_cut of preferences: 33\u00a0% (95\u00a0% interval 6.1\u00a0% to 79\u00a0%)"
    )
    assert said in capsys.readouterr().out


def test_an_instruction_that_leaves_no_room_for_a_prompt_fails_before_anything_is_written(options, tmp_path):
    (tmp_path / "model" / "tokenizer.json").write_text(words_are_tokens())
    options |= {"instruction": "Sum up in few words", "prompt_sequence_length": 7}
    with pytest.raises(DataError, match=r"prompt_sequence_length: 7 tokens leave no room .* 'Sum up in few words'"):
        validate(options, tmp_path)
    assert not (tmp_path / "out" / "preferences" / "manifest.json").exists()
    validate(options | {"prompt_sequence_length": 8}, tmp_path)


def test_without_a_tokenizer_file_the_report_and_the_log_say_that_tokens_were_not_counted(options, tmp_path, capsys):
    assert not [name for name in validate(options, tmp_path) if "_share_" in name]
    said = f"oken lengths were not counted: no tokenizer.json was found with {tmp_path / 'model'}"
    assert f"[data_validation] t{said}" in capsys.readouterr().out
    assert f"T{said}" in (tmp_path / "out" / "report.html").read_text()


def test_a_damaged_tokenizer_file_fails_by_name(options, tmp_path):
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"^large_model_reference .*: its tokenizer.json cannot be read"):
        validate(options, tmp_path)


def test_of_a_remote_model_only_the_tokenizer_is_fetched(monkeypatch, tmp_path):
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/model/tokenizer.json", words_are_tokens().encode())
    assert load_tokenizer("memory://bucket/model/")[0].encode("a b").tokens == ["<s>", "<unk>", "<unk>"]
    assert load_tokenizer("memory://bucket/none") == (None, "no tokenizer.json was found with memory://bucket/none")

    def download(model, name):
        assert (model, name) == ("google/flan-t5-small", "tokenizer.json")
        return write_rows(tmp_path / "cached.json", [words_are_tokens()])

    monkeypatch.setattr("rlhf.data_validation.tokens.hf_hub_download", download)
    assert load_tokenizer("t5-small")[0] is not None


def test_a_hub_without_the_tokenizer_or_out_of_reach_is_a_reason_and_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_tokenizer("org/model") == (None, "no tokenizer.json was found with org/model")

    def fails(model, name):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr("rlhf.data_validation.tokens.hf_hub_download", fails)
    said = "the tokenizer.json of org/model cannot be read (ConnectionError: no route)"
    assert load_tokenizer("org/model") == (None, said)
