"""Supervised fine-tuning of the policy on demonstrations."""

from rlhf.sft_trainer.config import SFTTrainerConfig

__all__ = ["SFTTrainerConfig"]
