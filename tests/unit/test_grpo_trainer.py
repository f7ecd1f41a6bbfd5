"""The trainer by groups on tiny models: either algorithm learns, on either architecture; a bad grader ends it before
anything moves."""

import functools
import json
import math
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Model

from rlhf.data.store import read_dataset, write_dataset
from rlhf.data.template import Template
from rlhf.errors import ConfigError, TrainingError
from rlhf.grpo_trainer import GRPOTrainerConfig, grading
from rlhf.grpo_trainer.stage import run
from rlhf.models.card import ModelCard
from rlhf.models.policy import Policy
from rlhf.rewards.combined import Rewards
from rlhf.tracking import read_scalars
from rlhf.training.prompts import Prompt
from tests import training
from tests.models import untrained_reward_model

TEMPLATE = Template(prompt_sequence_length=48, target_sequence_length=8)
GRADERS = """
def letters(completions, **columns):
    return [10.0 * text.count("o") / max(1, len(text)) for text in completions]

calls = []

def letters_once(completions, **columns):
    calls.append(1)
    return letters(completions) if len(calls) == 1 else [1.0 for _ in completions]

def same(completions, **columns):
    return [1.0 for _ in completions]

def one_bad(completions, id, **columns):
    return ["?" if i == "3" else float(len(text)) for i, text in zip(id, completions)]

def not_all(completions, id, **columns):
    return [None if i in ("3", "4") else float(len(text)) for i, text in zip(id, completions)]

def raises(completions, id, **columns):
    raise KeyError("colour")

def nothing(completions, **columns):
    return [None for _ in completions]

def nan(completions, **columns):
    return [float("nan") for _ in completions]

def given(prompts, completions, reference, id, **columns):
    assert all(isinstance(text, str) for text in completions)
    assert all(p.startswith("My brother") and p.endswith(f" {i}.\\nTL;DR:") for p, i in zip(prompts, id)), prompts
    assert set(reference) == {"r"}
    return [float(len(c)) for c in completions]
"""
OUTPUTS = {"tuned_policy": "policy", "samples": "samples.jsonl", "report": "report.html", "tensorboard": "logs"}


@pytest.fixture
def prompts(tmp_path) -> Path:
    rows = [
        {"id": str(i), "prompt": f"My brother sold my guitar{' on monday' * (i % 4)} {i}.\nTL;DR:", "reference": "r"}
        for i in range(40)
    ]
    write_dataset(tmp_path / "prompts", "prompts", rows, TEMPLATE)
    return tmp_path / "prompts"


class Job:
    def __init__(self, folder: Path, prompts: Path):
        self.folder, self.prompts = folder, prompts
        (folder / "g.py").write_text(GRADERS)

    def options(self, grader: str | dict | None, **options) -> dict:
        return {
            "train_steps": 4,
            "batch_size": 16,
            "group_size": 4,
            "learning_rate": 3e-3,
            "sample_every": 1,
            "grader": {"function": f"{self.folder}/g.py:{grader}"} if isinstance(grader, str) else grader,
            **options,
        }

    def run(self, base: Path, grader: str | dict | None = "letters", out: str = "out", **options) -> dict[str, float]:
        self.out = self.folder / out
        self.out.mkdir(exist_ok=True)
        paths = {name: str(self.out / file) for name, file in OUTPUTS.items()}
        config = GRPOTrainerConfig.parse(self.options(grader, **options), "grpo")
        return run(config, prompts=str(self.prompts), policy=str(base), **paths)

    @property
    def policy(self) -> Policy:
        return Policy.load(self.out / "policy", TEMPLATE)

    @property
    def samples(self) -> list[dict]:
        return [json.loads(line) for line in (self.out / "samples.jsonl").read_text().splitlines()]


@pytest.fixture
def job(tmp_path, prompts) -> Job:
    return Job(tmp_path, prompts)


def weights(policy: Policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_the_grade_rises_on_prompts_that_were_not_trained_on(arch, algorithm, request, job):
    base = request.getfixturevalue(f"{arch}_folder")
    metrics = job.run(base, algorithm=algorithm, train_steps=25, batch_size=32, group_size=8)
    assert metrics["grade_after"] > metrics["grade_before"] + 0.5
    assert metrics["held_out_after"] > metrics["held_out_before"] + 0.3
    assert metrics["kl"] > 0
    assert metrics["completions"] == 25 * 32
    logs = read_scalars(job.out / "logs")
    expected = {"reward", "kl_loss", "rl_loss", "learning_rate", "eval/grade", "eval/rouge_l"}
    ours = {"grade", "kl", "no_signal", "spread", "length", "ended", "bad_grades", "entropy", "gradient_norm"}
    assert expected | {f"grpo/{name}" for name in ours} <= set(logs)
    assert len(logs["grpo/grade"]) == 25
    by_prompt = [row["id"] for row in job.samples if row["update"] == 1]
    assert all(len(set(by_prompt[i : i + 8])) == 1 for i in range(0, 32, 8)), "groups of one prompt"
    assert len(set(by_prompt)) == 4
    assert {row["update"] for row in job.samples} == set(range(1, 26))
    page = (job.out / "report.html").read_text(encoding="utf-8")
    assert "Learned" in page or "Doubtful" in page
    assert {"grpo": "group relative policy optimisation", "rloo": "a leave-one-out baseline"}[algorithm] in page
    assert job.policy.card.kind == "policy"
    assert job.policy.card.training["grade_after"] == metrics["grade_after"]


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_nothing_is_dropped_out_so_that_there_is_no_kl_where_it_starts(algorithm, pythia_folder, job):
    """GPT-NeoX has dropout in modules, and in a number of its attention's that no module stands for."""
    job.run(pythia_folder, algorithm=algorithm, train_steps=1, held_out_prompts=0)
    assert read_scalars(job.out / "logs")["grpo/kl"] == [(1, pytest.approx(0.0, abs=1e-6))]


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_padding_takes_no_positions_from_a_model_that_learned_a_vector_for_each(
    algorithm, tuning, llama_folder, job, tmp_path, monkeypatch
):
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    sizes = {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    forward, paddings = GPT2Model.forward, []

    def watched(model, input_ids=None, *, attention_mask=None, position_ids=None, **options):
        if options.get("past_key_values") is None:
            paddings.append((attention_mask == 0).sum(1))
            padded = [positions[mask == 1] for positions, mask in zip(position_ids, attention_mask, strict=True)]
            assert all(torch.equal(found, torch.arange(len(found))) for found in padded)
        return forward(model, input_ids, attention_mask=attention_mask, position_ids=position_ids, **options)

    functools.update_wrapper(watched, forward)
    monkeypatch.setattr(GPT2Model, "forward", watched)
    job.run(tmp_path / "gpt2", algorithm=algorithm, tuning=tuning, train_steps=1, held_out_prompts=0)
    assert torch.cat(paddings).max() > 0, "prompts were of several lengths"


@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_rloo_minds_how_far_apart_grades_are_and_grpo_does_not(arch, request, job):
    base = request.getfixturevalue(f"{arch}_folder")
    norms = {}
    for algorithm in ("grpo", "rloo"):
        for weight in (1.0, 10.0):
            grader = {"function": f"{job.folder}/g.py:letters", "weight": weight}
            how = {"kl_coeff": 0.0, "train_steps": 1, "held_out_prompts": 0}
            job.run(base, grader, algorithm=algorithm, **how)
            norms[algorithm, weight] = read_scalars(job.out / "logs")["grpo/gradient_norm"][-1][1]
    assert norms["grpo", 10.0] == pytest.approx(norms["grpo", 1.0], rel=0.01)
    assert norms["rloo", 10.0] == pytest.approx(10 * norms["rloo", 1.0], rel=0.01)


@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_in_rloo_completions_of_one_grade_still_differ_by_their_kl(arch, request, job):
    base = request.getfixturevalue(f"{arch}_folder")
    norms = {}
    for kl_coeff in (0.0, 5.0):
        how = {"algorithm": "rloo", "train_steps": 2, "held_out_prompts": 0, "learning_rate": 1e-2}
        job.run(base, "letters_once", kl_coeff=kl_coeff, **how)
        norms[kl_coeff] = [norm for _, norm in read_scalars(job.out / "logs")["grpo/gradient_norm"]]
    assert norms[0.0][0] == pytest.approx(norms[5.0][0], rel=1e-3), "where it starts there is no KL"
    assert norms[0.0][1] == 0.0
    assert norms[5.0][1] > 1e-3


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_an_adapter_is_tuned_alone_and_saved_without_its_reference(arch, algorithm, request, job):
    base = request.getfixturevalue(f"{arch}_folder")
    metrics = job.run(base, algorithm=algorithm, tuning="lora", lora={"rank": 4}, learning_rate=1e-2)
    saved = {path.name for path in (job.out / "policy").iterdir()}
    assert "adapter_model.safetensors" in saved
    assert "ref" not in saved
    assert metrics["kl"] > 0
    # And goes on: KL is from where it goes on, not from the base under it.
    first = job.out / "policy"
    same = {"algorithm": algorithm, "learning_rate": 1e-9, "kl_coeff": 0.1}
    again = job.run(first, tuning="lora", out="again", **same)
    assert abs(again["kl"]) < 1e-4
    whole = job.run(first, out="whole", **same)
    assert abs(whole["kl"]) < 1e-4


def test_an_adapter_on_a_base_in_four_bits_moves_in_float32(llama_folder, job):
    metrics = job.run(llama_folder, tuning="qlora", lora={"rank": 4}, learning_rate=1e-2, train_steps=3)
    assert metrics["kl"] > 0
    assert job.policy.card.base_in_4_bits
    adapter = load_file(job.out / "policy" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}


def test_a_run_can_be_repeated(llama_folder, job):
    found = {}
    for out, microbatch_size in (("one", None), ("two", None), ("halves", 8)):
        job.run(llama_folder, out=out, microbatch_size=microbatch_size, learning_rate=1e-4)
        found[out] = weights(job.policy)
    assert torch.equal(found["one"], found["two"])
    assert (found["one"] - found["halves"]).abs().mean() < 1e-7
    first = [row["completion"] for row in job.samples[:16]]
    assert len(set(first)) > 1


def test_without_a_penalty_there_is_no_kl(llama_folder, job):
    assert "kl" not in job.run(llama_folder, kl_coeff=0.0, train_steps=1)


def test_one_bad_completion_is_left_out_counted_and_said(llama_folder, job, capfd):
    metrics = job.run(llama_folder, "one_bad", train_steps=10, held_out_prompts=0, max_bad_rewards=0.3)
    assert metrics["bad_grades"] == 4, "each prompt comes once in ten updates, with four completions"
    assert [row["score"] for row in job.samples if row["id"] == "3"] == [None] * 4
    said = capfd.readouterr().out
    assert "4 of 16 completions left out: reward function" in said
    assert "returned '?' (str) for row" in said
    assert "(id '3'), expected a number or None" in said


@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_a_prompt_that_nobody_judges_is_left_out_and_no_fault(arch, request, job):
    options = {"train_steps": 10, "held_out_prompts": 0, "max_bad_rewards": 0.0}
    metrics = job.run(request.getfixturevalue(f"{arch}_folder"), "not_all", **options)
    assert (metrics["bad_grades"], metrics["not_judged"]) == (0, 8)
    assert [row["score"] for row in job.samples if row["id"] in ("3", "4")] == [None] * 8
    logs = read_scalars(job.out / "logs")
    assert not any(value for _, value in logs["grpo/bad_grades"])
    assert sum(value for _, value in logs["grpo/not_judged"]) == pytest.approx(0.5)
    assert "8 completions were judged by no grader and left out." in (job.out / "report.html").read_text()


def test_the_faults_of_one_prompt_do_not_end_a_run(llama_folder, job):
    metrics = job.run(llama_folder, "one_bad", train_steps=10, held_out_prompts=0)
    assert metrics["bad_grades"] == 4


@pytest.mark.parametrize("arch", ["llama", "t5"])
@pytest.mark.parametrize(
    ("grader", "expected"),
    [
        ("raises", r"g.py:raises: raised KeyError: 'colour' at .*g.py:\d+"),
        ("nothing", r"update 1: 16 of 16 (completions|episodes).*nothing: 16 None"),
        ("nan", r"update 1: 16 of 16 (completions|episodes)"),
    ],
)
def test_a_bad_grader_ends_the_run_before_the_model_moves(arch, grader, expected, request, job):
    with pytest.raises(TrainingError, match=expected):
        job.run(request.getfixturevalue(f"{arch}_folder"), grader)
    assert not (job.out / "policy").exists()


def test_groups_without_a_signal_are_counted_alarmed_and_move_nothing(llama_folder, job):
    metrics = job.run(llama_folder, "same", train_steps=8, kl_coeff=0.0, warmup_steps=0)
    assert metrics["no_signal"] == 1.0
    assert metrics["spread"] == 0.0
    assert metrics["alarms"] >= 1
    assert torch.equal(weights(job.policy), weights(Policy.load(llama_folder, TEMPLATE)))
    page = (job.out / "report.html").read_text(encoding="utf-8")
    assert "No gain" in page
    assert "all completions got one grade: nothing is learned there." in page


def test_the_grader_is_given_prompts_as_in_the_data_and_references(llama_folder, job):
    rows, _, _ = read_dataset(job.prompts, "prompts")
    instructed = Template(instruction="Sum up.", prompt_sequence_length=48, target_sequence_length=8)
    job.prompts = job.folder / "instructed"
    write_dataset(job.prompts, "prompts", rows, instructed)
    assert math.isfinite(job.run(llama_folder, "given", train_steps=1)["grade_after"])


def test_builtins_with_models_grade_a_run(llama_folder, bert_folder, job, prompts):
    template = read_dataset(prompts, "prompts")[2]
    torch.manual_seed(0)
    judge = untrained_reward_model(bert_folder, template)
    judge.save(job.folder / "judge", ModelCard(kind="reward_model", base="tiny", template_digest=template.digest))
    similar = {"builtin": "similarity", "options": {"model": str(bert_folder)}}
    model = {"builtin": "reward_model", "options": {"model": f"{job.folder}/judge"}, "weight": 3.0}
    metrics = job.run(llama_folder, {"sum": [similar, model]}, train_steps=2, held_out_prompts=0)
    assert metrics["bad_grades"] == 0
    logs = read_scalars(job.out / "logs")
    texts = {row["id"]: row["prompt"] for row in read_dataset(prompts, "prompts")[0]}
    first = [row for row in job.samples if row["update"] == 1]
    scores = judge.score([texts[row["id"]] for row in first], [row["completion"] for row in first])
    assert logs["grpo/grade/reward_model"][0][1] == pytest.approx(sum(scores) / len(scores), abs=1e-4)
    similarities = [row["score"] - 3 * score for row, score in zip(first, scores, strict=True)]
    assert all(-1e-4 <= each <= 1 + 1e-4 for each in similarities)
    assert logs["grpo/grade/similarity"][0][1] == pytest.approx(sum(similarities) / len(similarities), abs=1e-4)


def test_a_reward_model_scores_in_the_precision_of_training(bert_folder, monkeypatch):
    torch.manual_seed(0)
    rewards = Rewards(untrained_reward_model(bert_folder, TEMPLATE), 1.0, [])
    asked = [Prompt(id=str(i), text=f"My brother has {i}.", ids=[]) for i in range(8)]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(grading, "working_dtype", lambda wanted, device, dtype=dtype: dtype)
        found.append(grading.score(rewards, asked, ["Fine."] * len(asked)).total)
    assert found[1] != found[0]
    assert found[1] == pytest.approx(found[0], abs=0.05)


def test_parts_of_a_sum_are_logged_by_themselves_and_a_cut_end_costs(llama_folder, job):
    grader = {"sum": [{"function": f"{job.folder}/g.py:same"}, {"builtin": "length", "options": {"most": 3}}]}
    job.run(llama_folder, grader=grader, train_steps=2, missing_eos_penalty=5.0)
    logs = read_scalars(job.out / "logs")
    total = logs["grpo/grade/same"][0][1] + logs["grpo/grade/length"][0][1]
    assert logs["grpo/grade"][0][1] == pytest.approx(total, rel=1e-5)
    cut = 1 - logs["grpo/ended"][0][1]
    assert logs["reward"][0][1] == pytest.approx(total - 5 * cut, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"algorithm": "ppo"}, "grpo.algorithm: found 'ppo', expected: .*'grpo' or 'rloo'"),
        ({"batch_size": 10}, r"group_size \(4\) must divide batch_size \(10\)"),
        ({"microbatch_size": 5}, "microbatch_size: found 5, expected a divisor of the 16 completions"),
        ({"grader": {"function": "nowhere.py"}}, "there is no file"),
        ({"grader": {"bultin": "length"}}, "unknown option 'grpo.grader.bultin': did you mean 'builtin'"),
        ({"grader": None}, "grader: found none, and no reward model either"),
        ({"engine": "vllm"}, "engine: found 'vllm', but vllm is not installed"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, expected, llama_folder, job):
    with pytest.raises(ConfigError, match=expected):
        job.run(llama_folder, **options)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_a_run_that_was_killed_and_stopped_ends_with_the_very_same_weights(
    arch, algorithm, request, job, prompts, tmp_path
):
    base = request.getfixturevalue(f"{arch}_folder")
    inputs = {"prompts": str(prompts), "policy": str(base)}
    options = job.options("letters", algorithm=algorithm, train_steps=20, eval_every=7)
    whole = training.write_job(tmp_path / "whole.yaml", inputs, tmp_path / "whole", OUTPUTS, options)
    training.finish(training.start("grpo_trainer", whole))
    kept = tmp_path / "checkpoints"
    options |= {"checkpoint_dir": str(kept), "checkpoint_every": 1}
    broken = training.write_job(tmp_path / "broken.yaml", inputs, tmp_path / "broken", OUTPUTS, options)
    for step, number in ((4, signal.SIGKILL), (11, signal.SIGTERM)):
        training.end_at_step(training.start("grpo_trainer", broken), kept, step, number)
    assert "going on from the checkpoint of" in training.finish(training.start("grpo_trainer", broken))
    assert torch.equal(*(weights(Policy.load(tmp_path / name / "policy", TEMPLATE)) for name in ("whole", "broken")))
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("whole", "broken")]
    assert samples[0] == samples[1]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_a_run_may_go_on_with_smaller_microbatches(arch, request, job, prompts, tmp_path):
    inputs = {"prompts": str(prompts), "policy": str(request.getfixturevalue(f"{arch}_folder"))}
    options = job.options("letters", train_steps=8, learning_rate=1e-4)
    kept = {"checkpoint_dir": str(tmp_path / "checkpoints"), "checkpoint_every": 1}

    def file(name: str, **more) -> Path:
        return training.write_job(tmp_path / f"{name}.yaml", inputs, tmp_path / name, OUTPUTS, options | more)

    training.finish(training.start("grpo_trainer", file("whole")))
    first = training.start("grpo_trainer", file("broken", **kept))
    training.end_at_step(first, tmp_path / "checkpoints", 3, signal.SIGKILL)
    again = training.start("grpo_trainer", file("broken", microbatch_size=4, **kept))
    assert "going on from the checkpoint of" in training.finish(again)
    found, expected = (weights(Policy.load(tmp_path / name / "policy", TEMPLATE)) for name in ("broken", "whole"))
    assert (found - expected).abs().mean() < 1e-7
    said = [(tmp_path / name / "samples.jsonl").read_text() for name in ("broken", "whole")]
    assert said[0] == said[1]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_two_processes_learn_what_one_does(algorithm, llama_folder, job, prompts, tmp_path):
    inputs = {"prompts": str(prompts), "policy": str(llama_folder)}
    for count in (1, 2):
        out = tmp_path / str(count)
        options = job.options("letters", algorithm=algorithm, learning_rate=1e-4)
        file = training.write_job(tmp_path / f"{count}.yaml", inputs, out, OUTPUTS, options)
        training.finish(training.start("grpo_trainer", file, processes=count))
    curves = [read_scalars(tmp_path / str(count) / "logs") for count in (1, 2)]
    assert curves[0].keys() == curves[1].keys()
    for tag in curves[0].keys() - {"grpo/seconds"}:
        for (update, alone), (_, together) in zip(curves[0][tag], curves[1][tag], strict=True):
            assert together == pytest.approx(alone, rel=1e-3, abs=1e-4), f"{tag} at update {update}"
    samples = [(tmp_path / str(count) / "samples.jsonl").read_text() for count in (1, 2)]
    assert samples[0] == samples[1]
    one, two = (weights(Policy.load(tmp_path / str(count) / "policy", TEMPLATE)) for count in (1, 2))
    # AdamW moves a weight whose gradient is next to nothing by a whole step, whichever sign rounding gave it.
    assert (one - two).abs().mean() < 1e-7
