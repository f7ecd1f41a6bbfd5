"""Options of a grader: what gives each completion a number."""

from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from rlhf.config import StageConfig
from rlhf.data.file_systems import redacted

KINDS = ("function", "http", "builtin", "sum", "product")
LONGEST_SOURCE = 256 * 1024  # characters; more is a package, and belongs into the image
DEFAULT_NAME = "grade"  # of the function in a file that is named alone


class RewardFunction(StageConfig):
    """A grader: a function of the user's own (`fn(prompts, completions, **columns) -> list[float | None]`, as in TRL),
    a service, one that comes with the project, or a sum or product of graders."""

    function: str = Field(
        "", description="Where a function is: path/to/file.py:name, package.module:name, or a URI of a file."
    )
    source: str = Field(
        "",
        max_length=LONGEST_SOURCE,
        description="The file's text, where it travels with the options; `function` then only names it.",
    )
    http: str = Field("", description="URL of a service that grades: see docs/graders.md for what is sent.")
    builtin: str = Field("", description="One that comes with the project, by its name: see docs/graders.md.")
    sum: list["RewardFunction"] = Field([], description="Graders whose grades are added, each times its weight.")
    product: list["RewardFunction"] = Field(
        [], description="Graders whose grades, none of them negative, are multiplied, each to the power of its weight."
    )
    name: str = Field("", description="What its grades are logged as; unset takes the function's or the built-in's.")
    options: dict[str, Any] = Field({}, description="Of a built-in.")
    weight: float = Field(1.0, allow_inf_nan=False, description="Its rewards are multiplied by this.")
    timeout_seconds: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="Seconds that one call may take; then its process is ended."
    )
    memory_gb: float = Field(
        4.0, gt=0, allow_inf_nan=False, description="Gigabytes that a function and what it starts may take."
    )
    network: bool = Field(False, description="Whether a function may open connections.")
    batch_size: int = Field(32, ge=1, description="Completions in one request to a service.")
    retries: int = Field(3, ge=0, le=20, description="Times that a request to a service is sent again.")
    concurrency: int = Field(4, ge=1, le=64, description="Requests to a service at once.")
    api_key_env: str = Field(
        "", description="Environment variable whose value a service gets as bearer token; unset sends none."
    )

    @model_validator(mode="before")
    @classmethod
    def _is_named(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        place = values.get("function")
        if isinstance(place, str) and place.endswith(".py"):
            values["function"] = place = f"{place}:{DEFAULT_NAME}"
        if not values.get("name"):
            kind = next((kind for kind in KINDS if values.get(kind)), "")
            by_kind = {"function": str(place).rpartition(":")[2], "builtin": values.get("builtin")}
            values["name"] = by_kind.get(kind, kind)
        return values

    @field_validator("function")
    @classmethod
    def _says_where(cls, function: str) -> str:
        place, _, name = function.rpartition(":")
        if not place or not name.isidentifier():
            raise ValueError("a function is named path/to/file.py:name or package.module:name")
        return function

    @field_validator("http")
    @classmethod
    def _is_url(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("a URL that begins with http:// or https://")
        if "@" in urlsplit(url).netloc:
            raise ValueError("a URL without user and password: name a variable that holds the key in api_key_env")
        return url

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind)]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(KINDS)} (path/to/file.py:name), found {', '.join(given)}")
        if self.source and not self.is_file:
            raise ValueError("source needs a function in a file, path/to/file.py:name")
        if self.options and not self.builtin:
            raise ValueError("options are for a builtin")
        if self.product and any(part.has_reward_model for part in self.product):
            raise ValueError(
                "product: a reward_model can stand alone or in a sum, not in a product: it may be negative"
            )
        if self.builtin:
            from rlhf.rewards.builtin import check_options

            check_options(self.builtin, self.options)
        return self

    @property
    def place(self) -> str:
        """The file or the module that the function is in."""
        return self.function.rpartition(":")[0]

    @property
    def is_file(self) -> bool:
        return self.place.endswith(".py")

    @property
    def parts(self) -> list["RewardFunction"]:
        """Of a sum or a product."""
        return self.sum or self.product

    @property
    def has_reward_model(self) -> bool:
        return self.builtin == "reward_model" or any(part.has_reward_model for part in self.parts)

    @property
    def where(self) -> str:
        """Where it is, or what it is called, for whoever reads: without passwords in URIs."""
        return redacted(self.function or self.http or self.name)

    @property
    def words(self) -> str:
        """What it is, in messages."""
        return f"{'reward function' if self.function else 'grader'} {self.where}"
