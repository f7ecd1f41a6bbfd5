"""Reward modelling on human preferences."""

from rlhf.reward_trainer.config import RewardTrainerConfig

__all__ = ["RewardTrainerConfig"]
