"""Seconds of training until the demo's summaries have gained half of what they can gain, by their gold score."""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer

from benchmarks.measured import ROOT, measure
from benchmarks.ppo.runs import OURS, SCRIPTS, peer_python
from examples.demo.gold import WINDOW
from examples.demo.posts import gold_score, load_gold
from pipelines.params import read as read_parameters
from rlhf.data.store import read_dataset
from rlhf.ppo_trainer.config import PPOTrainerConfig

DEMO = ROOT / "build" / "demo"  # where `make demo` leaves it
PEER = "trl_1_12"
RATES = (1e-4, 3e-4, 1e-3)
_PEER_MICRO_BATCH = 64  # half an update's episodes: as large as fits its batches of whole texts

Curve = list[tuple[float, float]]  # seconds since training began, smoothed gold score of the update that ended then


@dataclass(frozen=True)
class Demo:
    """A finished `make demo` of the Llama: what its PPO started from, and the facts behind each prompt."""

    policy: Path
    reward_model: Path
    prompts: list[str]
    facts: list[dict[str, str]]
    template: dict[str, Any]
    options: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> "Demo":
        """Raises SystemExit: no Llama went through the demo in `folder`."""
        if not _runs(folder) and folder == DEMO:
            subprocess.run([sys.executable, "-m", "examples.demo"], cwd=ROOT, check=True)
        runs = _runs(folder)
        if not runs:
            raise SystemExit(f"{folder}: found no run of the demo's Llama; run `make demo`, or name one with --demo")
        policy = runs[-1] / "sft-trainer" / "policy"
        rows, _, template = read_dataset(runs[-1] / "data-validation" / "prompts", "prompts")
        tokenizer = Tokenizer.from_file(str(policy / "tokenizer.json"))
        gold = load_gold(folder / "gold")
        values = read_parameters(ROOT / "examples" / "demo" / "llama.yaml")
        return cls(
            policy,
            runs[-1] / "reward-trainer" / "reward_model",
            [template.fit(row["prompt"], lambda text: len(tokenizer.encode(text).ids))[0] for row in rows],
            [gold[row["id"]]["facts"] for row in rows],
            template.model_dump(),
            values["ppo"]
            | {"train_steps": values["reinforcement_learning_train_steps"], "kl_coeff": values["kl_coeff"]},
        )

    def curve(self, result: dict[str, Any]) -> Curve:
        """Of a run: at each update's end, the mean gold score of the last updates' completions."""
        means = [
            statistics.fmean(gold_score(self.facts[prompt], text) for prompt, text in completions)
            for completions in result["completions"]
        ]
        smooth = [statistics.fmean(means[max(0, i + 1 - WINDOW) : i + 1]) for i in range(len(means))]
        return list(zip(result["ends"], smooth, strict=False))


def _runs(folder: Path) -> list[Path]:
    """Folders of the runs that have a reward model, the newest last."""
    configs = sorted(folder.glob("run/*/reward-trainer/reward_model/config.json"))
    return [path.parents[2] for path in configs if json.loads(path.read_text())["model_type"] == "llama"]


def compare(demo: Demo, peers: Path, times: int) -> dict[str, Any]:
    """Both systems in turn: the peer at every learning rate first, then at the best of them."""
    python = peer_python(PEER, peers)
    curves: dict[str, list[Curve]] = {"ours": [], **{f"{rate:g}": [] for rate in RATES}}
    with TemporaryDirectory() as name:
        for seed in range(times):
            curves["ours"].append(demo.curve(measure([sys.executable, OURS], _ours(demo, seed), Path(name))))
            _say("ours", curves)
            for rate in RATES if seed == 0 else (float(_best_rate(curves)),):
                command = [python, SCRIPTS / f"{PEER}.py"]
                curves[f"{rate:g}"].append(demo.curve(measure(command, _peer(demo, seed, rate), Path(name))))
                _say(f"{rate:g}", curves)
    return curves


def summary(curves: dict[str, list[Curve]]) -> dict[str, Any]:
    """What the runs come to; a run that never gets there counts with all its seconds, and is told."""
    start, best, level = _goal(curves)
    rate = _best_rate(curves)
    seconds = {
        name: [_seconds_until(curve, level) or curve[-1][0] for curve in found] for name, found in curves.items()
    }
    return {
        "time_to_quality": statistics.median(seconds[rate]) / statistics.median(seconds["ours"]),
        "gold_start": start,
        "gold_best": best,
        "gold_half_way": level,
        "peer_learning_rate": float(rate),
        "seconds_to_half_way": seconds,
        "never_got_there": {
            name: sum(_seconds_until(curve, level) is None for curve in found) for name, found in curves.items()
        },
        "curves": curves,
    }


def _goal(curves: dict[str, list[Curve]]) -> tuple[float, float, float]:
    """Gold score at the start, the best of all runs, and what lies half way."""
    runs = [curve for found in curves.values() for curve in found]
    start = statistics.fmean(curve[0][1] for curve in runs)
    best = max(gold for curve in runs for _, gold in curve)
    return start, best, (start + best) / 2


def _best_rate(curves: dict[str, list[Curve]]) -> str:
    """The peer's learning rate that was soonest there, in its first run."""
    level = _goal(curves)[2]
    return min((f"{rate:g}" for rate in RATES), key=lambda rate: _seconds_until(curves[rate][0], level) or float("inf"))


def _seconds_until(curve: Curve, level: float) -> float | None:
    return next((seconds for seconds, gold in curve if gold >= level), None)


def _say(name: str, curves: dict[str, list[Curve]]) -> None:
    curve = curves[name][-1]
    print(f"{name}: {curve[-1][0]:.0f} s, gold {curve[0][1]:.2f} to {curve[-1][1]:.2f}", flush=True)


def _ours(demo: Demo, seed: int) -> dict[str, Any]:
    return {
        "policy": str(demo.policy),
        "reward": str(demo.reward_model),
        "prompts": demo.prompts,
        "template": demo.template,
        "options": demo.options | {"seed": seed},
    }


def _peer(demo: Demo, seed: int, rate: float) -> dict[str, Any]:
    """The demo's options as far as the peer has them.

    It has no minibatches, no learning rate for the critic alone, and subtracts from what did not end instead of
    replacing its score; the scores are standardised for it, as the demo does.
    """
    options = PPOTrainerConfig.parse(demo.options)
    return {
        "policy": str(demo.policy),
        "reward": str(demo.reward_model),
        "prompts": demo.prompts,
        "response": demo.template["target_sequence_length"],
        "batch": options.batch_size,
        "micro_batch": min(_PEER_MICRO_BATCH, options.batch_size),
        "epochs": options.epochs,
        "updates": options.train_steps,
        "temperature": options.temperature,
        "learning_rate": rate,
        "kl_coeff": options.kl_coeff,
        "value_coeff": options.value_coeff,
        "missing_eos_penalty": abs(options.missing_eos_score or options.missing_eos_penalty),
        "seed": seed,
        "standardise": options.reward_scaling == "standardise",
        "completions": True,
        "lora": None,
        "gpu": False,
    }
