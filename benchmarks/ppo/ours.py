"""The PPO trainer on a job of the benchmark, through the loop that the stage runs: `python ours.py job result`."""

import json
import resource
import sys
import tempfile
import time
from collections import defaultdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import transformers

from rlhf.data.template import Template
from rlhf.models.loading import prepare_torch
from rlhf.models.policy import Policy
from rlhf.models.scoring import RewardModel
from rlhf.ppo.loop import Prompt, Run, train
from rlhf.ppo.networks import Networks
from rlhf.ppo_trainer.config import PPOTrainerConfig
from rlhf.progress import Progress
from rlhf.rewards.combined import Rewards

_SECONDS = "ppo/seconds/"  # tags of the loop's own clock


def main(job: dict[str, Any], target: Path) -> None:
    config = PPOTrainerConfig.parse(job["options"])
    template = Template.model_validate_json(json.dumps(job["template"]))
    prepare_torch(config.seed)
    policy, _ = Policy.to_train(job["policy"], template, config)
    reward_model = RewardModel.load(job["reward"], template, merged=True)
    prompts = [Prompt(str(i), text, policy.encode_prompt(text), text) for i, text in enumerate(job["prompts"])]
    ends, lengths = [], []
    phases: dict[str, list[float]] = defaultdict(list)

    def log(update: int, scalars: dict[str, float]) -> None:
        if "ppo/length" not in scalars:  # measured on held-out prompts
            return
        ends.append(time.perf_counter() - start)
        lengths.append(scalars["ppo/length"])
        for tag, value in scalars.items():
            if tag.startswith(_SECONDS):
                phases[tag.removeprefix(_SECONDS)].append(value)

    start = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as scratch,
        Rewards(reward_model, config.reward_model_weight, []) as rewards,
        Progress("ours", config.train_steps, shown=False) as progress,
    ):
        samples = Path(scratch, "samples.jsonl")
        train(
            config,
            Networks(policy, config, reward_model),
            rewards,
            Run(
                prompts=prompts[config.held_out_prompts :],
                held_out=prompts[: config.held_out_prompts],
                response_length=template.target_sequence_length,
                progress=progress,
                log=log,
                samples=samples,
            ),
        )
        rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    result = {
        "system": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "threads": torch.get_num_threads(),
        "ends": ends,
        "lengths": lengths,
        "phases": phases,
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_gpu": torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0,
        "completions": [
            [(int(row["id"]), row["completion"]) for row in of_update]
            for _, of_update in groupby(rows, key=lambda row: row["update"])
        ],
    }
    target.write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
