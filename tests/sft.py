"""Demonstrations that a tiny model learns in seconds, and the SFT stage on them."""

import random
from pathlib import Path

from rlhf.data.store import write_dataset
from rlhf.data.template import Template
from rlhf.sft_trainer import SFTTrainerConfig
from rlhf.sft_trainer import stage as sft_trainer

TEMPLATE = Template(suffix="TL;DR:", prompt_sequence_length=64, target_sequence_length=16)
THINGS = ("guitar", "bike")


def rows(count: int = 64) -> list[dict[str, str]]:
    """Posts of which the thing that was broken is to be told."""
    draw = random.Random(0)
    things = [draw.choice(THINGS) for _ in range(count)]
    return [
        {"id": str(i), "prompt": f"Number {i}. They broke my {thing}.\nTL;DR:", "completion": f"my {thing}"}
        for i, thing in enumerate(things)
    ]


def write_demonstrations(folder: Path, demonstrations: list[dict], template: Template = TEMPLATE) -> Path:
    write_dataset(folder / "demonstrations", "demonstrations", demonstrations, template)
    return folder / "demonstrations"


def train(demonstrations: Path, base: Path, out: Path, **options) -> dict[str, float]:
    """Run the stage; the policy, report and logs are `out / "policy"`, `"report.html"` and `"logs"`."""
    config = SFTTrainerConfig(**{"train_steps": 30, "batch_size": 16, "learning_rate": 3e-3, **options})
    return sft_trainer.run(
        config,
        demonstrations=str(demonstrations),
        base_model=str(base),
        policy=str(out / "policy"),
        report=str(out / "report.html"),
        tensorboard=str(out / "logs"),
    )


def answers(folder: Path, prompts: list[str], template: Template = TEMPLATE) -> list[tuple[str, bool]]:
    """Greedy completions of a saved policy, and whether each ends by itself."""
    from rlhf.models.policy import Policy

    policy = Policy.load(folder, template)
    ids = [policy.encode_prompt(template.render(prompt)) for prompt in prompts]
    said = policy.generate(ids, template.target_sequence_length, 0.0, batch_size=16)
    return [(policy.decode(tokens), tokens[-1] == policy.eos) for tokens in said]
