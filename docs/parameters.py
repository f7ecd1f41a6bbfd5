"""Write the reference of all parameters and options: `python -m docs.parameters > docs/parameters.md`."""

import inspect
import json
import sys

from kfp.dsl.base_component import BaseComponent
from kfp.pipeline_spec.pipeline_spec_pb2 import ParameterType
from pydantic.fields import FieldInfo

from pipelines import rft, rlhf
from pipelines.placement.local import place
from rlhf.bulk_inference import BulkInferenceConfig
from rlhf.config import StageConfig
from rlhf.data_validation import DataValidationConfig
from rlhf.data_validation.checks import Checks
from rlhf.evaluator import EvaluatorConfig
from rlhf.grpo_trainer import GRPOTrainerConfig
from rlhf.ppo_trainer import PPOTrainerConfig
from rlhf.reward_trainer import RewardTrainerConfig
from rlhf.sft_trainer import SFTTrainerConfig

STRUCTS = {
    "data_validation": DataValidationConfig,
    "sft": SFTTrainerConfig,
    "reward": RewardTrainerConfig,
    "ppo": PPOTrainerConfig,
    "grpo": GRPOTrainerConfig,
    "inference": BulkInferenceConfig,
    "evaluation": EvaluatorConfig,
}
TYPES = {"STRING": "text", "NUMBER_INTEGER": "integer", "NUMBER_DOUBLE": "number", "BOOLEAN": "boolean"}
# Options that a pipeline parameter of another name sets.
BY_PARAMETER = {name: {"train_steps", "learning_rate_multiplier"} for name in ("reward", "ppo", "grpo")}


def render() -> str:
    """The reference, as Markdown: the pipelines' parameters, then the options that each stage's mapping takes."""
    pipelines = {module.__name__.rpartition(".")[2]: module.build(place) for module in (rlhf, rft)}
    text = ["<!-- Made from the code by `make docs`; do not edit. -->", "", "# Parameters"]
    parameters = {}
    for name, pipeline in pipelines.items():
        parameters |= dict(pipeline.pipeline_spec.root.input_definitions.parameters)
        how = "" if name == "rlhf" else f" (`make run PIPELINE={name}`, see [graders.md](graders.md))"
        said = f"Of the `{name}` pipeline, in a file for `make run` and on a cluster alike{how}."
        text += ["", said, "", *table(("Name", "Type", "Default", "What it is"), _rows(pipeline))]
    for struct, config in STRUCTS.items():
        options = _options(struct, config, parameters)
        text += ["", f"## `{struct}`", "", *table(("Name", "Default", "What it is"), options)]
        for name, field in config.model_fields.items():
            if isinstance(field.default, StageConfig):
                inner = _thresholds if isinstance(field.default, Checks) else _fields
                text += ["", f"### `{struct}.{name}`", "", *table(*inner(field.default))]
    return "\n".join([*text, ""])


def _rows(pipeline: BaseComponent) -> list[tuple[str, ...]]:
    parameters = pipeline.pipeline_spec.root.input_definitions.parameters
    return [
        (
            f"`{name}`",
            TYPES.get(ParameterType.ParameterTypeEnum.Name(spec.parameter_type), "mapping"),
            "required" if not spec.is_optional else f"`{_default(spec.default_value)}`",
            " ".join(spec.description.split()),
        )
        for name in inspect.signature(pipeline.pipeline_func).parameters
        for spec in [parameters[name]]
    ]


def _options(struct: str, config: type[StageConfig], parameters: dict) -> list[tuple[str, ...]]:
    elsewhere = {*parameters} | BY_PARAMETER.get(struct, set())
    return [
        (f"`{name}`", _shown(field.default), _described(field))
        for name, field in config.model_fields.items()
        if name not in elsewhere
    ]


def _shown(default: object) -> str:
    return "see below" if isinstance(default, StageConfig) else f"`{json.dumps(default)}`"


def _thresholds(checks: StageConfig) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Each is a mapping `{limit: 0.05, action: fail}`, of which one may be left out."""
    rows = [
        (
            f"`{name}`",
            f"`{threshold.limit:g}`",
            f"`{threshold.action}`",
            str(type(checks).model_fields[name].description),
        )
        for name, threshold in checks
    ]
    return ("Check", "limit", "action", "What is measured"), rows


def _fields(default: StageConfig) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows = [
        (f"`{name}`", _shown(getattr(default, name)), _described(field))
        for name, field in type(default).model_fields.items()
    ]
    return ("Name", "Default", "What it is"), rows


def _described(field: FieldInfo) -> str:
    choices = [f"`{choice}`" for choice in getattr(field.annotation, "__args__", ()) if isinstance(choice, str)]
    return f"{field.description} One of {', '.join(choices)}." if choices else str(field.description)


def _default(value) -> str:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return "{}"
    plain = getattr(value, kind)
    return json.dumps(int(plain) if kind == "number_value" and plain.is_integer() else plain)


def table(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        for row in (headers, tuple("---" for _ in headers), *rows)
    ]


if __name__ == "__main__":
    sys.stdout.write(render())
