"""Demonstrations held out of fine-tuning, and what is measured on them."""

import json
import random
import re

import pytest
import torch
from torch.nn.functional import cross_entropy

from rlhf.data.store import read_dataset
from rlhf.metrics import rouge
from rlhf.models.policy import Policy
from rlhf.sft_trainer import held_out
from rlhf.sft_trainer.demonstrations import split, tokenise
from rlhf.sft_trainer.held_out import SHOWN, HeldOut
from rlhf.tracking import read_scalars
from tests import training
from tests.conftest import CHAT_TEMPLATE, TEXTS
from tests.sft import TEMPLATE, answers, rows, train, write_demonstrations

TAGS = {f"sft/{name}" for name in ("eval_loss", "rouge_1", "rouge_2", "rouge_l", "rouge_lsum", "ended")}


def tokenised(folder, demonstrations):
    policy = Policy.load(folder, TEMPLATE)
    return policy, tokenise(demonstrations, TEMPLATE, policy)


def several_of_one_prompt() -> list[dict]:
    """40 prompts with three demonstrations each, a post ending with the suffix or not."""
    return [
        {"id": f"{i}-{n}", "prompt": f"Number {i}.{' TL;DR:' if n else '  '}", "completion": f"my bike {n}"}
        for i in range(40)
        for n in range(3)
    ]


def test_a_prompt_in_turns_is_the_same_as_in_text(chat_folder):
    template = TEMPLATE.model_copy(update={"chat_template": CHAT_TEMPLATE, "special_tokens": {"bos_token": "<s>"}})
    turns = json.dumps([{"role": "user", "content": "Number 1."}])
    rows = [
        {"id": "turns", "prompt": "user: Number 1.\nassistant:", "messages": turns, "completion": "my bike"},
        {"id": "text", "prompt": "Number 1.", "messages": None, "completion": "my bike"},
    ]
    in_turns, in_text = tokenise(rows, template, Policy.load(chat_folder, template))
    assert in_turns.prompt == in_text.prompt
    assert in_turns.key == in_text.key


def test_all_demonstrations_of_a_prompt_are_on_one_side(llama_folder):
    _, everything = tokenised(llama_folder, several_of_one_prompt())
    training_, held_out = split(everything, 0.1, at_most=500)
    numbers = [{each.id.partition("-")[0] for each in side} for side in (training_, held_out)]
    assert not numbers[0] & numbers[1]
    assert len(held_out) == 12 == 3 * len(numbers[1])
    assert len(training_) + len(held_out) == len(everything)


def test_the_same_prompts_are_held_out_whatever_the_order(llama_folder):
    _, everything = tokenised(llama_folder, rows())
    shuffled = random.Random(1).sample(everything, len(everything))
    ids = [{each.id for each in split(some, 0.25, at_most=10)[1]} for some in (everything, shuffled)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 10


def test_demonstrations_held_out_are_not_trained_on(llama_folder, tmp_path, monkeypatch):
    from rlhf.sft_trainer import trainers

    seen = []

    def spied(policy, examples, *rest):
        seen.extend(tuple(example["input_ids"]) for example in examples)
        return make_trainer(policy, examples, *rest)

    make_trainer = trainers.make_trainer
    monkeypatch.setattr(trainers, "make_trainer", spied)
    metrics = train(write_demonstrations(tmp_path, rows()), llama_folder, tmp_path, train_steps=1, eval_fraction=0.25)
    _, everything = tokenised(llama_folder, rows())
    _, held_out = split(everything, 0.25, 500)
    assert len(held_out) == metrics["held_out"] == 16
    assert len(seen) == 48
    assert not {tuple(each.prompt + each.completion) for each in held_out} & set(seen)


@torch.no_grad()
def loss_one_by_one(policy: Policy, examples: list[dict]) -> float:
    """Nats a token, each example on its own and without padding."""
    nats, tokens = 0.0, 0
    for example in examples:
        ids, labels = torch.tensor([example["input_ids"]]), torch.tensor([example["labels"]])
        if policy.kind == "seq2seq":
            logits = policy.model(input_ids=ids, labels=labels).logits
        else:
            logits, labels = policy.model(input_ids=ids).logits[:, :-1], labels[:, 1:]
        nats += cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        tokens += (labels != -100).sum().item()
    return nats / tokens


@pytest.mark.parametrize("learn_prompt", [False, True])
@pytest.mark.parametrize("base", ["llama", "t5", "pythia"])
def test_the_held_out_loss_is_the_mean_over_tokens_without_padding(base, learn_prompt, request):
    policy, everything = tokenised(request.getfixturevalue(f"{base}_folder"), rows(20))
    policy.model.eval()
    everything[3].completion[:] = everything[3].completion * 3  # lengths that differ
    examples = [each.example(policy.kind == "seq2seq", learn_prompt) for each in everything]
    measures, _ = HeldOut(policy, everything, learn_prompt, samples=4, batch_size=8).measure()
    assert measures["sft/eval_loss"] == pytest.approx(loss_one_by_one(policy, examples), rel=1e-5)
    assert not policy.model.training, "measuring leaves the model as it was"
    policy.model.train()
    again, _ = HeldOut(policy, everything, learn_prompt, samples=4, batch_size=20).measure()
    assert again["sft/eval_loss"] == pytest.approx(measures["sft/eval_loss"], rel=1e-5), "without dropout"
    assert policy.model.training


def test_each_prompt_is_completed_once_and_the_first_are_shown(llama_folder):
    policy, everything = tokenised(llama_folder, several_of_one_prompt())
    measured = HeldOut(policy, everything, learn_prompt=False, samples=6, batch_size=8)
    _, said = measured.measure()
    assert [each.id for each in measured.shown] == ["0-0", "1-0", "2-0", "3-0"]
    assert len(said) == 4


def test_measures_are_taken_before_and_about_ten_times_while_training(policy_folder, tmp_path):
    metrics = train(write_demonstrations(tmp_path, rows()), policy_folder, tmp_path, train_steps=43)
    logs = read_scalars(tmp_path / "logs")
    assert not TAGS - set(logs)
    for tag in TAGS:
        assert [step for step, _ in logs[tag]] == [*range(0, 41, 4), 43]
    assert dict(logs["sft/eval_loss"])[metrics["kept_step"]] == pytest.approx(metrics["eval_loss"])


def test_measures_are_those_of_the_policy_that_is_saved(policy_folder, tmp_path):
    demonstrations = write_demonstrations(tmp_path, rows())
    metrics = train(demonstrations, policy_folder, tmp_path, train_steps=60, eval_every=20, eval_fraction=0.2)
    found, _, _ = read_dataset(demonstrations, "demonstrations")
    policy, everything = tokenised(tmp_path / "policy", found)
    _, held_out = split(everything, 0.2, 500)
    said = answers(tmp_path / "policy", [row["prompt"] for row in found if row["id"] in {e.id for e in held_out}])
    references = [each.answer for each in held_out]
    assert metrics["rouge_l"] == pytest.approx(rouge([text for text, _ in said], references).mean["rougeL"], abs=1e-6)
    assert metrics["ended"] == sum(ended for _, ended in said) / len(said)
    loss = loss_one_by_one(policy, [each.example(policy.kind == "seq2seq", False) for each in held_out])
    assert metrics["eval_loss"] == pytest.approx(loss, rel=1e-4)


def memorisable() -> list[dict]:
    """Answers that do not follow from the prompt: what is learned of them does not carry over."""
    draw = random.Random(0)
    words = sorted({word for text in TEXTS[2:] for word in text.split()})
    return [{"id": str(i), "prompt": f"Number {i}.", "completion": " ".join(draw.sample(words, 5))} for i in range(40)]


def test_the_weights_of_the_lowest_held_out_loss_are_kept_unless_the_last_are_wanted(llama_folder, tmp_path):
    demonstrations = write_demonstrations(tmp_path, memorisable())
    for keep in ("best", "last"):
        out = tmp_path / keep
        metrics = train(demonstrations, llama_folder, out, train_steps=120, eval_fraction=0.25, keep=keep)
        losses = dict(read_scalars(out / "logs")["sft/eval_loss"])
        lowest = min((step for step in losses if step), key=lambda step: losses[step])
        assert lowest < 120, "this data is made to be memorised"
        assert metrics["kept_step"] == (lowest if keep == "best" else 120)
        policy, everything = tokenised(out / "policy", memorisable())
        policy.model.eval()
        kept = loss_one_by_one(policy, [each.example(False, False) for each in split(everything, 0.25, 500)[1]])
        assert kept == pytest.approx(losses[metrics["kept_step"]], rel=1e-4)
        report = (out / "report.html").read_text()
        assert ("Learned, then memorised" if keep == "best" else "Memorises") in report
        assert f"The weights kept are {f'those of step {lowest}' if keep == 'best' else 'the last ones'}" in report


@pytest.mark.parametrize("base", ["llama", "pythia"])  # without and with dropout
def test_measuring_changes_nothing_of_the_training(base, request, tmp_path):
    demonstrations = write_demonstrations(tmp_path, rows())
    for every in (1, 100):
        train(
            demonstrations, request.getfixturevalue(f"{base}_folder"), tmp_path / str(every),
            train_steps=6, eval_every=every, keep="last",
        )  # fmt: skip
    assert training.weights(tmp_path / "1" / "policy") == training.weights(tmp_path / "100" / "policy")


def test_what_the_policy_says_is_shown_from_before_training_to_the_end(llama_folder, tmp_path):
    train(write_demonstrations(tmp_path, rows()), llama_folder, tmp_path, train_steps=80, eval_fraction=0.1)
    report = (tmp_path / "report.html").read_text()
    headings = re.findall(r"<h4>(.*?)</h4>", report)
    assert len(headings) % SHOWN == 0
    first = headings[: len(headings) // SHOWN]
    assert first[:3] == ["What a person wrote", "Before training", "Step 40"]
    assert first[-1].startswith("Step 80")
    assert sum("kept" in heading for heading in first) == 1


def test_held_out_demonstrations_are_measured_in_the_precision_of_training(llama_folder, monkeypatch):
    policy, everything = tokenised(llama_folder, rows())
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(held_out, "working_dtype", lambda wanted, device, dtype=dtype: dtype)
        losses.append(HeldOut(policy, everything[:8], False, 64, 16).measure()[0]["sft/eval_loss"])
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
