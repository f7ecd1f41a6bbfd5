"""Options of the judge."""

import re
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from rlhf.config import StageConfig
from rlhf.errors import ConfigError

# What is refused may be a secret, which no message may show. Pydantic shows it with a ValueError; a ConfigError
# passes as it is.
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")


class JudgeConfig(StageConfig):
    """Which language model judges, where it is, and how patiently it is asked."""

    model: str = Field(
        min_length=1, description="The judge, by its name at the endpoint, for example `google/gemini-2.5-flash`."
    )
    base_url: str = Field(
        "",
        description="Any endpoint that speaks OpenAI's chat completions, for example `http://vllm.models:8000/v1`; "
        "empty is OpenAI's own.",
    )
    api_key_env: str = Field(
        "",
        description="Name of the environment variable that holds the key, never the key. Empty is OPENAI_API_KEY at "
        "OpenAI, and no key elsewhere.",
    )
    vertex_project: str = Field(
        "",
        pattern=r"^([a-z0-9.:-]+)?$",
        description="Google Cloud project: ask Gemini on Vertex AI, with the credentials that the machine has.",
    )
    vertex_location: str = Field("global", pattern=r"^[a-z0-9-]+$", description="Vertex AI region, or global.")
    question: str = Field(
        "Which completion answers the prompt better: what it says is right and grounded in the prompt, it gives what "
        "was asked for, and it is clear? A longer one is not better for its length.",
        min_length=1,
        description="What the judge is asked, the criterion among it.",
    )
    max_rows: int = Field(500, ge=1, description="Rows judged, each with two calls; of more, a seeded random choice.")
    timeout_seconds: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="Seconds that the judge may keep silent in one call."
    )
    retries: int = Field(
        3, ge=0, description="Further tries of a call that timed out, or was answered with 408, 409, 429 or 5xx."
    )
    parallel: int = Field(8, ge=1, description="Calls under way at once.")
    cache: str = Field(
        "", description="Folder or URI where answers are kept, so that nothing is asked twice; empty keeps none."
    )
    max_failed: float = Field(
        0.1, ge=0, le=1, description="Share of the rows that may stay without a judgement; of more, the stage fails."
    )

    @field_validator("api_key_env", mode="before")
    @classmethod
    def _is_a_name(cls, name: object) -> object:
        if name != "" and not (isinstance(name, str) and _VARIABLE.fullmatch(name)):
            raise ConfigError(
                "judge.api_key_env: found what is no name of an environment variable (not shown, for it may be a key), "
                "expected a name such as OPENAI_API_KEY; put the key into that variable, and change it if it has been "
                "in a config"
            )
        return name

    @field_validator("base_url", mode="before")
    @classmethod
    def _holds_no_secret(cls, url: object) -> object:
        if url != "" and not (isinstance(url, str) and _is_plain(url)):
            raise ConfigError(
                "judge.base_url: found a URL with a user, password or query (not shown), or one that is not "
                "http:// or https://, expected one such as https://host/v1; a key goes into the variable that "
                "api_key_env names"
            )
        return url

    @model_validator(mode="after")
    def _one_endpoint(self) -> Self:
        if self.vertex_project and (self.base_url or self.api_key_env):
            raise ConfigError(
                "judge.vertex_project: found base_url or api_key_env beside it, expected none of them: Vertex AI has "
                "an address and credentials of its own"
            )
        return self


def _is_plain(url: str) -> bool:
    """An http URL without a user, a password or a query."""
    try:
        parts = urlsplit(url)
        secret = parts.username or parts.password or parts.query or parts.fragment
        return parts.scheme in ("http", "https") and bool(parts.hostname) and not secret
    except ValueError:
        return False
