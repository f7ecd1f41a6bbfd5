from functools import partial

from rlhf.grpo_trainer.config import GRPOTrainerConfig
from rlhf.grpo_trainer.stage import run
from rlhf.job import main
from rlhf.training.launch import launch

main("grpo_trainer", GRPOTrainerConfig, run, start=partial(launch, "grpo_trainer", run))
