"""The stage's options: the loop's."""

from rlhf.ppo.config import PPOTrainerConfig

__all__ = ["PPOTrainerConfig"]
