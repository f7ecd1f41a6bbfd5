"""Record what the demo's PPO logs, for tests of alarms and for the page on over-optimisation.

    python -m tests.goldens.ppo_demo tests/data/ppo_demo_histories.json

Each policy with its own KL penalty and, on the same SFT policy and reward model, without: a quarter of an hour or
two on two cores.
"""

import json
import sys
import tempfile
from pathlib import Path

from pipelines import params
from rlhf.tracking import read_scalars
from tests.demo import REPOSITORY, run, stages_of, unleashed

TAGS = (
    *("reward", "reward_std", "kl", "update_kl", "entropy", "length", "ended"),
    *("explained_variance", "bad_rewards"),
)
HELD_OUT = ("reward", "kl", "entropy", "length", "ended")


def main(target: Path) -> None:
    histories = {}
    for arch in ("llama", "t5"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            run(folder, "examples.demo", "--arch", arch)
            unleashed(arch, folder, folder)
            held = params.read(REPOSITORY / "examples" / "demo" / f"{arch}.yaml")["kl_coeff"]
            for kl_coeff, logs in ((0, folder / "tensorboard"), (held, stages_of(folder) / "ppo-trainer/tensorboard")):
                histories[f"{arch}, kl_coeff {kl_coeff:g}, seed 0"] = _rounded(read_scalars(logs))
    target.write_text(json.dumps(histories), encoding="utf-8")


def _rounded(scalars: dict[str, list[tuple[int, float]]]) -> dict[str, list[list[float]]]:
    tags = [*(f"ppo/{tag}" for tag in TAGS), *(f"eval/{tag}" for tag in HELD_OUT)]
    return {tag: [[update, float(f"{value:.3g}")] for update, value in scalars[tag]] for tag in tags if tag in scalars}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
