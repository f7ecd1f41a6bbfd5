"""When the publisher runs: the pipeline as it is, by `kfp.local`, with stages that do nothing."""

import ast
import importlib.util
import inspect
from pathlib import Path

import pytest
from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from pipelines import local
from pipelines.rlhf import Outputs, build

REQUIRED = {"prompt_dataset": "p", "preference_dataset": "q", "large_model_reference": "t5-small"}
BODIES = {
    "data-fingerprint": "return 'as it was'",
    "data-validation": "return [0, 1]",
    "evaluator": "metrics.log_metric('win_rate', 0.75)\nreturn {verdict!r}",
    "publisher": "print('[publisher]', publish_to, model_display_name, figures.metadata['win_rate'], flush=True)\n"
    "return model_display_name",
}


def stand_in(component: BaseComponent, folder: Path, body: str) -> BaseComponent:
    """A component of the same interface; KFP takes its source from a file."""
    tree = ast.parse(inspect.getsource(component.python_func))
    (function,) = tree.body
    function.decorator_list, function.body = [], ast.parse(body).body
    path = folder / f"{function.name}.py"
    path.write_text(f"from typing import Optional\nfrom kfp import dsl\n{ast.unparse(tree)}\n")
    spec = importlib.util.spec_from_file_location(function.name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dsl.component(base_image="not-built/stage:1", install_kfp_package=False)(getattr(module, function.name))


@pytest.mark.parametrize(
    ("verdict", "publish_to", "published"),
    [("promote", "gs://b/mine", True), ("hold", "gs://b/mine", False), ("promote", "", False)],
)
def test_a_model_is_published_where_there_is_a_place_and_the_verdict_is_promote(
    tmp_path, capfd, verdict, publish_to, published
):
    def place(component):
        return stand_in(component, tmp_path, BODIES.get(component.name, "pass").format(verdict=verdict))

    arguments = {**REQUIRED, "publish_to": publish_to, "model_display_name": "mine"}
    outputs = local.run(build(place), arguments, tmp_path / "run")
    shown = capfd.readouterr().out
    assert "evaluator: finished" in shown
    assert ("publisher: started" in shown) == published
    assert ("  [publisher] gs://b/mine mine 0.75\n" in shown) == published
    assert set(outputs) == set(Outputs._fields), "a step that is left out leaves the others' outputs alone"
