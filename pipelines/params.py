"""Parameter files: read, and checked against the pipeline before anything runs."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from kfp.dsl.base_component import BaseComponent
from kfp.pipeline_spec import pipeline_spec_pb2

from rlhf import yaml12

_Type = pipeline_spec_pb2.ParameterType

# Parameters of the closed Vertex pipeline that this one does not have.
GONE = {
    "project": "the project is chosen when the pipeline is submitted",
    "location": "the region is chosen when the pipeline is submitted",
    "accelerator_type": "accelerators come from the profile the pipeline is compiled with",
    "accelerator_count": "accelerators come from the profile the pipeline is compiled with",
}
# Parameters that mean something on a cluster only; the value is what they default to.
NOTHING_LOCALLY = {
    "deploy_model": "no endpoint to deploy to on this machine",
    "tensorboard_resource_id": "event files are among the outputs of the stages",
    "encryption_spec_key_name": "outputs are written to this machine's disk as they are",
}


# Bytes of all parameters as JSON, in which they are one argument of a process: Linux takes 128 KiB, and platforms add
# to them.
LONGEST = 96 * 1024
LONGEST_GRADER = 64 * 1024  # characters: parameters are kept with a run, and copied to each of its tasks


class ParameterError(Exception):
    """Parameters are wrong; one line for each, naming it, what was found and what was expected."""


def read(path: str | Path) -> dict[str, Any]:
    """Read a YAML or JSON file of pipeline parameters.

    Raises:
        ParameterError: The file is missing, not YAML, or not a mapping of names to values.
    """
    try:
        values = yaml12.parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ParameterError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or error})") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ParameterError(f"{path}: found {_shown(values)}, expected a mapping of parameter names to values")
    for name, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ParameterError(f"{name}: found {_shown(value)}, expected what JSON can carry: {error}") from error
    return values


def with_graders(values: Any, at: str = "") -> Any:
    """Parameters in which the files of graders, where they are on this machine, travel as text beside their names.

    A grader is a mapping with `function: path/to/file.py` or `path/to/file.py:name`, wherever in the parameters.

    Raises:
        ParameterError: Such a file is not there, no text, or too long to travel.
    """
    if isinstance(values, list):
        return [with_graders(value, f"{at}.{place}") for place, value in enumerate(values)]
    if not isinstance(values, dict):
        return values
    values = {name: with_graders(value, f"{at}.{name}".strip(".")) for name, value in values.items()}
    function = values.get("function")
    if not isinstance(function, str) or values.get("source") or "://" in function:
        return values
    place = function if function.endswith(".py") else function.rpartition(":")[0]
    if not place.endswith(".py"):
        return values
    try:
        source = Path(place).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(
            f"{at}.function: {place} cannot be read ({getattr(error, 'strerror', None) or error}), expected a file of "
            "this machine, whose text is sent, or a URI"
        ) from error
    if len(source) > LONGEST_GRADER:
        raise ParameterError(
            f"{at}.function: {place} has {len(source):,} characters, expected at most {LONGEST_GRADER:,}; put what is "
            "long into a package of the image, or the file where a URI reaches it"
        )
    return values | {"source": source}


def check(
    values: dict[str, Any], pipeline: BaseComponent, means_nothing: Mapping[str, str] = NOTHING_LOCALLY
) -> tuple[dict[str, Any], list[str]]:
    """Check parameters for a run, by default on this machine.

    A parameter given as null counts as not given. Whole floats are taken for integers and integers for floats, as
    KFP does.

    Args:
        values: Parameter names and values, for example from `read`.
        pipeline: A function decorated with `dsl.pipeline`.
        means_nothing: Parameters that nothing acts on where the run will be, and why.

    Returns:
        The arguments to run the pipeline with, and warnings about parameters that mean nothing here.

    Raises:
        ParameterError: A parameter is unknown, missing or of the wrong type; all of them are named.
    """
    known = pipeline.pipeline_spec.root.input_definitions.parameters
    arguments, warnings, errors = {}, [], []
    for name, value in values.items():
        if value is None:
            continue
        if name in known:
            kind = known[name].parameter_type
            if not _fits(value, kind):
                errors.append(f"{name}: found {_shown(value)}, expected {_EXPECTED[kind]}")
            else:
                arguments[name] = int(value) if kind == _Type.NUMBER_INTEGER else value
                if name in means_nothing and value:
                    warnings.append(f"{name}: ignored, {means_nothing[name]}")
                elif name in ("model_display_name", "deploy_model") and value and not values.get("publish_to"):
                    warnings.append(f"{name}: ignored, nothing is published without publish_to")
        elif name in GONE:
            warnings.append(f"{name}: ignored, {GONE[name]}")
        else:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(sorted(known))}"
            errors.append(f"{name}: unknown parameter, {hint}")
    for name, definition in known.items():
        required = not definition.is_optional and not definition.HasField("default_value")
        if required and values.get(name) is None:
            errors.append(f"{name}: missing, expected {_EXPECTED[definition.parameter_type]}")
    if errors:
        raise ParameterError("\n".join(sorted(errors)))
    return arguments, warnings


_EXPECTED = {
    _Type.STRING: "text",
    _Type.NUMBER_INTEGER: "a whole number",
    _Type.NUMBER_DOUBLE: "a number",
    _Type.BOOLEAN: "true or false",
    _Type.STRUCT: "a mapping of option names to values",
    _Type.LIST: "a list",
}


def _fits(value: Any, kind: int) -> bool:
    if kind in (_Type.NUMBER_INTEGER, _Type.NUMBER_DOUBLE):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (kind == _Type.NUMBER_DOUBLE or float(value).is_integer())
    return isinstance(value, {_Type.STRING: str, _Type.BOOLEAN: bool, _Type.STRUCT: dict, _Type.LIST: list}[kind])


def _shown(value: Any) -> str:
    kind = {str: "text", bool: "a truth value", int: "a number", float: "a number", dict: "a mapping", list: "a list"}
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kind.get(type(value), type(value).__name__)})"
