"""Write each component's README.md from its docstring and signature: `python -m components.readme [--check]`."""

import argparse
import importlib
import inspect
import json
import sys
from pathlib import Path

import docstring_parser
import yaml
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.structures import InputSpec, OutputSpec

from components.images import STAGES

FOLDER = Path(__file__).parent


def render(stage: str) -> str:
    """The README of a stage's component, as Markdown.

    Raises:
        ValueError: An input or output has no description in the docstring's `Args`.
        AttributeError: What the function returns has none in its `Returns`.
    """
    component: BaseComponent = getattr(importlib.import_module(f"components.{stage}.component"), stage)
    metadata = yaml.safe_load((FOLDER / stage / "metadata.yaml").read_text(encoding="utf-8"))
    docstring = docstring_parser.parse(
        inspect.getdoc(component.python_func), style=docstring_parser.DocstringStyle.GOOGLE
    )
    said = {param.arg_name: " ".join(param.description.split()) for param in docstring.params}
    inputs, outputs = component.component_spec.inputs or {}, component.component_spec.outputs or {}
    # In the order of the signature, which the docstring follows.
    names = list(inspect.signature(component.python_func).parameters)
    if set(names) != set(said):
        raise ValueError(f"{stage}: docstring and signature differ in {', '.join(sorted(set(names) ^ set(said)))}")

    input_rows = [
        (f"`{name}`", _type_name(inputs[name]), _default(inputs[name]), said[name]) for name in names if name in inputs
    ]
    output_rows = [(f"`{name}`", _type_name(outputs[name]), said[name]) for name in names if name in outputs]
    output_rows += [  # what the function returns, which KFP calls so
        (f"`{name}`", _type_name(outputs[name]), " ".join(docstring.returns.description.split()))
        for name in outputs
        if name not in names
    ]
    about = [docstring.short_description or "", docstring.long_description or ""]
    return "\n".join(
        [
            "<!-- Made from component.py by `make readme`; do not edit. -->",
            "",
            f"# {stage}",
            "",
            *(line for paragraph in about if paragraph for line in (paragraph, "")),
            "## Inputs",
            "",
            *_table(("Name", "Type", "Default", "What it is"), input_rows),
            "",
            "## Outputs",
            "",
            *_table(("Name", "Type", "What it is"), output_rows),
            "",
            "## Metadata",
            "",
            f"Stability: {metadata['stability']}. Tags: {', '.join(metadata['tags'])}.",
            "",
            f"Without KFP: `python -m rlhf.{stage} --config job.yaml`.",
            "",
        ]
    )


def _table(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        for row in (headers, tuple("---" for _ in headers), *rows)
    ]


def _type_name(spec: InputSpec | OutputSpec) -> str:
    """`system.Dataset@0.0.1` is a Dataset; types of parameters are plain names already."""
    name = spec.type.removeprefix("system.").split("@")[0]
    return f"List[{name}]" if spec.is_artifact_list else name


def _default(spec) -> str:
    if not spec.optional:
        return "required"
    return "none" if spec.default is None else f"`{json.dumps(spec.default)}`"


def main() -> int:
    """Write the READMEs, or with --check name those that are stale.

    Returns:
        Exit status: 0, or 1 when a README is stale.
    """
    parser = argparse.ArgumentParser(prog="python -m components.readme", description="Write the components' READMEs.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a README is stale")
    check = parser.parse_args().check
    stale = []
    for stage in STAGES:
        path = FOLDER / stage / "README.md"
        text = render(stage)
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(f"components/{stage}/README.md")
    if stale:
        print(f"stale: {', '.join(stale)}; run `make readme`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
