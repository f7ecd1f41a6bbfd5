"""The arithmetic of `rlhf.memory` against bytes that tiny models hold, and what follows from options."""

import json
from dataclasses import replace

import pytest

from rlhf.data.template import Template
from rlhf.errors import ModelError
from rlhf.memory import FOUR_BITS, Job, Need, Part, Size, bulk_inference, evaluator, ppo_trainer, sft_trainer
from rlhf.memory import reward_trainer as reward_need
from rlhf.ppo_trainer.config import PPOTrainerConfig
from rlhf.reward_trainer.config import RewardTrainerConfig
from rlhf.sft_trainer.config import SFTTrainerConfig

LLAMA_7B = Size(
    kind="causal",
    parameters=6_738_415_616,
    layer_parameters=6_476_267_520,
    largest_layer=202_383_360,
    linear=6_476_005_376,
    adapter_per_rank=2_498_560,
    layers=32,
    layer_width=78_080,
    hidden=4096,
    intermediate=11_008,
    heads=32,
    cache_per_token=262_144,
    vocabulary=32_000,
)


def job(policy: Size = LLAMA_7B, scalar: Size | None = None, **options) -> Job:
    def of(kind, name):
        return kind.parse({**options.get("common", {}), **options.get(name, {})}, name)

    return Job(
        policy=policy,
        scalar=scalar or replace(policy, parameters=policy.parameters - policy.vocabulary * policy.hidden),
        prompt_length=512,
        response_length=64,
        sft=of(SFTTrainerConfig, "sft"),
        reward=of(RewardTrainerConfig, "reward"),
        ppo=of(PPOTrainerConfig, "ppo"),
    )


def parts(need: Need) -> dict[str, float]:
    return {part.name: part.size for part in need.parts}


def tensors(module) -> int:
    return sum(value.numel() * value.element_size() for value in module.parameters())


def moments(optimizer) -> int:
    return sum(v.numel() * v.element_size() for s in optimizer.state.values() for v in s.values() if v.dim())


def test_the_height_of_a_stage_is_its_worst_phase():
    need = Need([Part("weights", 10), Part("cache", 9, "sampling", least=1), Part("gradients", 5, "update")], 0, 0)
    assert (need.peak, need.tightest) == (15, "update")  # the cache can be cut
    assert need.in_phase("sampling", least=False) == 19
    assert replace(need, share=0.5).peak == 30


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("critic", ["shared", "own"])
def test_ppo_holds_as_many_bytes_as_are_counted(policy_folder, tuning, critic):
    from rlhf.models.policy import Policy
    from rlhf.models.sizes import measure
    from rlhf.ppo.learner import Learner
    from rlhf.ppo.networks import Networks

    config = PPOTrainerConfig(tuning=tuning, critic=critic)
    policy = Policy.load(policy_folder)
    size = measure(policy.model)
    policy, _ = Policy.to_train(policy_folder, Template(), config)
    networks = Networks(policy, config)
    learner = Learner(config, networks, 8)
    for parameter in (p for group in learner.optimizer.param_groups for p in group["params"]):
        parameter.grad = parameter.detach().clone()
    learner.optimizer.step()
    learner.optimizer.step()
    found = parts(ppo_trainer(replace(job(size), sft=None, ppo=config), 1))
    held = sum(found.get(name, 0) for name in ("policy", "adapter", "reference", "critic"))
    head = tensors(networks.value_head)
    assert held == tensors(networks.as_module()) - head
    assert found["optimiser"] == moments(learner.optimizer) - 2 * head
    assert found["gradients"] == sum(p.numel() * 4 for _, p in networks.named_parameters()) - head


@pytest.mark.parametrize("folder", ["llama_folder", "t5_folder", "bert_folder"])
def test_reward_trainer_holds_as_many_bytes_as_are_counted(folder, request):
    from rlhf.models.scoring import RewardModel
    from rlhf.models.sizes import size_of

    path = str(request.getfixturevalue(folder))
    scalar = size_of(path, scalar=True)
    config = RewardTrainerConfig(tuning="full")
    model, _ = RewardModel.to_train(path, Template(), config)
    found = parts(reward_need(replace(job(scalar=scalar), reward=config), 1))
    assert found["weights"] == found["gradients"] == tensors(model.model)
    assert found["optimiser"] == 2 * tensors(model.model)


def test_sizes_of_short_names_are_those_that_were_published():
    from rlhf.models.sizes import size_of

    assert size_of("llama-2-7b") == LLAMA_7B
    assert size_of("Llama_2_13B").parameters == 13_015_864_320


def test_sizes_come_from_a_config_without_weights(tmp_path):
    from rlhf.models.sizes import size_of

    config = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    size = size_of(str(tmp_path))
    assert size.parameters == 100 * 64 + 32 * 64 + 2 * (12 * 64 * 64 + 13 * 64) + 2 * 64
    assert size.cache_per_token == 2 * 2 * 64


def test_a_model_without_attention_is_refused_by_name(tmp_path):
    from rlhf.models.sizes import size_of

    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 1})
    )
    with pytest.raises(ModelError, match="'mamba': it has no attention heads"):
        size_of(str(tmp_path))


def test_the_cache_of_a_rollout_has_rotated_keys_in_float32(llama_folder):
    """Autocast computes keys in bfloat16; rotating them by angles in float32 gives float32 again."""
    import torch
    from transformers import GenerationConfig

    from rlhf.memory import _cache
    from rlhf.models.generation import _State
    from rlhf.models.policy import Policy
    from rlhf.models.sizes import measure

    model = Policy.load(llama_folder).model
    ids = torch.ones(2, 7, dtype=torch.long)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        state = _State(model, GenerationConfig(), ids, ids, synced=True)
        model(**state.inputs())
    layers = state.caches[0].layers
    held = sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))
    assert held == 2 * 7 * _cache(measure(model), 2)


def test_the_plan_has_as_much_room_as_sampling_takes():
    from rlhf import memory
    from rlhf.models import generation

    assert memory.CACHE_GROWTH == generation.GROWTH
    assert generation.PROMPT_TOKENS_AT_ONCE["cuda"] == memory.PROMPTS_AT_ONCE


def test_a_model_in_4_bits_takes_an_eighth():
    weights = parts(sft_trainer(job(common={"tuning": "qlora"}), 1))["weights"]
    kept = 4 * (LLAMA_7B.parameters - LLAMA_7B.linear)
    assert weights - kept == FOUR_BITS * LLAMA_7B.linear
    assert 0.51 < FOUR_BITS < 0.52


def test_adapters_of_policy_reference_and_reward_model_share_one_base():
    alone = parts(ppo_trainer(job(ppo={"tuning": "lora"}), 1))
    shared = parts(ppo_trainer(job(common={"tuning": "lora"}), 1))
    adapter = 4 * 4 * LLAMA_7B.adapter_per_rank
    assert shared["policy"] == alone["policy"] == 4 * LLAMA_7B.parameters
    assert shared["reference"] == shared["adapter"] == adapter  # a copy of the one that SFT began
    assert "reference" not in alone  # the base under the adapter
    assert shared["reward model"] < 2 * adapter < alone["reward model"]


@pytest.mark.parametrize("options", [{"common": {"tuning": "lora"}, "ppo": {"sharding": "fsdp"}},
                                     {"reward": {"tuning": "qlora"}, "ppo": {"tuning": "full"}}])  # fmt: skip
def test_a_reward_model_that_is_not_beside_the_policy_is_whole_and_in_float32(options):
    assert parts(ppo_trainer(job(**options), 8))["reward model"] == 4 * job(**options).scalar.parameters


def test_without_a_reference_and_with_less_at_once_ppo_takes_less():
    usual = parts(ppo_trainer(job(), 1))
    none = parts(ppo_trainer(job(ppo={"reference": "none", "kl_coeff": 0.0}), 1))
    assert usual["reference"] == 4 * LLAMA_7B.parameters
    assert "reference" not in none
    for option, part in (
        ("microbatch_tokens", "activations"),
        ("logits_at_once", "logits"),
        ("rollout_tokens", "KV cache and sampling"),
    ):
        assert parts(ppo_trainer(job(ppo={option: 64}), 1))[part] <= usual[part]
        assert parts(ppo_trainer(job(ppo={option: 100_000}), 1))[part] > usual[part]


def test_fsdp_spreads_layers_and_loads_them_whole():
    one, eight = (ppo_trainer(job(ppo={"sharding": "fsdp"}), processes) for processes in (1, 8))
    rest = LLAMA_7B.parameters - LLAMA_7B.layer_parameters
    assert parts(eight)["policy"] == pytest.approx(4 * (LLAMA_7B.layer_parameters / 8 + rest))
    assert parts(eight)["optimiser"] == pytest.approx(2 * parts(eight)["policy"])
    assert eight.peak < one.peak
    three = 3 * 4 * LLAMA_7B.parameters - 4 * LLAMA_7B.vocabulary * LLAMA_7B.hidden  # one without an output layer
    assert eight.in_phase("loading") >= three
    cache = next(part for part in eight.parts if part.name.startswith("KV"))
    assert cache.least is None  # processes that keep step cannot halve it each by itself


def test_zero_spreads_the_optimiser_and_at_stage_3_everything():
    def zero(stage: int) -> dict[str, float]:
        options = {
            "sharding": "deepspeed",
            "engine": "transformers",
            "deepspeed": {"zero_optimization": {"stage": stage}},
        }
        return parts(ppo_trainer(job(ppo=options), 8))

    whole = 4 * LLAMA_7B.parameters
    assert zero(2)["policy"] == whole
    assert zero(2)["optimiser"] == 3 * whole / 8
    assert zero(3)["policy"] == whole / 8
    assert zero(3)["gradients"] == whole / 8


def test_vllm_beside_training_leaves_the_rest():
    need = ppo_trainer(job(ppo={"engine": "vllm"}), 1)
    assert need.peak == pytest.approx(ppo_trainer(job(), 1).peak / 0.7)
    whole = 2 * LLAMA_7B.parameters / 0.3
    assert need.is_room_for_vllm(1.1 * whole)
    assert not need.is_room_for_vllm(whole)
    assert ppo_trainer(job(), 1).is_room_for_vllm(1)


def test_a_whole_model_is_loaded_in_half_for_inference_and_an_adapter_is_merged_in_float32():
    need = bulk_inference(job(), 1)
    assert parts(need)["policy"] == 2 * LLAMA_7B.parameters
    assert need.phases == ["sampling"]
    assert 2 * LLAMA_7B.parameters < need.host < 3 * LLAMA_7B.parameters
    merged = bulk_inference(job(common={"tuning": "lora"}, ppo={"save": "merged"}), 1)
    assert (merged.phases, merged.host) == (need.phases, need.host)
    adapter = bulk_inference(job(common={"tuning": "lora"}), 1)
    assert parts(adapter)["policy"] == 2 * LLAMA_7B.parameters
    assert adapter.tightest == "loading"
    assert min(adapter.peak, adapter.host) > 4 * LLAMA_7B.parameters
    assert evaluator(job(), 1).peak > 4 * (LLAMA_7B.parameters - LLAMA_7B.vocabulary * LLAMA_7B.hidden)
