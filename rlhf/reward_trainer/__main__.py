from functools import partial

from rlhf.job import main
from rlhf.reward_trainer.config import RewardTrainerConfig
from rlhf.reward_trainer.stage import run
from rlhf.training.launch import launch

main("reward_trainer", RewardTrainerConfig, run, start=partial(launch, "reward_trainer", run))
