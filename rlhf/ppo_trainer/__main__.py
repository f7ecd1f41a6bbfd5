from functools import partial

from rlhf.job import main
from rlhf.ppo_trainer.config import PPOTrainerConfig
from rlhf.ppo_trainer.stage import run
from rlhf.training.launch import launch

main("ppo_trainer", PPOTrainerConfig, run, start=partial(launch, "ppo_trainer", run))
