"""Causal models: TRL's GRPOTrainer or RLOOTrainer, with our engines to sample, our graders, and our runs around it."""

import copy
import inspect
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import add_fused_lm_head

from rlhf.errors import ConfigError
from rlhf.grpo_trainer.config import GRPOTrainerConfig
from rlhf.grpo_trainer.grading import STAGE, Update, refuse_bad, score
from rlhf.metrics import rouge
from rlhf.models import engines
from rlhf.models.adapting import is_adapted, switch_dropout_off
from rlhf.models.draws import generator
from rlhf.models.engines import Engine, training_engine
from rlhf.models.loading import working_dtype
from rlhf.models.policy import Policy
from rlhf.rewards.combined import Rewards
from rlhf.tracking import Tracker
from rlhf.training import processes
from rlhf.training.checkpoints import Checkpoints
from rlhf.training.prompts import Prompt
from rlhf.training.run import EVALUATIONS_PER_RUN, Evaluation, fit, training_arguments

REFERENCE = "ref"  # TRL's name of the adapter that KL is measured from
SHOWN = 2  # held-out prompts whose completions are shown through training
_SAID = "said"  # in the Trainer's own log, which its checkpoints hold
_SAMPLING, _HELD_OUT = range(2)  # keep draws apart that must not be the same


@dataclass
class Tuned:
    """What a run leaves besides the weights."""

    updates: int
    skipped_steps: int
    history: dict[str, list[tuple[int, float]]]
    samples: list[dict[str, Any]] = field(default_factory=list)
    """`update, id, completion, score` of episodes through training."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """The same of held-out prompts, with `prompt`."""
    bad_grades: int = 0
    not_judged: int = 0


class _Logged:
    """With KL as we log it: nats a completion, not a token."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        seen = self._metrics["train"]
        if seen.get("kl"):
            kl = statistics.fmean(seen["kl"]) * statistics.fmean(seen["completions/mean_length"])
            logs |= {"kl_completion": kl, "kl_loss": self.beta * kl}
        super().log(logs, start_time)


class _GRPO(_Logged, GRPOTrainer):
    pass


class _RLOO(_Logged, RLOOTrainer):
    """With `rollout_func`, which TRL has in GRPOTrainer alone."""

    def __init__(self, *args: Any, rollout_func: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._rollout, self._completions = rollout_func, []

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        rollout = self._rollout(prompts, self)
        self._completions = rollout["completion_ids"]
        return rollout["prompt_ids"], None, {}

    def _generate_single_turn(self, *_: Any) -> list[list[int]]:
        return self._completions


_BY_ALGORITHM = {"grpo": (_GRPO, GRPOConfig), "rloo": (_RLOO, RLOOConfig)}
_Trainer = _GRPO | _RLOO


class Sampler:
    """Samples from the policy as it is, the same on any number of processes and after any restart."""

    def __init__(self, config: GRPOTrainerConfig, policy: Policy):
        self.config, self.policy = config, policy
        self.length = policy.template.target_sequence_length
        dtype = working_dtype("auto", policy.model.device)
        self.engine: Engine = training_engine(
            config.engine, policy, self.length, config.temperature, config.rollout_tokens, dtype
        )

    def __call__(self, prompts: Sequence[Prompt], seed: tuple[int, ...], rows: slice, of: int) -> list[list[int]]:
        """Completions of this process's prompts.

        Args:
            rows: Which they are of all processes' prompts, of which there are `of`.
        """
        draws = torch.rand(of, self.length, generator=generator(*seed))[rows]
        self.engine.follow()
        try:
            return engines.sample(self.engine, [prompt.ids for prompt in prompts], draws, self.config.temperature)
        finally:
            self.policy.model.train()  # TRL reads from this whether it trains


def tune(
    policy: Policy,
    training: Sequence[Prompt],
    held_out: Sequence[Prompt],
    rewards: Rewards,
    config: GRPOTrainerConfig,
    tracker: Tracker,
    checkpoints: Checkpoints | None,
    folder: str,
) -> Tuned:
    """Tune a causal policy in place.

    Raises:
        ConfigError: The batch cannot be shared by the processes, or the checkpoint is another run's.
        Stopped: SIGTERM came.
        TrainingError: Too many steps or grades were not finite, or a grader failed.
    """
    share = _share(config)
    sampler = Sampler(config, policy)
    tags: dict[str, str] = {
        "reward": "reward",
        "kl_loss": "kl_loss",
        "loss": "rl_loss",
        "learning_rate": "learning_rate",
        "kl_completion": "grpo/kl",
        "entropy": "grpo/entropy",
        "grad_norm": "grpo/gradient_norm",
        "step_time": "grpo/seconds",
    }
    names = ["grade", "length", "ended", "bad_grades", "not_judged", "spread", "no_signal"]
    parts = [*(["reward_model"] if rewards.reward_model is not None else []), *rewards.functions]
    names += [f"grade/{name}" for name in parts]
    tags |= {f"own/{name}": f"grpo/{name}" for name in names}

    def sample(places: list[str], trainer: _Trainer) -> dict[str, Any]:
        prompts = [training[int(place)] for place in places]
        mine = slice(processes.rank() * share, (processes.rank() + 1) * share)
        seed = (config.seed, trainer.state.global_step, _SAMPLING)
        completions = sampler(prompts, seed, mine, config.batch_size)
        return {"prompt_ids": [prompt.ids for prompt in prompts], "completion_ids": completions, "logprobs": None}

    def grade(
        prompts: list[str], completion_ids: list[list[int]], log_metric: Any, trainer_state: Any, **_: Any
    ) -> list[float | None]:
        asked = [training[int(place)] for place in prompts]
        said = [policy.decode(ids) for ids in completion_ids]
        scored = score(rewards, asked, said)
        ended = [ids[-1] == policy.eos for ids in completion_ids]
        update = Update.of(scored, ended, list(map(len, completion_ids)))
        number = trainer_state.global_step + 1
        refuse_bad(config, update, number)
        for name, value in update.measures(config.group_size).items():
            log_metric(f"own/{name}", value)
        if (number - 1) % config.sample_every == 0 or number == config.train_steps:
            _keep_samples(trainer, number, asked, said, scored.total)
        left_out = {"bad_grades": update.scored.bad, "not_judged": update.scored.not_judged}
        if any(left_out.values()):
            trainer.state.log_history.append({"step": number, **left_out})
        return [
            total - config.missing_eos_penalty * (not end) if math.isfinite(total) else None
            for total, end in zip(scored.total, ended, strict=True)
        ]

    grade.__name__ = "grader"
    trainer = _make_trainer(policy, training, config, share, grade, sample, folder)
    before: dict[str, float] = {}
    said: dict[int, list[dict[str, Any]]] = {}
    evaluation = None
    if held_out:
        before, said[0] = _measure(sampler, held_out, rewards, 0)
        tracker.scalars(0, before)

        def measure() -> dict[str, float]:
            measured, shown = _measure(sampler, held_out, rewards, trainer.state.global_step)
            trainer.state.log_history.append({"step": trainer.state.global_step, _SAID: shown})
            return measured

        evaluation = Evaluation(measure, config.eval_every or max(1, config.train_steps // EVALUATIONS_PER_RUN))
    state = fit(
        trainer, config, stage=STAGE, tags=tags, tracker=tracker, checkpoints=checkpoints, evaluation=evaluation
    )
    policy.model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if is_adapted(policy.model) and REFERENCE in policy.model.peft_config:
        policy.model.delete_adapter(REFERENCE)
    for tag, value in before.items():
        state.history.setdefault(tag, []).insert(0, (0, value))
    log = trainer.state.log_history
    return Tuned(
        updates=state.step,
        skipped_steps=state.skipped_steps,
        history=state.history,
        samples=[row for entry in log for row in entry.get("samples", ())],
        examples=[*said.get(0, ()), *(row for entry in log for row in entry.get(_SAID, ()))],
        bad_grades=sum(entry.get("bad_grades", 0) for entry in log),
        not_judged=sum(entry.get("not_judged", 0) for entry in log),
    )


def _share(config: GRPOTrainerConfig) -> int:
    """Completions of one process in an update."""
    share, rest = divmod(config.batch_size, processes.count())
    if rest or share % config.group_size:
        raise ConfigError(
            f"batch_size: found {config.batch_size}, expected a multiple of group_size ({config.group_size}) times the "
            f"{processes.count()} processes, so that each has whole groups"
        )
    if share % (config.microbatch_size or share):
        raise ConfigError(
            f"microbatch_size: found {config.microbatch_size}, expected a divisor of the {share} completions that each "
            "process gets of a batch"
        )
    return share


def _make_trainer(
    policy: Policy,
    training: Sequence[Prompt],
    config: GRPOTrainerConfig,
    share: int,
    grade: Any,
    sample: Any,
    folder: str,
) -> _Trainer:
    groups = config.batch_size // config.group_size
    order = _order(len(training), groups * config.train_steps, config.seed)
    adapted = is_adapted(policy.model)
    microbatch = config.microbatch_size or share
    kind, options = _BY_ALGORITHM[config.algorithm]
    arguments = training_arguments(
        options,
        config,
        policy.model,
        config.train_steps,
        folder,
        per_device_train_batch_size=microbatch,
        gradient_accumulation_steps=share // microbatch,
        steps_per_generation=share // microbatch,  # one optimiser step for each batch of completions
        num_generations=config.group_size,
        max_completion_length=policy.template.target_sequence_length,
        temperature=config.temperature,
        epsilon=config.clip_range,
        beta=config.kl_coeff if adapted else 0.0,
        shuffle_dataset=False,  # the order is decided here
    )
    switch_dropout_off(policy.model)
    count_positions_by_mask(policy.model)
    trainable = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    # TRL would load the reference from where the policy came from, without an adapter that was merged into it.
    reference = copy.deepcopy(policy.model) if config.kl_coeff and not adapted else None
    trainer = kind(
        model=policy.model,
        reward_funcs=grade,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": [str(place) for place in order]}),
        processing_class=policy.tokenizer,
        rollout_func=sample,
    )
    # It casts an adapter on a model in 4 bits to bfloat16, which AdamW's small updates do not move.
    for parameter in trainable:
        parameter.data = parameter.data.float()
    if reference is not None:
        reference.requires_grad_(False)
        add_fused_lm_head(reference, temperature=config.temperature)
        trainer.ref_model = trainer.accelerator.prepare_model(reference, evaluation_mode=True)
        trainer.beta = config.kl_coeff
    return trainer


def count_positions_by_mask(model: nn.Module) -> None:
    """Let a causal model, or the one in a PEFT model, count positions from each row's first token.

    TRL pads prompts on the left and names no positions. Models that learned a vector for each, such as GPT-2, would
    begin to count at the padding.
    """
    backbone = (model.get_base_model() if is_adapted(model) else model).base_model
    if "position_ids" in inspect.signature(backbone.forward).parameters:
        backbone.register_forward_pre_hook(_name_positions, with_kwargs=True)


def _name_positions(
    backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    mask = kwargs.get("attention_mask")
    if mask is not None and kwargs.get("position_ids") is None and kwargs.get("past_key_values") is None:
        kwargs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    return args, kwargs


def _order(prompts: int, taken: int, seed: int) -> list[int]:
    """Which prompt comes when: every one once in random order, then again in another order."""
    order: list[int] = []
    round_ = 0
    while len(order) < taken:
        order += torch.randperm(prompts, generator=generator(seed, round_)).tolist()
        round_ += 1
    return order[:taken]


def _measure(
    sampler: Sampler, held_out: Sequence[Prompt], rewards: Rewards, update: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measure on prompts that are not trained on, sampled with the same random numbers every time."""
    rows = slice(processes.rank(), None, processes.count())
    mine = held_out[rows]
    completions = sampler(mine, (sampler.config.seed, 0, _HELD_OUT), rows, len(held_out)) if mine else []
    said = [sampler.policy.decode(ids) for ids in completions]
    totals = score(rewards, mine, said).total if mine else []
    each = processes.interleave(processes.gather(list(zip(completions, said, totals, strict=True))))
    known = [total for _, _, total in each if math.isfinite(total)]
    measured = {
        "eval/length": sum(len(ids) for ids, _, _ in each) / len(each),
        "eval/ended": sum(ids[-1] == sampler.policy.eos for ids, _, _ in each) / len(each),
    }
    if known:
        measured["eval/grade"] = math.fsum(known) / len(known)
        if len(known) > 1:
            measured["eval/grade_error"] = statistics.stdev(known) / math.sqrt(len(known))
    pairs = [(text, p.reference) for (_, text, _), p in zip(each, held_out, strict=True) if p.reference]
    if pairs:
        measured["eval/rouge_l"] = rouge(*zip(*pairs, strict=True), processes=1).mean["rougeL"]
    shown = [
        {"update": update, "id": p.id, "prompt": p.text, "completion": text, "score": _finite(total)}
        for p, (_, text, total) in list(zip(held_out, each, strict=True))[:SHOWN]
    ]
    return measured, shown


def _keep_samples(
    trainer: _Trainer, update: int, prompts: Sequence[Prompt], said: Sequence[str], totals: Sequence[float]
) -> None:
    rows = [
        {"update": update, "id": prompt.id, "completion": text, "score": _finite(total)}
        for prompt, text, total in zip(prompts, said, totals, strict=True)
    ]
    together = [row for part in processes.gather(rows) for row in part]
    trainer.state.log_history.append({"step": update, "samples": together})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of JSON lines; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line] if path.exists() else []
