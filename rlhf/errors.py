"""Errors meant for the person who started the run.

The message of each is one line that names the parameter, file or row, what was found, what was expected and what
to do. Stages turn them into that line and a non-zero exit (`rlhf.job.stage_errors`); everything else is a bug and
keeps its traceback.
"""


class RlhfError(Exception):
    """Base of all errors with a message for the user."""

    exit_status = 1


class ConfigError(RlhfError):
    """A parameter or option is unknown, of the wrong type or out of range."""


class DataError(RlhfError):
    """Data cannot be read, is malformed, or does not fit the other inputs."""


class ModelError(RlhfError):
    """A model cannot be found or loaded, or does not fit the data."""


class TrainingError(RlhfError):
    """Training cannot go on, for example because losses are not finite."""


class Stopped(RlhfError):
    """The stage was asked to end (SIGTERM) before its work was done; run again, it goes on from its checkpoint."""

    exit_status = 143  # 128 + SIGTERM, as shells count
