"""A language model as judge of two completions of a prompt."""

from rlhf.evaluator.judge.asking import Judged, judge
from rlhf.evaluator.judge.config import JudgeConfig

__all__ = ["JudgeConfig", "Judged", "judge"]
