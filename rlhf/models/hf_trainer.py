"""What the stages that train with a Hugging Face Trainer share: its arguments, and its log as progress and scalars."""

import math
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from rlhf.errors import TrainingError
from rlhf.progress import Progress
from rlhf.tracking import Tracker

LOGS_PER_RUN = 50


def training_arguments(kind: type[TrainingArguments], config: Any, steps: int, folder: str, **extra: Any) -> Any:
    """Arguments of a Trainer subclass from the fields that the SFT and reward trainers' configs share.

    Args:
        steps: Optimiser steps of the whole run.
        folder: Scratch folder of the trainer.
    """
    on_gpu = torch.cuda.is_available()
    return kind(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate * getattr(config, "learning_rate_multiplier", 1.0),
        lr_scheduler_type=config.learning_rate_schedule,
        warmup_steps=config.warmup_steps,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_gradient_norm,
        seed=config.seed,
        bf16=on_gpu,
        activation_checkpointing=on_gpu,
        gradient_checkpointing=None,  # its deprecated name, which TRL sets
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        logging_steps=max(1, steps // LOGS_PER_RUN),
        logging_nan_inf_filter=False,  # else a loss that is not finite is logged as 0
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **extra,
    )


class LogCallback(TrainerCallback):
    """Shows a Trainer's progress, writes its scalars, and ends a run whose loss is not finite.

    Args:
        tags: The Trainer's log names, and the TensorBoard tags they get.
    """

    def __init__(self, progress: Progress, tracker: Tracker, tags: dict[str, str]):
        self.progress, self.tracker, self.tags = progress, tracker, tags
        self.history: dict[str, list[tuple[int, float]]] = {tag: [] for tag in tags.values()}
        self._latest: dict[str, float] = {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = logs or {}
        if not math.isfinite(logs.get("loss", 0.0)):
            raise TrainingError(
                f"the loss is {logs['loss']} at step {state.global_step}; lower the learning rate "
                f"(now at {logs.get('learning_rate', args.learning_rate):.3g})"
            )
        scalars = {tag: logs[name] for name, tag in self.tags.items() if name in logs}
        self.tracker.scalars(state.global_step, scalars)
        for tag, value in scalars.items():
            self.history[tag].append((state.global_step, value))
        self._latest |= {name: logs[name] for name in ("loss", "accuracy") if name in logs}

    def on_step_end(self, args, state, control, **kwargs):
        self.progress.update(state.global_step, **self._latest)
