"""Proximal policy optimisation against a reward model."""

from rlhf.ppo_trainer.config import PPOTrainerConfig

__all__ = ["PPOTrainerConfig"]
