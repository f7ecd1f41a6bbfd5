from rlhf.job import main
from rlhf.ppo_trainer.config import PPOTrainerConfig
from rlhf.ppo_trainer.stage import run

main("ppo_trainer", PPOTrainerConfig, run)
