"""Options of a reward function."""

from pydantic import Field, field_validator

from rlhf.config import StageConfig


class RewardFunction(StageConfig):
    """A function of the user's own: `fn(prompts, completions, **columns) -> list[float | None]`, as in TRL."""

    function: str = Field(description="Where it is: path/to/file.py:name, or package.module:name.")
    weight: float = Field(1.0, allow_inf_nan=False, description="Its rewards are multiplied by this.")
    timeout_seconds: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="Seconds that one call may take; then its process is ended."
    )

    @field_validator("function")
    @classmethod
    def _says_where(cls, function: str) -> str:
        place, _, name = function.rpartition(":")
        if not place or not name.isidentifier():
            raise ValueError("a function is named path/to/file.py:name or package.module:name")
        return function

    @property
    def place(self) -> str:
        """The file or the module that the function is in."""
        return self.function.rpartition(":")[0]

    @property
    def name(self) -> str:
        return self.function.rpartition(":")[2]
