"""How fast bulk inference is against transformers' pipeline, and ROUGE against rouge-score: `make bench-inference`.

Writes build/bench/inference.json. The systems take turns, each run a process of its own, and the figures are medians.
"""

import json
import os
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.inference import models
from benchmarks.inference.rouge import measure_rouge
from benchmarks.measured import CORES, ROOT, measure

OUT = ROOT / "build" / "bench" / "inference.json"
TIMES = 3
PEERS = {"llama": "pipeline", "t5": "text_to_text"}


def main() -> None:
    OUT.parent.mkdir(parents=True, exist_ok=True)
    runs = {architecture: compare(architecture) for architecture in PEERS}
    shares = [
        statistics.median(1 - run["forward"] / run["seconds"] for run in found["ours"]) for found in runs.values()
    ]
    result = {
        "ratio_vs_pipeline": _ratio(runs["llama"]),
        "ratio_t5": _ratio(runs["t5"]),
        "outside_forward": max(shares),
        **measure_rouge(),
        "cores": CORES,
        "raw": runs,
    }
    unfinished = OUT.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(unfinished, OUT)
    print(json.dumps({key: value for key, value in result.items() if key != "raw"}, indent=1))


def compare(architecture: str) -> dict[str, list[dict[str, Any]]]:
    """Both systems in turn; every answer of one has to be the other's."""
    prompts = models.prompts()
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    with TemporaryDirectory() as name:
        folder = Path(name, "model")
        models.write(architecture, folder)
        for _ in range(TIMES):
            for system, found in runs.items():
                job = {
                    "system": system if system == "ours" else PEERS[architecture],
                    "model": str(folder),
                    "prompts": prompts,
                }
                result = measure([sys.executable, "-m", "benchmarks.inference.systems"], job, Path(name))
                texts = result.pop("texts")
                expected = [_answer(prompt) for prompt in prompts]
                if texts != expected:
                    wrong = next(i for i, text in enumerate(texts) if text != expected[i])
                    raise SystemExit(f"{job['system']}: answers {texts[wrong]!r}, expected {expected[wrong]!r}")
                found.append(result)
                print(architecture, job["system"], f"{result['tokens'] / result['seconds']:,.0f} tokens/s", flush=True)
    return runs


def _answer(prompt: str) -> str:
    last = int(prompt.rsplit("count", 1)[1])
    return " ".join(f"count{i}" for i in reversed(range(last)))


def _ratio(runs: dict[str, list[dict[str, Any]]]) -> float:
    speed = {
        system: statistics.median(run["tokens"] / run["seconds"] for run in found) for system, found in runs.items()
    }
    return speed["ours"] / speed["peer"]


if __name__ == "__main__":
    main()
