"""The PPO loop: sample, score, estimate advantages, improve; watched, checkpointed and resumed."""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rlhf.errors import TrainingError
from rlhf.metrics import late_mean, rouge
from rlhf.models import engines
from rlhf.models.draws import generator
from rlhf.models.engines import Engine, training_engine
from rlhf.ppo import maths
from rlhf.ppo.alarms import ADVICE, Alarm, Alarms
from rlhf.ppo.config import PPOTrainerConfig
from rlhf.ppo.learner import Learner, Rollout
from rlhf.ppo.networks import Episode, Networks
from rlhf.progress import Progress, say
from rlhf.rewards.combined import Rewards, Scored, group_measures
from rlhf.training import processes
from rlhf.training.checkpoints import Checkpoints, stopped
from rlhf.training.interruption import Interruption
from rlhf.training.prompts import Prompt

SAME = 1e-6  # standard deviation of rewards that are all the same
EVALUATIONS_PER_RUN = 10
EXAMPLES_PER_EVALUATION = 2
WEIGHTS, STATE = "state.safetensors", "state.json"
# Numbers that keep draws apart that must not be the same.
_SAMPLING, _ORDER, _HELD_OUT = range(3)


@dataclass
class RunState:
    """What a run knows of itself, kept in its checkpoints."""

    update: int = 0
    kl_coeff: float = 0.0
    rewards: "RewardScale" = field(default_factory=lambda: RewardScale())
    bad_rewards: int = 0
    not_judged: int = 0
    stopped_early: bool = False
    history: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)

    @classmethod
    def read(cls, values: dict[str, Any]) -> "RunState":
        history = {tag: [tuple(point) for point in points] for tag, points in values["history"].items()}
        alarms = [Alarm(**alarm) for alarm in values["alarms"]]
        return cls(**{**values, "rewards": RewardScale(**values["rewards"]), "history": history, "alarms": alarms})


@dataclass
class RewardScale:
    """Mean and variance of the rewards that were seen (Chan et al. 1979 put batches together)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean

    def see(self, rewards: torch.Tensor) -> None:
        count, mean = len(rewards), rewards.mean().item()
        total, gap = self.count + count, mean - self.mean
        self.squares += ((rewards - mean) ** 2).sum().item() + gap**2 * self.count * count / total
        self.mean += gap * count / total
        self.count = total

    @property
    def deviation(self) -> float:
        return max(math.sqrt(self.squares / (self.count - 1)), SAME) if self.count > 1 else 1.0

    @property
    def is_known(self) -> bool:
        """Whether rewards were seen that are not all the same."""
        return self.count > 1 and self.deviation > SAME


@dataclass
class Run:
    """Everything around the loop.

    Args:
        prompts: What is trained on.
        held_out: What is only measured on.
        response_length: Tokens of a completion, at most.
        log: Takes an update's number and its scalars.
        samples: File that episodes are appended to, as JSON lines; None writes none.
        scratch: Folder for a checkpoint before it is stored.
    """

    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt]
    response_length: int
    progress: Progress
    log: Callable[[int, dict[str, float]], None] = lambda update, scalars: None
    samples: Path | None = None
    checkpoints: Checkpoints | None = None
    scratch: Path | None = None
    interruption: Interruption = field(default_factory=Interruption)


def train(config: PPOTrainerConfig, networks: Networks, rewards: Rewards, run: Run) -> tuple[RunState, int]:
    """Tune the policy of `networks` in place.

    Returns:
        What the run knows of itself, and the optimiser steps that were skipped.

    Raises:
        ConfigError: The checkpoint is another run's.
        Stopped: SIGTERM came; the last update is in a checkpoint, if any are kept.
        TrainingError: Too many steps or rewards were not finite, or a reward function failed.
    """
    policy = networks.policy
    learner = Learner(config, networks, run.response_length)
    engine = training_engine(
        config.engine,
        policy,
        run.response_length,
        config.temperature,
        config.rollout_tokens,
        networks.dtype,
        networks.is_sharded,
    )
    state = RunState(kl_coeff=config.kl_coeff)
    if run.checkpoints is not None:
        state = _resume(run, learner) or state
        # Whether alarms end it may be decided anew.
        state.stopped_early = config.stop_on_alarm and any(alarm.over_optimised for alarm in state.alarms)
    run.progress.go_on_from(state.update)
    alarms = Alarms(config, len(run.held_out), state.alarms)
    measure = partial(_evaluate, config, learner, engine, rewards, run, state) if run.held_out else None
    eval_every = config.eval_every or max(1, config.train_steps // EVALUATIONS_PER_RUN)
    if measure and not state.update:
        measure(0)
    while state.update < config.train_steps and not state.stopped_early:
        update = state.update + 1
        clock = _Clock()
        prompts = prompt_batch(run.prompts, config.batch_size, update, config.seed, config.group_size)
        with clock.phase("rollout"):
            engine.follow()
            responses = sample(config, engine, prompts, run.response_length, (config.seed, update, _SAMPLING))
            completions = [policy.decode(ids) for ids in responses]
        with clock.phase("score"), networks.precision():
            scored = score(rewards, prompts, completions)
        kept = _finite(config, scored, state, run)
        earned = torch.tensor([scored.total[i] for i in kept])
        scaled = _scaled(config, state.rewards, earned, [responses[i][-1] == policy.eos for i in kept])
        with clock.phase("evaluate"):
            episodes = [Episode(prompts[i].ids, responses[i]) for i in kept]
            rollout = learner.estimate(episodes, scaled, state.kl_coeff, [i // config.group_size for i in kept])
        with clock.phase("optimise"):
            learning_rate = learner.optimizer.param_groups[0]["lr"]
            trained = learner.improve(rollout, update)
        scalars = describe(rollout, scored, kept, policy.eos, state.kl_coeff)
        if config.advantage == "gae":
            explained = maths.explained_variance(rollout.values, rollout.returns, rollout.value_mask)
            scalars["ppo/explained_variance"] = explained.item()
        else:
            scalars |= {f"ppo/{name}": value for name, value in group_measures(scored.total, config.group_size).items()}
        scalars |= {f"ppo/{name}": value for name, value in trained.items() if name != "steps"}
        scalars |= clock.scalars(sum(map(len, responses)), sum(map(len, episodes)))
        loss = trained["policy_loss"] + config.value_coeff * trained["value_loss"]
        scalars |= {"rl_loss": loss, "learning_rate": learning_rate}
        kl = scalars.get("ppo/kl", math.nan)
        if config.kl_target is not None and math.isfinite(kl):  # else its steps were skipped, and it says nothing
            state.kl_coeff = maths.adapted_kl_coeff(
                state.kl_coeff, kl, config.kl_target, config.kl_horizon, len(episodes)
            )
        state.update = update
        _record(state, update, scalars, run)
        is_measured = update % eval_every == 0 or update == config.train_steps
        if is_measured and measure:
            measure(update)
        _heed(alarms, state, config, run)
        last = update == config.train_steps or state.stopped_early
        if last and not is_measured and measure:
            measure(update)  # what an alarm ended is measured at its end, too
        if (is_measured or last) and not measure:
            state.examples += _examples(update, prompts, completions, scored.total, _kl_of(rollout, kept))
        if run.samples is not None and ((update - 1) % config.sample_every == 0 or last):
            _write_samples(run.samples, update, prompts, completions, scored, rollout, kept)
        run.progress.update(update, **_shown(scalars))
        interrupted = processes.any_of(run.interruption.requested)
        wanted = interrupted or last or update % config.checkpoint_every == 0
        if run.checkpoints is not None and (wanted or run.checkpoints.are_due()):
            _save(run, learner, state)
        if interrupted and not last:
            raise stopped(f"update {update} of {config.train_steps}", run.checkpoints)
    return state, learner.skipped_steps


def summary(state: RunState, config: PPOTrainerConfig, skipped_steps: int) -> dict[str, float]:
    """What a run comes to."""
    history = state.history
    metrics = {
        "updates": state.update,
        "planned_updates": config.train_steps,
        "episodes": state.update * config.batch_size,
        "reward_before": history["ppo/reward"][0][1],
        "reward_after": late_mean(history["ppo/reward"]),
        "ended": history["ppo/ended"][-1][1],
        "bad_rewards": state.bad_rewards,
        "not_judged": state.not_judged,
        "skipped_steps": skipped_steps,
        "alarms": len(state.alarms),
    }
    if "ppo/kl" in history:
        metrics["kl"] = late_mean(history["ppo/kl"])
    return metrics


def prompt_batch(
    prompts: Sequence[Prompt], batch_size: int, update: int, seed: int, group_size: int = 1
) -> list[Prompt]:
    """The prompts of an update: every prompt once in random order, then again in another order.

    They depend on the update's number and the seed alone: a run that goes on needs no more to find its place.

    Args:
        group_size: Times that each prompt stands there, one after the other.
    """
    batch_size //= group_size
    first = (update - 1) * batch_size
    orders: dict[int, list[int]] = {}
    chosen = []
    for place in range(first, first + batch_size):
        round_, index = divmod(place, len(prompts))
        if round_ not in orders:
            orders[round_] = torch.randperm(len(prompts), generator=generator(seed, round_, _ORDER)).tolist()
        chosen += [prompts[orders[round_][index]]] * group_size
    return chosen


def sample(
    config: PPOTrainerConfig, engine: Engine, prompts: Sequence[Prompt], response_length: int, seed: tuple[int, ...]
) -> list[list[int]]:
    """One completion a prompt; each process samples its share, and all of them as many."""
    draws = torch.rand(len(prompts), response_length, generator=generator(*seed))
    count = processes.count()
    mine = [(processes.rank() + i * count) % len(prompts) for i in range(-(-len(prompts) // count))]
    sampled = engines.sample(engine, [prompts[i].ids for i in mine], draws[mine], config.temperature)
    return [ids for turn in zip(*processes.gather(sampled), strict=True) for ids in turn][: len(prompts)]


def score(rewards: Rewards, prompts: Sequence[Prompt], completions: Sequence[str]) -> Scored:
    """What the completions earn; each process asks for its share."""
    mine = slice(processes.rank(), None, processes.count())
    ours = prompts[mine]
    scored = rewards.score(
        [prompt.text for prompt in ours],
        [prompt.original for prompt in ours],
        completions[mine],
        {"id": [prompt.id for prompt in ours], "reference": [prompt.reference for prompt in ours]},
    )
    parts = processes.gather(scored)
    return Scored(
        total=processes.interleave([part.total for part in parts]),
        parts={name: processes.interleave([part.parts[name] for part in parts]) for name in scored.parts},
        faults={
            rank + row * len(parts): words for rank, part in enumerate(parts) for row, words in part.faults.items()
        },
    )


def describe(rollout: Rollout, scored: Scored, kept: Sequence[int], eos: int, kl_coeff: float) -> dict[str, float]:
    """Scalars of an update's episodes; the first under the tag of the Vertex pipeline."""
    total = torch.tensor([scored.total[i] for i in kept])
    mask = rollout.mask
    scalars = {
        "reward": total.mean().item(),
        "ppo/reward": total.mean().item(),
        "ppo/reward_std": total.std(correction=0).item(),
        "ppo/bad_rewards": scored.bad,
        "ppo/not_judged": scored.not_judged,
        "ppo/entropy": -maths.masked_mean(rollout.log_probs, mask).item(),
        "ppo/length": mask.sum(1).mean().item(),
        "ppo/ended": sum(episode.response[-1] == eos for episode in rollout.episodes) / len(kept),
    }
    for name, part in scored.parts.items():
        judged = [part[i] for i in kept if part[i] is not None]
        tag = "ppo/score" if name == "reward_model" else f"ppo/reward/{name}"
        if judged:
            scalars[tag] = math.fsum(judged) / len(judged)
    if rollout.kl is not None:
        kl = rollout.log_ratio.sum(1).mean().item()
        scalars |= {"ppo/kl": kl, "ppo/kl_coeff": kl_coeff, "kl_loss": kl_coeff * rollout.kl.sum(1).mean().item()}
    return scalars


def _evaluate(
    config: PPOTrainerConfig,
    learner: Learner,
    engine: Engine,
    rewards: Rewards,
    run: Run,
    state: RunState,
    update: int,
) -> None:
    """Measure on prompts that are not trained on, sampled with the same random numbers every time."""
    engine.follow()
    responses = sample(config, engine, run.held_out, run.response_length, (config.seed, 0, _HELD_OUT))
    policy = learner.networks.policy
    completions = [policy.decode(ids) for ids in responses]
    with learner.networks.precision():
        scored = score(rewards, run.held_out, completions)
    entropy, kl = learner.watch([Episode(p.ids, ids) for p, ids in zip(run.held_out, responses, strict=True)])
    known = [value for value in scored.total if math.isfinite(value)]
    measured = {
        "eval/length": sum(map(len, responses)) / len(responses),
        "eval/ended": sum(ids[-1] == policy.eos for ids in responses) / len(responses),
        "eval/entropy": entropy,
    }
    if kl is not None:
        measured["eval/kl"] = math.fsum(kl) / len(kl)
    if known:
        measured["eval/reward"] = math.fsum(known) / len(known)
    pairs = [(text, p.reference) for text, p in zip(completions, run.held_out, strict=True) if p.reference]
    if pairs:
        measured["eval/rouge_l"] = rouge(*zip(*pairs, strict=True)).mean["rougeL"]
    state.examples += _examples(update, run.held_out, completions, scored.total, dict(enumerate(kl or ())))
    _record(state, update, measured, run)


def _examples(
    update: int, prompts: Sequence[Prompt], completions: Sequence[str], scores: Sequence[float], kl: dict[int, float]
) -> list[dict[str, Any]]:
    """Completions for people to read."""
    return [
        {
            "update": update,
            "id": prompts[i].id,
            "prompt": prompts[i].text,
            "completion": completions[i],
            "score": scores[i] if math.isfinite(scores[i]) else None,
            "kl": kl.get(i),
        }
        for i in range(min(EXAMPLES_PER_EVALUATION, len(prompts)))
    ]


def _kl_of(rollout: Rollout, kept: Sequence[int]) -> dict[int, float]:
    """Nats of each episode, by its place in the update; those that were left out have none."""
    if rollout.log_ratio is None:
        return {}
    return dict(zip(kept, rollout.log_ratio.sum(1).tolist(), strict=True))


def _finite(config: PPOTrainerConfig, scored: Scored, state: RunState, run: Run) -> list[int]:
    """Episodes of the next update whose reward is known."""
    update = state.update + 1
    kept = [i for i, value in enumerate(scored.total) if math.isfinite(value)]
    bad, rows = scored.bad, len(scored.total)
    state.bad_rewards += bad
    state.not_judged += scored.not_judged
    if scored.too_many_bad(config.max_bad_rewards, config.group_size):
        raise TrainingError(
            f"update {update}: {bad} of {rows} episodes have no finite reward ({_culprits(scored)}); more than "
            f"max_bad_rewards ({config.max_bad_rewards:g}) allows: mend what rewards them, or raise it"
        )
    if not kept:
        raise TrainingError(
            f"update {update}: {rows} of {rows} episodes have no finite reward ({_culprits(scored)}), so there is "
            "nothing to learn from; see that a reward function judges one of every update at least"
        )
    if scored.faults and processes.is_main():
        say(
            run.progress.stage,
            f"warning: update {update}: {bad} of {len(scored.total)} episodes left out: {_first(scored)}",
        )
    return kept


def _first(scored: Scored) -> str:
    return scored.faults[min(scored.faults)]


def _culprits(scored: Scored) -> str:
    found = []
    for name, part in scored.parts.items():
        none, odd = part.count(None), sum(value is not None and not math.isfinite(value) for value in part)
        if none or odd:
            found.append(f"{name}: {none} None, {odd} NaN or infinite")
    if scored.faults:
        found.append(_first(scored))
    return "; ".join(found)


def _scaled(config: PPOTrainerConfig, scale: RewardScale, rewards: torch.Tensor, ended: Sequence[bool]) -> torch.Tensor:
    """What an episode earns: its reward, scaled and clipped, and less or another where the completion did not end."""
    if config.reward_scaling == "running" or (config.reward_scaling == "standardise" and not scale.is_known):
        scale.see(rewards)
    if config.reward_scaling != "none":
        rewards = (rewards - scale.mean) / scale.deviation
    if config.reward_clip is not None:
        rewards = rewards.clamp(-config.reward_clip, config.reward_clip)
    cut = ~torch.tensor(ended)
    if config.missing_eos_score is not None:
        return rewards.masked_fill(cut, config.missing_eos_score)
    return rewards - config.missing_eos_penalty * cut


class _Clock:
    """Seconds of an update, by phase."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] += time.perf_counter() - started

    def scalars(self, sampled: int, read: int) -> dict[str, float]:
        """Args: sampled, read: Tokens of the completions, and of prompts and completions."""
        tokens = {"rollout": sampled, "score": read, "evaluate": read, "optimise": read}
        return {f"ppo/seconds/{name}": value for name, value in self.seconds.items()} | {
            f"ppo/tokens_per_second/{name}": tokens[name] / max(value, 1e-9) for name, value in self.seconds.items()
        }


def _record(state: RunState, update: int, scalars: dict[str, float], run: Run) -> None:
    known = {tag: value for tag, value in scalars.items() if math.isfinite(value)}
    run.log(update, known)
    for tag, value in known.items():
        state.history.setdefault(tag, []).append((update, value))


def _heed(alarms: Alarms, state: RunState, config: PPOTrainerConfig, run: Run) -> None:
    for alarm in alarms.look(state.history):
        if processes.is_main():
            say(run.progress.stage, f"warning: update {alarm.update}: {alarm.words} {ADVICE[alarm.kind]}")
        if config.stop_on_alarm and alarm.over_optimised:
            state.stopped_early = True
    state.alarms = alarms.raised


def _shown(scalars: dict[str, float]) -> dict[str, float]:
    return {name: scalars[f"ppo/{name}"] for name in ("reward", "kl", "length") if f"ppo/{name}" in scalars}


def _write_samples(
    path: Path,
    update: int,
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    scored: Scored,
    rollout: Rollout,
    kept: Sequence[int],
) -> None:
    kl = _kl_of(rollout, kept)
    with path.open("a", encoding="utf-8") as file:
        for i, (prompt, text, total) in enumerate(zip(prompts, completions, scored.total, strict=True)):
            row = {
                "update": update,
                "id": prompt.id,
                "completion": text,
                "score": total if math.isfinite(total) else None,
                "kl": kl.get(i),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _save(run: Run, learner: Learner, state: RunState) -> None:
    folder = run.scratch / "checkpoint"
    tensors, rest = learner.state()
    if processes.is_main():
        folder.mkdir(exist_ok=True)
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, folder / WEIGHTS)
        (folder / STATE).write_text(json.dumps({"learner": rest, "run": asdict(state)}), encoding="utf-8")
        if run.samples is not None:
            (folder / "samples.jsonl").write_bytes(run.samples.read_bytes() if run.samples.exists() else b"")
        run.checkpoints.save(folder, state.update)


def _resume(run: Run, learner: Learner) -> RunState | None:
    folder = run.scratch / "resumed"
    if run.checkpoints.fetch_latest(folder) is None:
        return None
    found = json.loads((folder / STATE).read_text(encoding="utf-8"))
    learner.load_state(load_file(folder / WEIGHTS), found["learner"])
    state = RunState.read(found["run"])
    if run.samples is not None:
        run.samples.write_bytes((folder / "samples.jsonl").read_bytes())
    if processes.is_main():
        say(run.progress.stage, f"going on from the checkpoint of update {state.update}")
    for tag, points in state.history.items():
        for update, value in points:
            run.log(update, {tag: value})
    return state
