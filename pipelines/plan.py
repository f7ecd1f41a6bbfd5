"""Whether a model fits a profile: `python -m pipelines.plan --model M --profile P`."""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from pipelines import params
from pipelines.placement.cluster import Profile, ProfileError, load_profile, names, size
from pipelines.placement.devices import DEVICES
from rlhf import memory
from rlhf.bulk_inference.config import BulkInferenceConfig
from rlhf.errors import RlhfError
from rlhf.grpo_trainer.config import GRPOTrainerConfig
from rlhf.memory import STAGES, Job, Need, gib
from rlhf.ppo_trainer.config import PPOTrainerConfig
from rlhf.reward_trainer.config import RewardTrainerConfig
from rlhf.sft_trainer.config import SFTTrainerConfig

GIB = 2**30
ENOUGH = 2  # options that are named as a way out
Change = Callable[[Job], Job]


def job_of(model: str, values: dict[str, Any], tuning: str | None = None) -> Job:
    """What a run with these parameters is to hold.

    Args:
        model: As `large_model_reference`.
        values: Parameters of the `rlhf` pipeline; of `rft`, where there is a grader among them. Where they name data,
            and no demonstrations, there is no SFT; where they name none, all stages are planned.
        tuning: Of all three trainers, where their options do not say; None leaves it to them.

    Raises:
        ConfigError: An option is wrong.
        ModelError: There is no config of the model.
    """
    from rlhf.models.sizes import size_of

    common = {} if tuning is None else {"tuning": tuning}

    def options(kind: Any, name: str) -> Any:
        return kind.parse({**(common if name != "inference" else {}), **values.get(name, {})}, name)

    reward = options(RewardTrainerConfig, "reward")
    lengths = (values.get("prompt_sequence_length", 512), values.get("target_sequence_length", 64))
    if "grader" in values or "grpo" in values:
        grpo = options(GRPOTrainerConfig, "grpo")
        same = {name: getattr(grpo, name) for name in ("tuning", "lora", "save", "checkpoint_dir")}
        inference = options(BulkInferenceConfig, "inference")
        policy = size_of(model)
        return Job(policy, policy, *lengths, None, reward, PPOTrainerConfig(**same), inference, grpo)
    sft = options(SFTTrainerConfig, "sft")
    if values.get("prompt_dataset") and not values.get("demonstration_dataset"):
        sft = None
    return Job(
        policy=size_of(model),
        scalar=size_of(reward.base_model or model, scalar=True),
        prompt_length=lengths[0],
        response_length=lengths[1],
        sft=sft,
        reward=reward,
        ppo=options(PPOTrainerConfig, "ppo"),
        inference=options(BulkInferenceConfig, "inference"),
    )


def need_of(stage: str, job: Job, profile: Profile) -> Need | None:
    """What a stage needs on the devices that a profile gives it."""
    return STAGES[stage](job, profile.stages[stage].devices)


def problems(job: Job, profile: Profile) -> list[str]:
    """Why a run cannot fit, one line for each stage; none where it fits.

    Raises:
        ProfileError: The profile does not say what its accelerators are.
    """
    found = []
    for stage in STAGES:
        lacks = list(_lacks(stage, job, profile))
        if lacks:
            found.append(f"{stage}: {'; '.join(lacks)}; {_advice(stage, job, profile)}")
    return found


def table(job: Job, profile: Profile) -> str:
    """What each stage holds on each of its accelerators, or in RAM where it has none, in GiB."""
    blocks = []
    for stage in STAGES:
        need = need_of(stage, job, profile)
        if need is None:
            continue
        resources = profile.stages[stage]
        if not need.parts:
            verdict = "DOES NOT FIT" if any(_lacks(stage, job, profile)) else "fits"
            blocks.append(f"{stage} on CPU, GiB of RAM\n  {'at least':<26}{gib(need.host):>9}  {verdict}")
            continue
        there = _there(stage, profile)
        count = f"{resources.devices} x " if resources.devices > 1 else ""
        lines = [f"{stage} on {count}{profile.device(stage)}, GiB on each of {gib(there * GIB)}"]
        for part in need.parts:
            how = "counted" if part.counted else "estimated"
            notes = [how] if part.phase == memory.ALWAYS else [how, f"while {part.phase}"]
            if part.least is not None:
                left = there * need.share * GIB - need.in_phase(part.phase) + part.least
                if left < part.size:
                    notes.append(f"cut to {gib(max(left, part.least))}")
            lines.append(f"  {part.name:<26}{gib(part.size):>9}  {', '.join(notes)}")
        taken = " of the share that vLLM leaves" if need.share < 1 else ""
        if need.in_vllm:
            lines.append(
                f"  {'in vLLM':<26}{gib(need.in_vllm):>9}  estimated, of its {gib((1 - need.share) * there * GIB)}"
            )
        fits = need.peak <= there * GIB and need.is_room_for_vllm(there * GIB)
        verdict = "fits" if fits else "DOES NOT FIT"
        lines.append(f"  {'at least':<26}{gib(need.peak * need.share):>9}  {_when(need)}{taken}: {verdict}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _when(need: Need) -> str:
    return need.tightest if need.tightest == memory.ALWAYS else f"while {need.tightest}"


def _there(stage: str, profile: Profile) -> float:
    device = profile.device(stage)
    if device is None:
        raise ProfileError(
            f"profile: stages.{stage}.device: found none, expected what its accelerator is, one of {', '.join(DEVICES)}"
        )
    return DEVICES[device]


def _lacks(stage: str, job: Job, profile: Profile) -> Iterator[str]:
    need = need_of(stage, job, profile)
    if need is None:
        return
    resources = profile.stages[stage]
    if need.parts and need.peak > (there := _there(stage, profile)) * GIB:
        largest = sorted(
            (part for part in need.parts if part.phase in (memory.ALWAYS, need.tightest)), key=lambda part: -part.size
        )
        parts = ", ".join(f"{part.name} {gib(part.size)}" for part in largest[:3])
        yield (
            f"needs {gib(need.peak)} GiB on each {profile.device(stage)} {_when(need)} ({parts}), "
            f"and there are {gib(there * GIB)}"
        )
    if need.in_vllm and not need.is_room_for_vllm(there := _there(stage, profile) * GIB):
        yield (
            f"vLLM's weights and cache need {gib(need.in_vllm)} GiB on each {profile.device(stage)}, and its share of "
            f"it is {gib((1 - need.share) * there)}"
        )
    processes = resources.count if stage.endswith("trainer") else 1
    ram = size(resources.memory) - (size(resources.shm) if resources.shm else 0)
    if processes * need.host > ram:
        yield (
            f"needs {gib(processes * need.host)} GiB of RAM to load models in {processes} processes, and memory "
            f"{resources.memory} less shm leaves {gib(ram)}"
        )
    if need.disk > size(resources.disk):
        yield f"needs {gib(need.disk)} GiB of disk, and there are {gib(size(resources.disk))}"


def _advice(stage: str, job: Job, profile: Profile) -> str:
    """What to change, each by itself enough for this stage."""
    does = []
    for label, change in _CHANGES[stage].items():
        try:
            if len(does) < ENOUGH and not any(_lacks(stage, change(job), profile)):
                does.append(label)
        except ValueError:  # options that exclude each other
            continue
    for name in names():
        other = load_profile(name)
        if other.platform == profile.platform and not any(_lacks(stage, job, other)):
            does.append(f"profile {name}")
    if not does:
        return "no option and no shipped profile makes it fit: take a smaller model"
    return f"it would fit with {', or '.join(does)}"


def _with(**stages: dict[str, Any]) -> Change:
    def change(job: Job) -> Job:
        changed = {}
        for name, options in stages.items():
            config = getattr(job, name)
            if config is not None:
                changed[name] = type(config).model_validate({**config.model_dump(exclude_unset=True), **options})
        return replace(job, **changed)

    return change


def _all(tuning: str, **stages: dict[str, Any]) -> Change:
    every = {name: {"tuning": tuning, **stages.get(name, {})} for name in ("sft", "reward", "ppo", "grpo")}
    every["ppo"] = {"sharding": "none", "deepspeed": None, **every["ppo"]}
    return _with(**every)


_TUNINGS = {
    "tuning lora for sft, reward and ppo": _all("lora"),
    "tuning qlora for sft, reward and ppo": _all("qlora"),
}
_CHANGES: dict[str, dict[str, Change]] = {
    "sft_trainer": {
        "sft.microbatch_size 1": _with(sft={"microbatch_size": 1}),
        **_TUNINGS,
        "tuning qlora for all and sft.microbatch_size 1": _all("qlora", sft={"microbatch_size": 1}),
    },
    "reward_trainer": {
        "reward.tokens_per_forward 1024": _with(reward={"tokens_per_forward": 1024, "eval_batch_size": 8}),
        **_TUNINGS,
    },
    "ppo_trainer": {
        "ppo.microbatch_tokens 1024": _with(ppo={"microbatch_tokens": 1024}),
        "ppo.critic shared": _with(ppo={"critic": "shared"}),
        "ppo.engine transformers": _with(ppo={"engine": "transformers"}),
        "ppo.sharding fsdp": _with(ppo={"sharding": "fsdp"}),
        **_TUNINGS,
        "tuning qlora for all and ppo.microbatch_tokens 1024": _all("qlora", ppo={"microbatch_tokens": 1024}),
    },
    "grpo_trainer": {
        "grpo.microbatch_size 1": _with(grpo={"microbatch_size": 1}),
        "grpo.engine transformers": _with(grpo={"engine": "transformers"}),
        "grpo.tuning lora": _all("lora"),
        "grpo.tuning qlora and grpo.microbatch_size 1": _all("qlora", grpo={"microbatch_size": 1}),
    },
    "bulk_inference": _TUNINGS,
    "evaluator": _TUNINGS,
    "publisher": {"ppo.save merged": _with(ppo={"save": "merged"})},
}


def main() -> int:
    """Print the plan.

    Returns:
        Exit status: 0, 1 when it cannot fit, 2 when model, profile or an option cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m pipelines.plan", description="See whether a model fits.")
    parser.add_argument("--model", help="Hugging Face id, folder, URI or short name (default: that of --params)")
    parser.add_argument("--profile", required=True, help="from pipelines/profiles, or a path")
    parser.add_argument("--params", metavar="FILE", help="YAML or JSON file of pipeline parameters")
    parser.add_argument("--tuning", choices=["full", "lora", "qlora"], help="of trainers whose options do not say")
    given = parser.parse_args()
    try:
        profile = load_profile(given.profile)
        values = params.read(given.params) if given.params else {}
        model = given.model or values.get("large_model_reference")
        if not model:
            raise params.ParameterError("model: none given, expected a Hugging Face id, folder, URI or short name")
        job = job_of(model, values, given.tuning)
        billions = job.policy.parameters / 1e9
        print(f"{model}: {billions:.2f} billion parameters, {job.prompt_length} + {job.response_length} tokens\n")
        print(table(job, profile))
        found = problems(job, profile)
    except (params.ParameterError, ProfileError, RlhfError) as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 2
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
