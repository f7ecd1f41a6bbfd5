"""How fast the reward trainer is, against TRL's RewardTrainer: `make bench-reward`.

Writes build/bench/reward.json. The runs take turns, each in a process of its own, and the figures are medians; TRL
without its activation checkpointing is measured once, for comparison.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from benchmarks.reward.generate import write_model, write_preferences
from benchmarks.reward.runs import measure, ours, trl, trl_without_checkpointing

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--times", type=int, default=3, help="runs of each, of which the median counts")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "reward.json")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[tuple[float, float, float]]] = {what.__name__: [] for what in (ours, trl)}
    with tempfile.TemporaryDirectory() as name:
        model, data = Path(name, "model"), Path(name, "data")
        write_model(model)
        write_preferences(data, arguments.steps * arguments.batch_size, 500)

        def run(what):
            speed, peak, right = measure(what, model, data, arguments.steps, arguments.batch_size)
            print(f"{what.__name__}: {speed:.2f} pairs/s, {peak:.2f} GB, accuracy {right:.3f}", flush=True)
            return speed, peak, right

        for _ in range(arguments.times):
            for what in (ours, trl):
                runs[what.__name__].append(run(what))
        runs[trl_without_checkpointing.__name__] = [run(trl_without_checkpointing)]
    median = {name: [statistics.median(values) for values in zip(*found, strict=True)] for name, found in runs.items()}
    speed = {name: found[0] for name, found in median.items()}
    result = {
        "ratio_vs_trl": speed["ours"] / speed["trl"],
        "rss_ratio": median["ours"][1] / median["trl"][1],
        "ratio_vs_trl_without_checkpointing": speed["ours"] / speed["trl_without_checkpointing"],
        "rss_ratio_without_checkpointing": median["ours"][1] / median["trl_without_checkpointing"][1],
        **{f"{name}_pairs_per_second": found[0] for name, found in median.items()},
        **{f"{name}_peak_rss_gb": found[1] for name, found in median.items()},
        **{f"{name}_accuracy": found[2] for name, found in median.items()},
        "steps": arguments.steps,
        "pairs_a_step": arguments.batch_size,
        "cores": os.cpu_count(),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
