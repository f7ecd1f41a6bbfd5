"""What samples completions, and that vLLM is asked for only where it can be had."""

import inspect
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf import memory
from rlhf.data.template import Template
from rlhf.errors import ConfigError, ModelError
from rlhf.models import engines
from rlhf.models.card import ModelCard
from rlhf.models.engines import Transformers, inference_engine, sample, training_engine
from rlhf.models.policy import Policy
from rlhf.sft_trainer.config import SFTTrainerConfig
from rlhf.training.interruption import heed_sigterm


@pytest.fixture
def policy(llama_folder):
    return Policy.load(llama_folder)


def engine(wanted: str, policy: Policy) -> engines.Engine:
    return training_engine(wanted, policy, 8, 0.7, 4096, torch.float32)


def test_without_vllm_auto_is_transformers(policy, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    assert isinstance(engine("auto", policy), Transformers)


def test_vllm_is_refused_where_it_is_not_installed(policy, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="engine: found 'vllm', but vllm is not installed"):
        engine("vllm", policy)


def test_vllm_is_refused_without_a_gpu(policy, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="there is no GPU"):
        engine("vllm", policy)
    assert isinstance(engine("auto", policy), Transformers)


def test_vllm_is_refused_for_an_encoder_decoder(t5_folder, monkeypatch):
    policy = Policy.load(t5_folder)
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="encoder-decoder"):
        engine("vllm", policy)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_model_that_answers_in_bfloat16_turns_positions_by_angles_in_float32(tuning, llama_folder, tmp_path):
    policy, trainee = Policy.to_train(llama_folder, Template(), SFTTrainerConfig(tuning=tuning))
    policy.save(tmp_path, ModelCard(kind="policy", base=trainee.base, template_digest=Template().digest))
    policy, _ = inference_engine("transformers", str(tmp_path), Template(), 4096, "bfloat16")
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.bfloat16}
    angles = [buffer for name, buffer in policy.model.named_buffers() if name.endswith("inv_freq")]
    assert angles
    assert all(torch.equal(*pair) for pair in zip(angles, inverse_frequencies(llama_folder), strict=True))


def inverse_frequencies(folder: Path) -> list[torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")]


def test_no_copy_of_the_weights_is_held_in_float32_first(llama_folder, monkeypatch):
    held = []
    load = AutoModelForCausalLM.from_pretrained

    def loaded(*arguments, **options):
        model = load(*arguments, **options)
        held.append(model[0].dtype)
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loaded)
    inference_engine("transformers", str(llama_folder), Template(), 4096, "bfloat16")
    assert held == [torch.bfloat16]


def test_vllm_is_not_asked_for_a_policy_whose_base_is_held_in_4_bits(policy, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    policy.model.is_loaded_in_4bit = True
    assert isinstance(engine("auto", policy), Transformers)
    with pytest.raises(ConfigError, match="engine: found 'vllm', but its base is held in 4 bits"):
        engine("vllm", policy)


def test_vllm_is_not_asked_for_weights_that_are_spread(policy, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    spread = (policy, 8, 0.7, 4096, torch.float32, True)
    assert isinstance(training_engine("auto", *spread), Transformers)
    with pytest.raises(ConfigError, match="engine: found 'vllm', but its weights are spread over processes"):
        training_engine("vllm", *spread)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_vllm_is_not_asked_for_a_vocabulary_that_has_grown(tuning, llama_folder, tmp_path, monkeypatch):
    shutil.copytree(llama_folder, tmp_path, dirs_exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    model.resize_token_embeddings(model.config.vocab_size - 1)  # fewer than the tokenizer has
    model.save_pretrained(tmp_path)
    policy, _ = Policy.to_train(tmp_path, Template(), SFTTrainerConfig(tuning=tuning))
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert isinstance(engine("auto", policy), Transformers)
    with pytest.raises(ConfigError, match="engine: found 'vllm', but its tokenizer has 1 tokens more than the"):
        engine("vllm", policy)


@pytest.mark.parametrize(("room", "kind"), [(0.9, Transformers), (1.1, str)])
def test_vllm_is_asked_only_where_its_share_of_the_gpu_holds_the_weights(room, kind, policy, monkeypatch):
    """Without a GPU here: its size is given."""
    from rlhf.models import vllm

    weights = 2 * sum(parameter.numel() for parameter in policy.model.parameters())
    gpu = SimpleNamespace(total_memory=int(room * weights / engines.VLLM_SHARE))
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(vllm, "VLLM", lambda *arguments: "vLLM")
    assert isinstance(engine("auto", policy), kind)
    if kind is Transformers:
        with pytest.raises(ConfigError, match=r"engine: found 'vllm', but its copy of the weights takes 0\.0 GiB"):
            engine("vllm", policy)


def test_the_plan_leaves_vllm_the_share_that_it_takes():
    assert memory.VLLM_SHARE == engines.VLLM_SHARE


class Recorded:
    """Stands for TRL's VLLMGeneration, which needs a GPU; takes what the real one takes, and answers with EOS."""

    def __init__(self, **options):
        from trl.generation.vllm_generation import VLLMGeneration

        inspect.signature(VLLMGeneration.__init__).bind(self, **options)
        self.options, self.synced = options, 0

    def sync_weights(self):
        self.synced += 1

    def generate(self, *arguments):
        from trl.generation.vllm_generation import VLLMGeneration

        named = inspect.signature(VLLMGeneration.generate).bind(self, *arguments).arguments
        assert named["num_generations"] == 1
        completions = [[5, 1] for _ in named["prompts"]]
        return named["prompts"], completions, None, None


def test_vllm_is_asked_in_the_words_of_trls_interface(policy, monkeypatch):
    from rlhf.models import vllm

    monkeypatch.setattr(vllm, "VLLMGeneration", Recorded)
    policy.template = Template(prompt_sequence_length=40)
    asked = vllm.VLLM(policy, 8, 0.7)
    asked.follow()
    assert sample(asked, [[3, 4], [3]], torch.rand(2, 8), 0.7) == [[5, 1], [5, 1]]
    assert asked._generation.synced == 1
    assert asked._generation.options["max_completion_length"] == 8
    assert asked._generation.options["max_model_length"] == 48
    policy.template = Template(prompt_sequence_length=policy.positions)
    assert vllm.VLLM(policy, 8, 0.7)._generation.options["max_model_length"] == policy.positions
    assert set(asked._generation.options["generation_kwargs"]["logit_bias"]) == set(policy.forbidden)
    with pytest.raises(ValueError, match="temperature"):
        sample(asked, [[3]], torch.rand(1, 8), 1.0)


def worked(policy: Policy, count: int, temperature: float = 0.7) -> tuple[list[list[int]], list[list[int]]]:
    """What two workers and one process answer."""
    prompts = [[3 + i % 7] * (1 + i % 9) for i in range(count)]
    draws = torch.rand(count, 8)
    several = Transformers(policy, 2 * 64, workers=2)
    return sample(several, prompts, draws, temperature), sample(Transformers(policy, 64), prompts, draws, temperature)


@pytest.mark.parametrize("folder", ["llama_folder", "t5_folder"])
def test_workers_answer_as_one_process_does(folder, request):
    several, one = worked(Policy.load(request.getfixturevalue(folder)), 40)
    assert several == one
    assert len(several) == 40


def test_workers_are_other_processes_and_leave_torchs_random_numbers(policy, monkeypatch):
    monkeypatch.setattr(policy, "generate", lambda prompts, *_, **__: [[os.getpid()] for _ in prompts])
    before = torch.get_rng_state()
    several, one = worked(policy, 40)
    assert len({pid for [pid] in several} - {os.getpid()}) == 2
    assert [os.getpid()] not in several
    assert one == [[os.getpid()]] * 40
    draws = torch.rand(40, 8)
    torch.set_rng_state(before)
    torch.rand(40, 8)  # those of `worked`
    assert torch.equal(draws, torch.rand(40, 8))


def test_workers_without_memory_go_on_with_fewer_rows(policy, monkeypatch, capsys):
    def generate(prompts, *_, **__):
        if len(prompts) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return [[len(ids)] for ids in prompts]

    monkeypatch.setattr(policy, "generate", generate)
    engine = Transformers(policy, 2 * 64, workers=2)
    prompts = [[3] * (1 + i % 9) for i in range(40)]
    assert sample(engine, prompts, torch.rand(40, 8), 0.7) == [[len(ids)] for ids in prompts]
    assert "warning: out of memory with" in "".join(capsys.readouterr())


def test_that_a_worker_was_killed_is_said(policy, monkeypatch):
    monkeypatch.setattr(policy, "generate", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ModelError, match=r"ended from outside, most likely for want of memory.*; lower tokens_at_once"):
        sample(Transformers(policy, 2 * 64, workers=2), [[3]] * 40, torch.rand(40, 8), 0.7)


def test_what_a_worker_raises_comes_through(policy, monkeypatch):
    def generate(*_, **__):
        raise ValueError("no such token")

    monkeypatch.setattr(policy, "generate", generate)
    with pytest.raises(ValueError, match="no such token"):
        sample(Transformers(policy, 2 * 64, workers=2), [[3]] * 40, torch.rand(40, 8), 0.7)


def test_workers_end_with_a_run_that_stops_between_batches(policy, monkeypatch):
    def generate(prompts, *_, **__):
        time.sleep(600 if len(prompts[0]) > 1 else 0)
        return [[4] for _ in prompts]

    monkeypatch.setattr(policy, "generate", generate)
    with heed_sigterm():  # workers inherit what a stage does about SIGTERM
        prompts = [[3]] * 7 + [[3, 3]] * 33
        batches = Transformers(policy, 2 * 64, workers=2).batches(prompts, torch.rand(40, 8), 0.7)
        next(batches)
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        batches.close()
    for worker in workers:
        worker.join(20)
        assert not worker.is_alive()


@pytest.mark.parametrize(
    ("device", "cores", "tokens", "workers"),
    [
        ("cpu", 2, 16_384, 2),
        ("cpu", 4, 16_384, 4),
        ("cpu", 8, 16_384, 1),
        ("cpu", 1, 16_384, 1),
        ("cuda", 4, 65_536, 1),
    ],
)
def test_a_core_gets_a_worker_where_its_batches_stay_large(monkeypatch, device, cores, tokens, workers):
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    assert engines._workers(torch.device(device), tokens) == workers
