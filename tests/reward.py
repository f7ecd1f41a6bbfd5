"""Preferences that a tiny reward model learns in seconds, and the reward stage on them."""

from pathlib import Path
from typing import Any

from rlhf.data.store import write_dataset
from rlhf.data.template import Template
from rlhf.reward_trainer import RewardTrainerConfig
from rlhf.reward_trainer import stage as reward_trainer

TEMPLATE = Template(suffix="TL;DR:", prompt_sequence_length=64, target_sequence_length=16)
THINGS = ("guitar", "bike", "monday", "brother")
OUTPUTS = {
    "reward_model": "reward_model",
    "scores": "scores.parquet",
    "calibration": "calibration.json",
    "report": "report.html",
    "tensorboard": "logs",
}


def rows(count: int = 160) -> list[dict[str, Any]]:
    """Two pairs a prompt, a fifth of the prompts held out; the better response says what was sold."""
    return [
        {"id": str(i), "prompt": f"Number {i // 2}. They broke my {THINGS[i // 2 % 4]}.", "position": i % 2,
         "chosen": f"sold my {THINGS[i // 2 % 4]}" + " on monday" * (i % 5), "rejected": f"my {THINGS[i % 3]}",
         "split": "eval" if i // 2 % 5 == 0 else "train"}
        for i in range(count)
    ]  # fmt: skip


def write_preferences(folder: Path, preferences: list[dict[str, Any]], template: Template = TEMPLATE) -> Path:
    write_dataset(folder / "preferences", "preferences", preferences, template)
    return folder / "preferences"


def train(preferences: Path, base: Path, out: Path, **options) -> dict[str, float]:
    """Run the stage; its outputs lie in `out` under the names of `OUTPUTS`."""
    out.mkdir(parents=True, exist_ok=True)
    config = RewardTrainerConfig(**{"train_steps": 40, "batch_size": 16, "learning_rate": 1e-3, **options})
    outputs = {name: str(out / file) for name, file in OUTPUTS.items()}
    return reward_trainer.run(config, preferences=str(preferences), policy=str(base), **outputs)
