"""Checks and converts the user's data, before any GPU is asked for."""

from rlhf.data_validation.config import DataValidationConfig

__all__ = ["DataValidationConfig"]
