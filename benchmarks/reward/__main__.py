"""How fast the reward trainer is, against TRL's RewardTrainer: `make bench-reward`.

Writes build/bench/reward.json. The runs take turns, each in a process of its own, and the figures are medians.
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
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--times", type=int, default=3, help="runs of each, of which the median counts")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "reward.json")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    contenders = (ours, trl, trl_without_checkpointing)
    runs: dict[str, list[tuple[float, float, float]]] = {what.__name__: [] for what in contenders}
    with tempfile.TemporaryDirectory() as name:
        model, data = Path(name, "model"), Path(name, "data")
        write_model(model)
        write_preferences(data, arguments.steps * arguments.batch_size, 500)
        for number in range(arguments.times):
            for what in contenders:
                found = measure(what, model, data, arguments.steps, arguments.batch_size)
                runs[what.__name__].append(found)
                print(
                    f"{number + 1} {what.__name__}: {found[0]:.2f} pairs/s, {found[1]:.2f} GB, accuracy {found[2]:.3f}",
                    flush=True,
                )
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
