"""Says whether tuning made the model better."""

from rlhf.evaluator.config import EvaluatorConfig

__all__ = ["EvaluatorConfig"]
