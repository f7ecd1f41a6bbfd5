from rlhf.job import main
from rlhf.reward_trainer.config import RewardTrainerConfig
from rlhf.reward_trainer.stage import run

main("reward_trainer", RewardTrainerConfig, run)
