"""Generation over a dataset of prompts."""

from rlhf.bulk_inference.config import BulkInferenceConfig

__all__ = ["BulkInferenceConfig"]
