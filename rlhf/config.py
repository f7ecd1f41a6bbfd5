"""Typed stage configuration, checked at the edge."""

import difflib
import types
import typing
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from rlhf.data.file_systems import redacted
from rlhf.errors import ConfigError


class StageConfig(BaseModel):
    """Base of every stage's config: unknown keys are refused, types are strict.

    KFP carries struct parameters as JSON numbers, where 5 arrives as 5.0; whole floats are therefore taken as
    integers where a field is an integer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _whole_floats_are_integers(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for name, field in cls.model_fields.items():
            value = values.get(name)
            if _takes_int(field.annotation) and isinstance(value, float) and value.is_integer():
                values[name] = int(value)
        return values

    @classmethod
    def parse(cls, options: dict[str, Any], where: str = "") -> Self:
        """Build the config from `options`.

        Args:
            options: Field names and values.
            where: What to call the parameter in messages, for example "ppo" for the pipeline's `ppo={...}`.

        Raises:
            ConfigError: One line naming each bad key, what was found, what was expected, and the valid names.
        """
        if not isinstance(options, dict):
            found = redacted(repr(options))
            raise ConfigError(f"{where or cls.__name__}: found {found}, expected a mapping of option names to values")
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            raise ConfigError(redacted("; ".join(cls._explain(e, where) for e in error.errors()))) from error

    @classmethod
    def _explain(cls, error: Any, where: str) -> str:
        name = ".".join(str(part) for part in error["loc"])
        label = f"{where}.{name}".strip(".") or cls.__name__
        if error["type"] == "extra_forbidden":
            *path, last = error["loc"]
            known: Any = cls
            for part in path:
                known = typing.get_args(known)[0] if isinstance(part, int) else known.model_fields[part].annotation
                if _is_union(known):  # of an optional part, the part
                    known = next(each for each in typing.get_args(known) if hasattr(each, "model_fields"))
            close = difflib.get_close_matches(last, known.model_fields, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            return f"unknown option {label!r}: {hint}valid names are {', '.join(known.model_fields)}"
        if error["type"] == "missing":
            return f"{label}: a value is required"
        return f"{label}: found {error['input']!r}, expected: {error['msg']}"


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _takes_int(annotation: Any) -> bool:
    if _is_union(annotation):
        kinds = typing.get_args(annotation)
        return int in kinds and float not in kinds
    return annotation is int
