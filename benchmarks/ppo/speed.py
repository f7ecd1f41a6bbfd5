"""Episodes a second and peak memory on each workload, a system after the other, again and again."""

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measured import measure
from benchmarks.ppo.runs import COUNTED, OURS, SCRIPTS, peer_python
from benchmarks.ppo.workloads import WORKLOADS, Workload

_CRITIC = {"same": "own", "default": "shared"}
# Huang et al. 2024, but a learning rate so small that lengths stay as they were made.
_LEARNING_RATE, _KL, _VALUE = 3e-6, 0.05, 0.1
_RANK, _ALPHA = 16, 32.0  # of an adapter on all linear layers
_COUNTED_UPDATES = 2  # counts do not vary as times do, but prompts and answers differ in length


def compare(workload: Workload, peers: Path, updates: int, times: int) -> dict[str, list[dict[str, Any]]]:
    """Runs of each system in turn: {system: [result, ...]}, the peer's under "peer"."""
    runs: dict[str, list[dict[str, Any]]] = {"peer": [], **{system: [] for system in workload.systems}}
    with _prepared(workload, peers, updates) as run:
        for seed in range(times):
            for system, found in runs.items():
                found.append(summary(run(system, seed), workload.batch))
                print(workload.name, system, found[-1], flush=True)
    return runs


def count(workload: Workload, peers: Path) -> dict[str, float]:
    """Floating-point operations of an update's matrix products: {system: operations}, the peer's under "peer"."""
    with _prepared(workload, peers, _COUNTED_UPDATES) as run:
        return {
            system: run(system, 0, counted=True)["operations"] / _COUNTED_UPDATES
            for system in ("peer", *workload.systems)
        }


@contextmanager
def _prepared(workload: Workload, peers: Path, updates: int) -> Iterator[Callable[..., dict[str, Any]]]:
    """Make the models; what is given runs a system with a seed, and counts its operations where that is wanted."""
    python = peer_python(workload.peer, peers)
    with TemporaryDirectory() as name:
        folder = Path(name)
        measure([sys.executable, "-m", "benchmarks.ppo.models"], {"workload": asdict(workload), "folder": name}, folder)
        job = {
            "policy": str(folder / "policy"),
            "reward": str(folder / "reward"),
            "prompts": workload.prompts(updates * workload.batch),
        }

        def run(system: str, seed: int, counted: bool = False) -> dict[str, Any]:
            counter = [COUNTED] if counted else []
            if system == "peer":
                command = [python, *counter, SCRIPTS / f"{workload.peer}.py"]
                return measure(command, job | _peer(workload, updates, seed), folder)
            command = [sys.executable, *counter, OURS]
            return measure(command, job | _ours(workload, updates, system, seed), folder)

        yield run


def summary(result: dict[str, Any], batch: int) -> dict[str, Any]:
    """Of one run: the first update is left out, in which everything is done for the first time."""
    seconds = statistics.median(end - start for start, end in pairwise(result["ends"]))
    return {
        "episodes_per_second": batch / seconds,
        "seconds_an_update": seconds,
        "mean_response_tokens": statistics.fmean(result["lengths"]),
        "peak_rss_gb": result["peak_rss"] / 1e9,
        "peak_gpu_gb": result["peak_gpu"] / 1e9,
        "seconds_by_phase": {
            phase: statistics.median(seconds[1:]) for phase, seconds in result.get("phases", {}).items()
        },
        "threads": result["threads"],
        "system": result["system"],
    }


def ratios(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, float]:
    """Ours over the peer's, by medians; the memory of a system is the worst over TRL 1.12's workloads on a CPU."""
    found, memory, of_gpu = {}, {}, {}
    for workload, by_system in runs.items():
        on_gpu = WORKLOADS[workload].gpu
        measures = ("episodes_per_second", "peak_gpu_gb" if on_gpu else "peak_rss_gb")
        median = {
            system: {key: statistics.median(run[key] for run in measured) for key in measures}
            for system, measured in by_system.items()
        }
        for system in by_system.keys() - {"peer"}:
            key = _key(system, workload)
            found[key], used = (median[system][measure] / median["peer"][measure] for measure in measures)
            (of_gpu if on_gpu else memory)[key] = used
    for system in _CRITIC:
        of_system = [rss for key, rss in memory.items() if key.startswith(f"{system}_")]
        if of_system:
            found[f"rss_{system}"] = max(of_system)
    found |= {f"rss_{key}": rss for key, rss in memory.items()}
    return found | {f"gpu_memory_{key}": used for key, used in of_gpu.items()}


def fewer_operations(counts: dict[str, dict[str, float]]) -> dict[str, float]:
    """The peer's operations over ours: how much faster ours is where it does each of them as fast."""
    return {
        _key(system, workload): by_system["peer"] / by_system[system]
        for workload, by_system in counts.items()
        for system in by_system.keys() - {"peer"}
    }


def _key(system: str, workload: str) -> str:
    return workload if workload == "t5" else f"{system}_{workload}"


def _peer(workload: Workload, updates: int, seed: int) -> dict[str, Any]:
    return {
        "response": workload.response,
        "batch": workload.batch,
        "micro_batch": workload.peer_micro_batch,
        "epochs": workload.epochs,
        "updates": updates,
        "temperature": workload.temperature,
        "learning_rate": _LEARNING_RATE,
        "kl_coeff": _KL,
        "value_coeff": _VALUE,
        "missing_eos_penalty": 1.0,
        "seed": seed,
        "standardise": False,
        "completions": False,
        "lora": (_RANK, _ALPHA) if workload.tuning == "lora" else None,
        "gpu": workload.gpu,
    }


def _ours(workload: Workload, updates: int, system: str, seed: int) -> dict[str, Any]:
    options = {
        "critic": _CRITIC[system],
        "batch_size": workload.batch,
        "microbatch_tokens": workload.microbatch_tokens,
        "epochs": workload.epochs,
        "train_steps": updates,
        "temperature": workload.temperature,
        "learning_rate": _LEARNING_RATE,
        "kl_coeff": _KL,
        "value_coeff": _VALUE,
        "missing_eos_score": None,
        "missing_eos_penalty": 1.0,
        "held_out_prompts": 0,
        "seed": seed,
        "tuning": workload.tuning,
        "lora": {"rank": _RANK, "alpha": _ALPHA},
        "activation_checkpointing": False,
    }
    lengths = {
        "prompt_sequence_length": workload.longest_prompt,
        "target_sequence_length": workload.response,
    }
    return {"template": lengths, "options": options}
