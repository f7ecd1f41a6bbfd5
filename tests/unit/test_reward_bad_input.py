"""What the reward trainer does with input that it cannot learn from."""

import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaForCausalLM

from rlhf.data.template import Template
from rlhf.errors import ConfigError, DataError, ModelError, TrainingError
from rlhf.models.card import ModelCard
from rlhf.reward_trainer.pairs import Pair, _with_prompts_exchanged
from rlhf.tracking import read_scalars
from tests import reward


@pytest.mark.parametrize(("count", "split"), [(0, "train"), (1, "eval"), (1, "train")])
def test_no_data_or_one_row_is_an_error_that_says_which_split_is_empty(count, split, llama_folder, tmp_path):
    rows = [{**row, "split": "eval" if split == "train" else "train"} for row in reward.rows(count)]
    preferences = reward.write_preferences(tmp_path, rows)
    with pytest.raises(DataError, match=f"no pairs in the split '{split}' of {count}; give more pairs"):
        reward.train(preferences, llama_folder, tmp_path / "out")


def test_one_pair_in_each_split_trains_and_claims_nothing(llama_folder, tmp_path):
    rows = [{**row, "split": split} for row, split in zip(reward.rows(4)[::2], ("train", "eval"), strict=True)]
    metrics = reward.train(reward.write_preferences(tmp_path, rows), llama_folder, tmp_path / "out", train_steps=2)
    assert metrics["pairs"] == metrics["held_out"] == 1
    assert metrics["accuracy_low"] < 0.5
    assert "accuracy_prompt_swapped" not in metrics
    assert "Not usable" in (tmp_path / "out/report.html").read_text()


def test_a_model_that_scores_every_text_alike_is_called_out(llama_folder, tmp_path):
    model = LlamaForCausalLM.from_pretrained(llama_folder)
    torch.nn.init.zeros_(model.model.embed_tokens.weight)
    model.save_pretrained(tmp_path / "blank")
    for file in llama_folder.glob("token*"):
        (tmp_path / "blank" / file.name).write_bytes(file.read_bytes())
    preferences = reward.write_preferences(tmp_path, reward.rows())
    reward.train(preferences, tmp_path / "blank", tmp_path / "out", train_steps=2, learning_rate=1e-30)
    page = (tmp_path / "out/report.html").read_text()
    assert "Not usable" in page
    assert "one score" in page or "same score" in page


@pytest.mark.parametrize("base", ["pythia", "qwen"])
def test_a_base_model_without_a_padding_token_gets_one_that_is_not_eos(base, request, tmp_path):
    from rlhf.models.scoring import RewardModel

    preferences = reward.write_preferences(tmp_path, reward.rows())
    metrics = reward.train(preferences, request.getfixturevalue(f"{base}_folder"), tmp_path / "out")
    assert metrics["accuracy"] > 0.9
    model = RewardModel.load(tmp_path / "out/reward_model", reward.TEMPLATE)
    assert model.model.config.pad_token_id == model.tokenizer.pad_token_id != model.tokenizer.eos_token_id
    short, long = (reward.TEMPLATE.render(row["prompt"]) for row in reward.rows(4)[::2])
    together = model.score([short, long * 3], ["sold my bike", "sold my bike on monday"])
    assert together[0] == pytest.approx(model.score([short], ["sold my bike"])[0], abs=1e-5), "padding moves nothing"


def test_a_pair_over_the_models_positions_is_named(llama_folder, tmp_path):
    template = Template(suffix="TL;DR:", prompt_sequence_length=600, target_sequence_length=16)
    rows = reward.rows(20)
    rows[7]["prompt"] = "They sold it. " * 120
    preferences = reward.write_preferences(tmp_path, rows, template)
    with pytest.raises(
        DataError, match=r"preference '7': .* do not fit its 512 positions; lower prompt_sequence_length"
    ):
        reward.train(preferences, llama_folder, tmp_path / "out")


def test_a_pair_too_long_for_other_prompts_leaves_the_others_to_be_exchanged(llama_folder, tmp_path):
    template = Template(suffix="TL;DR:", prompt_sequence_length=400, target_sequence_length=16)
    rows = reward.rows(40)
    long = "my bike " * 225  # fits under short prompts alone
    rows[20] |= {"prompt": "A", "chosen": f"sold {long}"}  # the shortest prompt
    rows[21] |= {"prompt": "A"}
    for place in (0, 1, 10, 11, 30, 31):
        rows[place] |= {"prompt": f"Number {place // 2}. " + "They broke my bike. " * 40}
    preferences = reward.write_preferences(tmp_path, rows, template)
    metrics = reward.train(preferences, llama_folder, tmp_path / "out", train_steps=2)
    assert "accuracy_prompt_swapped" in metrics
    scores = pq.read_table(tmp_path / "out/scores.parquet").to_pydict()
    assert [name for name, score in zip(scores["id"], scores["swapped_chosen"], strict=True) if score is None] == ["20"]
    page = (tmp_path / "out/report.html").read_text()
    assert "have one prompt" not in page
    assert "Left out: 1 pair without room for another prompt" in page


def test_prompts_are_exchanged_for_the_next_that_fits_or_a_short_one():
    class Narrow:
        """Has room for 10 characters."""

        count_tokens = staticmethod(len)

        def encode(self, prompt, text):
            if len(prompt + text) > 10:
                raise ModelError("too long")
            return f"{prompt}+{text}"

    def exchanged(**texts):
        pairs = [Pair(p, 0, p, text, "r", {}, {}, None, None) for p, text in texts.items()]
        return _with_prompts_exchanged(Narrow(), pairs)

    assert exchanged(a="c", bb="c", cccccccc="c")["swapped_chosen"] == ["bb+c", "cccccccc+c", "a+c"]
    assert exchanged(a="c" * 8, dddd="c", bb="c" * 9) == {
        "swapped_chosen": ["bb" + "+" + "c" * 8, "bb+c", "a" + "+" + "c" * 9],
        "swapped_rejected": ["bb+r", "bb+r", "a+r"],
    }
    assert exchanged(a="c" * 9, dddd="c", bb="c")["swapped_chosen"] == [None, "bb+c", "a+c"]
    assert exchanged(a="c") == {}


def test_a_model_made_for_another_template_is_refused(llama_folder, chat_folder, tmp_path):
    from rlhf.models.policy import Policy

    preferences = reward.write_preferences(tmp_path, reward.rows())
    policy = Policy.load(llama_folder)
    policy.save(tmp_path / "other", ModelCard(kind="policy", base="tiny", template_digest="0123456789abcdef"))
    with pytest.raises(ModelError, match="0123456789abcdef"):
        reward.train(preferences, tmp_path / "other", tmp_path / "out")
    chat = Template(chat_template="{{ messages }}", prompt_sequence_length=64, target_sequence_length=16)
    for_chat = reward.write_preferences(tmp_path / "chat", reward.rows(), chat)
    for folder, found in ((llama_folder, "none"), (chat_folder, "another one")):
        with pytest.raises(ModelError, match=f"chat template .*{chat.digest}.* has {found}; run data_validation"):
            reward.train(for_chat, folder, tmp_path / "out")


@pytest.fixture
def poisoned(llama_folder, tmp_path):
    """A base model one of whose embeddings is not finite: that of a word in some prompts that are trained on."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    token = tokenizer.encode("Z", add_special_tokens=False)[0]
    model = LlamaForCausalLM.from_pretrained(llama_folder)
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("nan")
    model.save_pretrained(tmp_path / "poisoned")
    tokenizer.save_pretrained(tmp_path / "poisoned")
    return tmp_path / "poisoned"


def with_poison(every: int) -> list[dict]:
    rows = reward.rows()
    for row in [row for row in rows if row["split"] == "train"][::every]:
        row["prompt"] = f"Z {row['prompt']}"
    return rows


def test_steps_that_are_not_finite_are_skipped_and_counted(poisoned, tmp_path):
    preferences = reward.write_preferences(tmp_path, with_poison(128))
    options = {"selection_fraction": 0.0, "train_steps": 32, "max_skipped_steps": 5}
    metrics = reward.train(preferences, poisoned, tmp_path / "out", **options)
    assert metrics["skipped_steps"] == 4, "128 pairs, 16 a step, one of them poisoned: one step in each of four passes"
    assert metrics["accuracy"] > 0.9, "the others were learned from"
    assert "not finite" in (tmp_path / "out/report.html").read_text()
    curves = read_scalars(tmp_path / "out/logs")
    assert [len(curves[tag]) for tag in ("rank_loss", "reward_model/accuracy")] == [28, 28], "skipped steps are gaps"
    assert min(value for _, value in curves["rank_loss"]) > 0


def test_too_many_steps_that_are_not_finite_end_the_run(poisoned, tmp_path):
    preferences = reward.write_preferences(tmp_path, with_poison(4))
    with pytest.raises(TrainingError, match=r"4 optimiser steps .* more than max_skipped_steps \(3\) allows"):
        reward.train(preferences, poisoned, tmp_path / "out", selection_fraction=0.0, max_skipped_steps=3)
    assert not (tmp_path / "out/reward_model").exists()


def test_a_checkpoint_of_another_config_is_refused(llama_folder, tmp_path, monkeypatch):
    from rlhf.training.checkpoints import Checkpoints

    preferences = reward.write_preferences(tmp_path, reward.rows())
    kept = {"checkpoint_dir": str(tmp_path / "kept"), "checkpoint_every": 2, "train_steps": 4}
    monkeypatch.setattr(Checkpoints, "remove", lambda self: None)  # as if it had been killed at its very end
    reward.train(preferences, llama_folder, tmp_path / "out", **kept)
    with pytest.raises(ConfigError, match=r"another run \(batch_size: 16 there, 32 now; learning_rate: 0.001 there"):
        reward.train(preferences, llama_folder, tmp_path / "out", **kept, batch_size=32, learning_rate=2e-3)
    rows = [{**row, "chosen": row["chosen"] + " so"} for row in reward.rows()]
    with pytest.raises(ConfigError, match=r"another run \(data_digest"):
        reward.train(reward.write_preferences(tmp_path / "b", rows), llama_folder, tmp_path / "out", **kept)


def test_no_room_for_the_model_is_an_error_that_says_so(llama_folder, tmp_path):
    import subprocess

    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("a file system of 400 kB cannot be mounted here: it takes root")  # nothing else fills up as surely
    preferences = reward.write_preferences(tmp_path, reward.rows())
    try:
        with pytest.raises(TrainingError, match="no space left"):
            reward.train(preferences, llama_folder, small / "out", train_steps=2)
        assert not (small / "out/reward_model/rlhf.json").exists(), "no card: what is half-written is no model"
        kept = {"checkpoint_dir": str(small / "kept"), "checkpoint_every": 1}
        with pytest.raises(TrainingError, match=r"checkpoint_dir .*no space left for .* GB; free some"):
            reward.train(preferences, llama_folder, tmp_path / "out", train_steps=2, **kept)
    finally:
        subprocess.run(["umount", small], check=True)


def test_options_that_do_not_fit_each_other_are_refused(llama_folder, tmp_path):
    from rlhf.reward_trainer import RewardTrainerConfig

    for options, words in (
        ({"tuning": "full", "save": "adapter"}, "needs tuning 'lora' or 'qlora'"),
        ({"lora": "rank-5"}, "rank-4, rank-16"),
        ({"lora": {"ranc": 8}}, "did you mean 'rank'"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
    ):
        with pytest.raises(ConfigError, match=words):
            RewardTrainerConfig.parse(options, "reward")
    preferences = reward.write_preferences(tmp_path, reward.rows())
    lora = {"rank": 4, "target_modules": ["no_such_layer"]}
    with pytest.raises(ModelError, match=r"lora\.target_modules"):
        reward.train(preferences, llama_folder, tmp_path / "out", tuning="lora", lora=lora)
