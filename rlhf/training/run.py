"""One training run with a Hugging Face Trainer: logged, evaluated, checkpointed, resumed, and stopped in time."""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from rlhf.errors import TrainingError
from rlhf.models.loading import device, working_dtype
from rlhf.progress import Progress, say
from rlhf.tracking import Tracker
from rlhf.training import processes
from rlhf.training.checkpoints import Checkpoints, raise_if_full, stopped
from rlhf.training.config import TrainerConfig
from rlhf.training.interruption import Interruption, heed_sigterm

LOGS_PER_RUN = 50
EVALUATIONS_PER_RUN = 10
BEST_WEIGHTS = "best.safetensors"
STATE = "run.json"

History = dict[str, list[tuple[int, float]]]


@dataclass
class Evaluation:
    """What is measured while training, and what is made of it.

    Args:
        measure: Returns the measures by TensorBoard tag. Called on every process, and must return the same on each.
        every: Optimiser steps between two; there is one more after the last step.
        key: Of measures that were taken, what is to be as high as possible; its weights are kept. None keeps the last.
        fell: Whether measures (second) are worse than the best so far (first) by more than noise.
        patience: So many evaluations in a row that `fell` end the run; 0 never does.
    """

    measure: Callable[[], dict[str, float]]
    every: int
    key: Callable[[dict[str, float]], Any] | None = None
    fell: Callable[[dict[str, float], dict[str, float]], bool] = lambda best, now: False
    patience: int = 0


@dataclass
class RunState:
    """What a run knows of itself, kept in its checkpoints."""

    history: History = field(default_factory=dict)
    step: int = 0
    skipped_steps: int = 0
    best_step: int = 0
    best: dict[str, float] | None = None
    falls: int = 0
    stopped_early: bool = False

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        for tag, value in scalars.items():
            self.history.setdefault(tag, []).append((step, value))


def training_arguments(
    kind: type[TrainingArguments], config: TrainerConfig, model: nn.Module, steps: int, folder: str, **extra: Any
) -> Any:
    """Arguments of a Trainer subclass from the options that trainers share.

    Args:
        model: What is trained.
        steps: Optimiser steps of the whole run.
        folder: Scratch folder of the trainer.
    """
    on_gpu = torch.cuda.is_available()
    arguments = kind(
        output_dir=folder,
        max_steps=steps,
        learning_rate=config.peak_learning_rate,
        lr_scheduler_type=config.learning_rate_schedule,
        warmup_steps=config.warmup_steps,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_gradient_norm,
        seed=config.seed,
        bf16=working_dtype("auto", device()) is torch.bfloat16,
        activation_checkpointing=on_gpu and model.supports_gradient_checkpointing,
        gradient_checkpointing=None,  # its deprecated name, which TRL sets
        use_cpu=not on_gpu,
        ddp_backend="gloo" if processes.count() > 1 and not on_gpu else None,
        ddp_find_unused_parameters=False,
        ddp_timeout=int(processes.PATIENCE.total_seconds()),
        dataloader_pin_memory=on_gpu,
        logging_steps=max(1, steps // LOGS_PER_RUN),
        logging_nan_inf_filter=False,  # it would log such a step's loss as 0; see _Watcher.on_log
        save_strategy="steps" if config.checkpoint_dir else "no",
        save_steps=config.checkpoint_every,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        **extra,
    )
    if arguments.n_gpu > 1:  # several processes are asked for, never several devices of one
        arguments._n_gpu = 1
    return arguments


def fit(
    trainer: Trainer,
    config: TrainerConfig,
    *,
    stage: str,
    tags: Mapping[str, str],
    tracker: Tracker,
    checkpoints: Checkpoints | None,
    evaluation: Evaluation | None = None,
) -> RunState:
    """Train to the end, from the newest checkpoint where there is one; the model ends with the weights to keep.

    Args:
        trainer: Made with `training_arguments`.
        stage: For progress lines.
        tags: The Trainer's log names, and the TensorBoard tags they get.
        checkpoints: Where `config.checkpoint_dir` says; None keeps none.

    Raises:
        ConfigError: The checkpoint is another run's.
        Stopped: SIGTERM came; the last step is in a checkpoint, if any are kept.
        TrainingError: Too many steps were not finite, or there is no room for checkpoints.
    """
    folder = Path(trainer.args.output_dir)
    state, resumed = RunState(), None
    if checkpoints is not None:
        resumed = folder / "resumed"
        if checkpoints.fetch_latest(resumed) is None:
            resumed = None
        else:
            state = _read_state(resumed / STATE)
            if (resumed / BEST_WEIGHTS).exists():
                (resumed / BEST_WEIGHTS).replace(folder / BEST_WEIGHTS)
            if processes.is_main():
                say(stage, f"going on from the checkpoint of step {state.step}")
            for tag, points in state.history.items():
                for step, value in points:
                    tracker.scalars(step, {tag: value})
    trainer.remove_callback(PrinterCallback)
    with heed_sigterm() as interruption, Progress(stage, trainer.args.max_steps, shown=processes.is_main()) as progress:
        watcher = _Watcher(trainer, config, state, tags, tracker, progress, checkpoints, evaluation, interruption)
        trainer.add_callback(watcher)
        progress.go_on_from(state.step)
        if not state.stopped_early:  # else the weights to keep, which is all that is needed, are at hand
            try:
                trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
            except Exception as error:
                raise_if_full(error, f"checkpoint in {folder}")
                raise
    if not state.stopped_early and state.step < trainer.args.max_steps:
        raise stopped(f"step {state.step} of {trainer.args.max_steps}", checkpoints)
    if (folder / BEST_WEIGHTS).exists():
        _load_weights(trainer.model, folder / BEST_WEIGHTS)
    return state


class _Watcher(TrainerCallback):
    """Everything that happens around a Trainer's steps."""

    def __init__(
        self,
        trainer: Trainer,
        config: TrainerConfig,
        state: RunState,
        tags: Mapping[str, str],
        tracker: Tracker,
        progress: Progress,
        checkpoints: Checkpoints | None,
        evaluation: Evaluation | None,
        interruption: Interruption,
    ):
        self.trainer, self.config, self.run, self.tags = trainer, config, state, tags
        self.tracker, self.progress, self.checkpoints = tracker, progress, checkpoints
        self.evaluation, self.interruption = evaluation, interruption
        self._latest: dict[str, float] = {}
        self._logged_step, self._skipped_since = state.step, 0
        self._training_step, trainer.training_step = trainer.training_step, self._finite_step

    def _finite_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        # The Trainer sums losses up between logs, and would never be rid of one that is not finite.
        return torch.nan_to_num(self._training_step(*args, **kwargs), nan=0.0, posinf=0.0, neginf=0.0)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if math.isfinite(torch.nn.utils.get_total_norm(gradients)):
            return
        model.zero_grad(set_to_none=True)  # AdamW leaves a weight without gradient, and its moments, as they are
        self.run.skipped_steps += 1
        self._skipped_since += 1
        if self.run.skipped_steps > self.config.max_skipped_steps:
            raise TrainingError(
                f"{self.run.skipped_steps} optimiser steps had a loss or gradient that is not finite, the last one at "
                f"step {state.global_step + 1}: more than max_skipped_steps ({self.config.max_skipped_steps}) allows; "
                f"lower the learning rate (its peak is {args.learning_rate:.3g}), or look for broken weights in the "
                "base model"
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = dict(logs or {})
        if "loss" in logs:  # the mean over the steps since the last log, of which those that were skipped count as 0
            steps = state.global_step - self._logged_step
            counted = steps - self._skipped_since
            logs["loss"] = logs["loss"] * steps / counted if counted else math.nan
            self._logged_step, self._skipped_since = state.global_step, 0
        self._record(state.global_step, {tag: logs[name] for name, tag in self.tags.items() if name in logs})

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.run.step = state.global_step
        last = state.global_step >= args.max_steps
        if self.evaluation and (last or state.global_step % self.evaluation.every == 0):
            self._evaluate(state.global_step, control)
        self.progress.update(state.global_step, **self._latest)
        if processes.any_of(self.interruption.requested):
            control.should_training_stop = True
        if self.checkpoints and (last or control.should_training_stop or self.checkpoints.are_due()):
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        if self.checkpoints is None:
            return
        folder = Path(args.output_dir)
        written = folder / f"checkpoint-{state.global_step}"
        # Every process has random numbers of its own, and has written them to its own folder.
        random_states = processes.gather({path.name: path.read_bytes() for path in written.glob("rng_state*.pth")})
        if not processes.is_main():
            return
        for states in random_states:
            for name, content in states.items():
                (written / name).write_bytes(content)
        (written / STATE).write_text(json.dumps(asdict(self.run)), encoding="utf-8")
        if (folder / BEST_WEIGHTS).exists():
            os.link(folder / BEST_WEIGHTS, written / BEST_WEIGHTS)
        for unread in ("training_args.bin", "README.md"):
            (written / unread).unlink(missing_ok=True)
        self.checkpoints.save(written, state.global_step)
        shutil.rmtree(written)

    def _evaluate(self, step: int, control: Any) -> None:
        measured = self.evaluation.measure()
        self._record(step, measured)
        if self.evaluation.key is None:
            return
        comparable = all(map(math.isfinite, measured.values()))
        if comparable and (self.run.best is None or self.evaluation.key(measured) > self.evaluation.key(self.run.best)):
            self.run.best, self.run.best_step = measured, step
            if processes.is_main():
                _save_weights(self.trainer.model, Path(self.trainer.args.output_dir) / BEST_WEIGHTS)
        fell = self.run.best is not None and self.evaluation.fell(self.run.best, measured)
        self.run.falls = self.run.falls + 1 if fell else 0
        if 0 < self.evaluation.patience <= self.run.falls:
            self.run.stopped_early = True
            control.should_training_stop = True

    def _record(self, step: int, scalars: Mapping[str, float]) -> None:
        scalars = {tag: value for tag, value in scalars.items() if math.isfinite(value)}
        self.tracker.scalars(step, dict(scalars))
        self.run.log(step, scalars)
        self._latest |= {tag.rpartition("/")[2]: value for tag, value in scalars.items() if "learning_rate" not in tag}


def _save_weights(model: torch.nn.Module, path: Path) -> None:
    """The trained weights, in one rename."""
    weights = {
        name: value.detach().cpu().contiguous() for name, value in model.named_parameters() if value.requires_grad
    }
    unfinished = path.with_suffix(".unfinished")
    save_file(weights, unfinished)
    unfinished.replace(path)


def _load_weights(model: torch.nn.Module, path: Path) -> None:
    weights = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights.pop(name))


def _read_state(path: Path) -> RunState:
    state = RunState(**json.loads(path.read_text(encoding="utf-8")))
    state.history = {tag: [tuple(point) for point in points] for tag, points in state.history.items()}
    return state
