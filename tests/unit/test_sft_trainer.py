"""Supervised fine-tuning as a stage: what is learned, what is held out, what is refused."""

import errno
import json

import pytest

from rlhf.data.store import read_dataset
from rlhf.data.template import Template
from rlhf.errors import ConfigError, DataError, ModelError, TrainingError
from rlhf.models.card import ModelCard
from rlhf.sft_trainer import SFTTrainerConfig
from rlhf.tracking import read_scalars
from tests.sft import TEMPLATE, THINGS, answers, rows, train, write_demonstrations

FRESH = [f"Number {900 + i}. They broke my {thing}." for i, thing in enumerate(THINGS)]


@pytest.fixture
def demonstrations(tmp_path):
    return write_demonstrations(tmp_path, rows())


def tokenised(demonstrations, folder):
    from rlhf.models.policy import Policy
    from rlhf.sft_trainer.demonstrations import tokenise

    found, _, template = read_dataset(demonstrations, "demonstrations")
    policy = Policy.load(folder, template)
    return policy, tokenise(found, template, policy)


def test_it_learns_the_demonstrations_and_to_stop(demonstrations, policy_folder, tmp_path):
    metrics = train(demonstrations, policy_folder, tmp_path, train_steps=80)
    losses = [value for _, value in read_scalars(tmp_path / "logs")["sft/loss"]]
    assert losses[-1] < 0.5 * losses[0]
    assert metrics["loss"] == pytest.approx(losses[-1], rel=0.5)
    assert answers(tmp_path / "policy", FRESH) == [(f"my {thing}", True) for thing in THINGS]


def test_on_vertex_the_stages_curves_go_where_tensorboard_is_streamed_from_too(
    demonstrations, llama_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("AIP_TENSORBOARD_LOG_DIR", str(tmp_path / "streamed"))
    train(demonstrations, llama_folder, tmp_path, train_steps=2)
    curves = read_scalars(tmp_path / "logs")
    assert curves["sft/loss"]
    assert read_scalars(tmp_path / "streamed") == curves


def test_only_the_completion_is_in_the_loss_unless_asked(demonstrations, llama_folder):
    policy, (first, *_) = tokenised(demonstrations, llama_folder)
    example = first.example(seq2seq=False, learn_prompt=False)
    learned = [token for token in example["labels"] if token != -100]
    assert policy.decode(learned) == rows()[0]["completion"]
    assert learned[-1] == policy.eos
    assert example["input_ids"][-len(learned) :] == learned
    both = first.example(seq2seq=False, learn_prompt=True)
    assert both["labels"] == both["input_ids"] == example["input_ids"]


def test_an_encoder_decoder_reads_the_prompt_and_learns_the_completion(demonstrations, t5_folder):
    policy, (first, *_) = tokenised(demonstrations, t5_folder)
    example = first.example(seq2seq=True, learn_prompt=True)
    assert policy.decode(example["input_ids"]) == rows()[0]["prompt"]
    assert policy.decode(example["labels"]) == rows()[0]["completion"]
    assert example["labels"][-1] == policy.eos


def test_a_completion_over_the_limit_is_cut_counted_and_not_taught_to_stop_there(llama_folder, tmp_path):
    long = {**rows()[0], "completion": "guitar " * 40}
    policy, (cut, whole) = tokenised(write_demonstrations(tmp_path, [long, rows()[1]]), llama_folder)
    assert (cut.completion_cut, whole.completion_cut) == (True, False)
    assert len(cut.completion) == TEMPLATE.target_sequence_length
    assert policy.eos not in cut.completion
    metrics = train(tmp_path / "demonstrations", llama_folder, tmp_path, train_steps=1, batch_size=2)
    assert metrics["completions_cut"] == 0.5


def test_without_demonstrations_the_policy_is_the_base_model(policy_folder, tmp_path):
    none = write_demonstrations(tmp_path, [])
    assert train(none, policy_folder, tmp_path) == {"demonstrations": 0, "steps": 0}
    assert not list((tmp_path / "policy").glob("*.safetensors")), "weights are not copied"
    assert answers(tmp_path / "policy", FRESH) == answers(policy_folder, FRESH)
    assert str(policy_folder) in (tmp_path / "report.html").read_text()


def test_one_demonstration_is_enough_and_is_not_held_out(policy_folder, tmp_path):
    metrics = train(write_demonstrations(tmp_path, rows(1)), policy_folder, tmp_path, train_steps=2)
    assert (metrics["demonstrations"], metrics["held_out"]) == (1, 0)
    assert "eval_loss" not in metrics
    report = (tmp_path / "report.html").read_text()
    assert "No demonstration was held out: there are 1 different prompts, and fewer than 20 would say nothing" in report


def test_an_epoch_is_a_pass_over_the_demonstrations_trained_on(demonstrations, llama_folder, tmp_path):
    metrics = train(demonstrations, llama_folder, tmp_path, train_steps=None, epochs=2.0, eval_fraction=0.25)
    assert (metrics["demonstrations"], metrics["held_out"]) == (48, 16)
    assert metrics["steps"] == 2 * 48 / 16


def test_microbatches_learn_what_the_whole_batch_learns(demonstrations, policy_folder, tmp_path):
    options = {"train_steps": 4, "learning_rate_schedule": "constant", "eval_fraction": 0.0}
    train(demonstrations, policy_folder, tmp_path / "whole", **options)
    train(demonstrations, policy_folder, tmp_path / "parts", microbatch_size=4, **options)
    whole, parts = (
        [value for _, value in read_scalars(tmp_path / name / "logs")["sft/loss"]] for name in ("whole", "parts")
    )
    assert parts == pytest.approx(whole, abs=1e-4)


def test_the_order_of_training_passes_over_all_and_depends_on_the_seed_alone():
    from rlhf.sft_trainer.trainers import training_order

    order = training_order(10, 25, seed=1)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert len(set(order[20:])) == 5
    assert order[:10] != order[10:20]
    assert order == training_order(10, 25, seed=1) != training_order(10, 25, seed=2)


def test_demonstrations_that_are_all_cut_are_refused(llama_folder, tmp_path):
    long = write_demonstrations(tmp_path, [{**row, "completion": "guitar " * 40} for row in rows(3)])
    with pytest.raises(DataError, match=r"longer than target_sequence_length.*would not learn to end; raise it"):
        train(long, llama_folder, tmp_path)


@pytest.mark.parametrize("prompt_tokens", [510, 600])  # too long with its completion, and by itself
def test_a_demonstration_over_the_models_positions_is_named(prompt_tokens, llama_folder, tmp_path):
    roomy = Template(suffix="TL;DR:", prompt_sequence_length=prompt_tokens, target_sequence_length=16)
    long = {"id": "the-long-one", "prompt": "They broke my bike. " * 90, "completion": "my bike " * 8}
    demonstrations = write_demonstrations(tmp_path, [*rows(2), long], roomy)
    with pytest.raises(DataError, match=r"'the-long-one'.*512 positions; lower prompt_sequence_length"):
        train(demonstrations, llama_folder, tmp_path)


def test_an_encoder_decoder_without_a_position_limit_takes_any_length(t5_folder, tmp_path):
    roomy = Template(suffix="TL;DR:", prompt_sequence_length=600, target_sequence_length=16)
    long = {"id": "0", "prompt": "They broke my bike. " * 90, "completion": "my bike"}
    train(write_demonstrations(tmp_path, [long], roomy), t5_folder, tmp_path, train_steps=1)


def test_a_base_model_trained_with_another_template_is_refused(demonstrations, llama_folder, tmp_path):
    from rlhf.models.policy import Policy

    card = ModelCard(kind="policy", base="tiny", template_digest="0123456789abcdef")
    Policy.load(llama_folder).save(tmp_path / "other", card)
    with pytest.raises(ModelError, match="0123456789abcdef"):
        train(demonstrations, tmp_path / "other", tmp_path)


def test_an_encoder_is_refused_as_a_policy(demonstrations, bert_folder, tmp_path):
    with pytest.raises(ModelError, match="cannot generate"):
        train(demonstrations, bert_folder, tmp_path)


def test_a_batch_that_cannot_be_shared_evenly_is_refused(demonstrations, llama_folder, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="microbatch_size: found 5, expected a divisor of the 16"):
        train(demonstrations, llama_folder, tmp_path, microbatch_size=5)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"batch_size: found 16, .* a multiple of 3"):
        train(demonstrations, llama_folder, tmp_path)


def test_a_packed_length_needs_packing():
    with pytest.raises(ConfigError, match="packed_length needs packing"):
        SFTTrainerConfig.parse({"packed_length": 64}, "sft")


def test_the_card_names_base_data_and_what_came_out(demonstrations, llama_folder, tmp_path):
    metrics = train(demonstrations, llama_folder, tmp_path, train_steps=2)
    card = json.loads((tmp_path / "policy" / "rlhf.json").read_text())
    assert card["base"] == str(llama_folder)
    assert card["template_digest"] == TEMPLATE.digest
    assert card["training"] == pytest.approx(metrics)


@pytest.mark.parametrize("base", ["llama", "t5"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(base, request, demonstrations, tmp_path, monkeypatch):
    from transformers import Seq2SeqTrainer
    from trl import SFTTrainer

    kind = {"llama": SFTTrainer, "t5": Seq2SeqTrainer}[base]
    compute_loss = kind.compute_loss

    def broken_once(self, *args, **kwargs):
        return compute_loss(self, *args, **kwargs) * (float("nan") if self.state.global_step == 5 else 1.0)

    monkeypatch.setattr(kind, "compute_loss", broken_once)
    metrics = train(demonstrations, request.getfixturevalue(f"{base}_folder"), tmp_path, train_steps=40)
    assert metrics["skipped_steps"] == 1
    assert metrics["eval_loss"] < 1
    assert "1 of 40 steps had a loss or gradient that is not finite" in (tmp_path / "report.html").read_text()


def test_too_many_such_steps_end_the_stage_and_say_what_to_do(demonstrations, llama_folder, tmp_path):
    with pytest.raises(TrainingError, match="lower the learning rate"):
        train(demonstrations, llama_folder, tmp_path, learning_rate=1e30, max_gradient_norm=1e30)


def test_a_run_of_which_every_step_was_skipped_is_no_model(demonstrations, llama_folder, tmp_path, monkeypatch):
    from trl import SFTTrainer

    compute_loss = SFTTrainer.compute_loss
    monkeypatch.setattr(SFTTrainer, "compute_loss", lambda *args, **kw: compute_loss(*args, **kw) * float("nan"))
    with pytest.raises(TrainingError, match="all 3 steps had a loss or gradient that is not finite"):
        train(demonstrations, llama_folder, tmp_path, train_steps=3)
    assert not (tmp_path / "policy").exists()


def test_a_full_disk_is_said_and_nothing_is_taken_for_whole(demonstrations, llama_folder, tmp_path, monkeypatch):
    from rlhf.models.policy import Policy

    def full(self, folder, card):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Policy, "save", full)
    with pytest.raises(TrainingError, match=r"outputs of sft_trainer in .*: no space left"):
        train(demonstrations, llama_folder, tmp_path, train_steps=1)
    assert not (tmp_path / "policy" / "rlhf.json").exists()
