"""Reinforcement fine-tuning: several completions of a prompt, graded, and the policy moved towards the better ones."""

from rlhf.grpo_trainer.config import GRPOTrainerConfig

__all__ = ["GRPOTrainerConfig"]
