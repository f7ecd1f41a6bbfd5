"""`make plan`: what fits passes, and what cannot fit is refused by name before anything is submitted."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from pipelines import params
from pipelines.placement.cluster import FOLDER, ProfileError, load_profile, names, size
from pipelines.plan import job_of, problems, table
from rlhf.errors import ConfigError, ModelError
from rlhf.memory import STAGES

ROOT = Path(__file__).parents[2]
job = cache(lambda model, tuning=None: job_of(model, {}, tuning))


@pytest.mark.parametrize("profile", names())
def test_the_models_that_a_profile_is_meant_for_fit_it(profile):
    loaded = load_profile(profile)
    assert {meant.tuning for meant in loaded.meant_for} == {"full", "lora", "qlora"}
    for meant in loaded.meant_for:
        values = meant.model_dump(include={"sft", "reward", "ppo", "inference"})
        assert problems(job_of(meant.model, values, meant.tuning), loaded) == []


@pytest.mark.parametrize("profile", names())
def test_the_nodes_that_a_profile_is_said_to_fit_have_the_memory_of_every_stage(profile):
    loaded = load_profile(profile)
    nodes = [int(gb) * 10**9 for gb in re.findall(r"cores and (\d+) GB", loaded.description)]
    assert nodes or profile not in ("kubeflow-l4", "t4-small"), "those name the nodes that they are for"
    for stage, resources in loaded.stages.items() if nodes else ():
        node = nodes[0] if resources.accelerator else max(nodes)  # a larger one for the publisher comes behind
        assert size(resources.memory) <= 0.95 * node, stage


def test_what_cannot_fit_is_refused_with_what_it_needs_what_there_is_and_what_to_change():
    found = problems(job("llama-2-7b"), load_profile("vertex-l4"))
    assert [line.split(":")[0] for line in found] == ["sft_trainer", "reward_trainer", "ppo_trainer", "evaluator"]
    ppo = next(line for line in found if line.startswith("ppo_trainer"))
    assert "GiB on each NVIDIA_L4 while update (optimiser 50.2, " in ppo
    assert "and there are 22.0" in ppo
    assert "it would fit with tuning qlora for sft, reward and ppo" in ppo
    assert "profile vertex-a100-80g" not in ppo  # 80 GB do not hold it either
    evaluator = next(line for line in found if line.startswith("evaluator"))
    assert "profile vertex-a100-80g" in evaluator


def test_a_policy_that_is_too_large_for_vllms_share_is_refused_with_the_engine_that_needs_none():
    short = {"prompt_sequence_length": 64, "target_sequence_length": 16}  # all else fits
    planned = job_of("llama-2-13b", {**short, "ppo": {"engine": "vllm", "microbatch_tokens": 512}}, "lora")
    profile = load_profile("kubeflow-a100-80g")
    (found,) = (line for line in problems(planned, profile) if line.startswith("ppo_trainer"))
    assert found.startswith("ppo_trainer: vLLM's weights and cache need 24.")
    assert "on each NVIDIA_A100_80GB, and its share of it is 2" in found
    assert "it would fit with ppo.engine transformers" in found
    shown = next(block for block in table(planned, profile).split("\n\n") if block.startswith("ppo_trainer"))
    assert "in vLLM" in shown
    assert "DOES NOT FIT" in shown


def test_an_adapter_whose_base_is_too_large_to_be_merged_in_ram_is_refused(tmp_path):
    profile = yaml.safe_load((FOLDER / "kubeflow-l4.yaml").read_text())
    profile["stages"]["publisher"]["memory"] = "24Gi"
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(profile))
    (found,) = (line for line in problems(job("llama-2-13b", "qlora"), load_profile(str(path))) if "publisher" in line)
    assert "needs 52" in found
    assert "it would fit with ppo.save merged" in found


def test_a_device_that_is_large_enough_does_not_help_where_the_machine_is_not(tmp_path):
    profile = yaml.safe_load((FOLDER / "kubeflow-a100-80g.yaml").read_text())
    profile["stages"]["evaluator"].update(memory="20Gi", disk="30Gi")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(profile))
    (line,) = problems(job("llama-2-7b", "lora"), load_profile(str(path)))
    assert line.startswith("evaluator: needs 28.6 GiB of RAM")
    assert "GiB of disk, and there are 30.0" in line


def test_nothing_makes_a_model_fit_that_is_too_large_for_all_profiles():
    (line,) = [
        line
        for line in problems(job("meta-llama/Llama-2-70b-hf"), load_profile("t4-small"))
        if line.startswith("sft_trainer")
    ]
    assert line.endswith("; no option and no shipped profile makes it fit: take a smaller model")


def test_the_table_names_what_each_stage_holds():
    text = table(job("t5-large", "lora"), load_profile("kubeflow-l4"))
    for stage in set(STAGES) - {"grpo_trainer"}:  # of runs with a grader
        where = "CPU, GiB of RAM" if stage == "publisher" else "NVIDIA_L4, GiB on each of 22.0"
        assert f"{stage} on {where}" in text
    for part in ("policy", "adapter", "reference", "optimiser", "activations", "KV cache", "logits", "reward model"):
        assert part in text
    assert "DOES NOT FIT" not in text


def test_a_cache_that_is_cut_to_what_is_left_says_so():
    text = table(job("llama-2-13b", "lora"), load_profile("kubeflow-h100x8"))
    assert "while sampling, cut to" in text


def test_a_profile_that_does_not_say_what_its_accelerators_are_is_named(tmp_path):
    profile = yaml.safe_load((FOLDER / "kubeflow-l4.yaml").read_text())
    profile["stages"]["ppo_trainer"].pop("device")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(profile))
    with pytest.raises(ProfileError, match=r"stages.ppo_trainer.device: found none, expected"):
        table(job("t5-small"), load_profile(str(path)))


def test_a_run_without_demonstrations_is_planned_without_sft():
    values = params.read(ROOT / "examples/llama-2-7b-vertex-tldr.yaml")
    model = values["large_model_reference"]
    without = job_of(model, values)
    assert without.sft is None
    assert without.reward_beside, "all adapters are on the base itself"
    assert problems(without, load_profile("vertex-h100x8")) == []
    assert "sft_trainer" not in table(without, load_profile("vertex-h100x8"))
    with_them = job_of(model, {**values, "demonstration_dataset": "gs://b/demonstrations.jsonl"})
    assert "sft_trainer" in table(with_them, load_profile("vertex-h100x8"))
    assert any(line.startswith("sft_trainer") for line in problems(with_them, load_profile("vertex-h100x8")))
    with pytest.raises(ConfigError, match=r"unknown option 'sft.microbatch'"):
        job_of(model, {**values, "sft": {"microbatch": 1}})


def test_wrong_options_and_models_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown option 'ppo.microbatch_token'"):
        job_of("t5-small", {"ppo": {"microbatch_token": 1}})
    with pytest.raises(ModelError):
        job_of(str(tmp_path), {})


def test_the_command_ends_with_1_where_it_cannot_fit(tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text("large_model_reference: t5-xl\nsft: {tuning: lora, microbatch_size: 1}\n")
    ended = subprocess.run(
        [sys.executable, "-m", "pipelines.plan", "--params", str(params), "--profile", "vertex-l4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout.startswith("t5-xl: 2.78 billion parameters, 512 + 64 tokens\n")
    assert [line.split(":")[:2] for line in ended.stderr.splitlines()] == [
        ["error", " reward_trainer"],
        ["error", " ppo_trainer"],
    ]
