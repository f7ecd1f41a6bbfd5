"""What a configuration of DeepSpeed may say here."""

from typing import Any

DEFAULT = {"zero_optimization": {"stage": 2}}
# What DeepSpeed calls what options of ours are for.
OURS = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "microbatch_tokens",
    "gradient_accumulation_steps": "microbatch_tokens",
    "optimizer": "learning_rate and adam_beta2",
    "scheduler": "learning_rate_schedule and warmup_steps",
    "gradient_clipping": "max_gradient_norm",
    "fp16": "precision",
    "bf16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
    "activation_checkpointing": "activation_checkpointing",
    "compile": "compile",
    "checkpoint": "checkpoint_dir",
}
DEEPSPEEDS = (
    "zero_optimization",
    "aio",
    "communication_data_type",
    "comms_logger",
    "memory_breakdown",
    "steps_per_print",
    "wall_clock_breakdown",
)
# Of no consequence: our optimiser is one that ZeRO knows, and wherever its state lies it stays ours.
_IDLE = ("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer")


def checked(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """A configuration less what it leaves open: values of `auto`, as transformers has it, and what is off.

    Raises:
        ValueError: It says what an option of ours is for, or is nothing that can be passed on.
    """
    if given is None:
        return None
    options = {key: _without_auto(value) for key, value in given.items() if not _is_open(value) and key not in _IDLE}
    for key in options:
        if key in OURS:
            raise ValueError(f"{key}: leave it out, and set {OURS[key]} instead")
        if key not in DEEPSPEEDS:
            raise ValueError(f"{key}: not known here, expected some of {', '.join(DEEPSPEEDS)}")
    zero = options.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage not in (1, 2, 3):
        raise ValueError(f"zero_optimization.stage: found {stage!r}, expected 1, 2 or 3")
    device = (zero.get("offload_optimizer") or {}).get("device", "none")
    # At stages 1 and 2 DeepSpeed adds the next gradient to one that was dropped; a disk it reads in its own backward.
    if device not in (("none", "cpu") if stage == 3 else ("none",)):
        raise ValueError(
            f"zero_optimization.offload_optimizer.device: found {device!r} at stage {stage}, expected none"
            + (" or cpu" if stage == 3 else "; cpu needs stage 3")
        )
    return options


def _is_open(value: Any) -> bool:
    return value == "auto" or (isinstance(value, dict) and value.get("enabled") in (False, "auto"))


def _without_auto(value: Any) -> Any:
    return {name: part for name, part in value.items() if part != "auto"} if isinstance(value, dict) else value
