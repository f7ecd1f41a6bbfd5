"""The pipeline: its parameters, its shape, and what it hands back."""

import pytest
from google_cloud_pipeline_components.preview.llm import rlhf_pipeline

from pipelines.placement.local import place
from pipelines.rlhf import Outputs, build
from pipelines.tasks import tasks_of


@pytest.fixture(scope="module")
def spec():
    return build(place).pipeline_spec


def edges(spec) -> set[tuple[str, str]]:
    """(upstream, downstream) by task name."""
    return {(up, task.name) for task in tasks_of(spec).values() for up in task.after}


def test_the_dag_is_that_of_the_design(spec):
    before, after = "bulk-inference-before", "bulk-inference-after"
    assert edges(spec) >= {
        ("data-fingerprint", "data-validation"),
        ("data-validation", "sft-trainer"),
        ("sft-trainer", "reward-trainer"),
        ("reward-trainer", "ppo-trainer"),
        ("sft-trainer", before),
        ("ppo-trainer", after),
        (before, "evaluator"),
        (after, "evaluator"),
        ("evaluator", "publisher"),
        ("ppo-trainer", "publisher"),
    }
    # Completions before tuning do not wait for the tuning.
    assert ("ppo-trainer", before) not in edges(spec)
    assert {name for name, task in tasks_of(spec).items() if not task.after} == {"data-fingerprint"}


@pytest.mark.parametrize("name", ["before", "after"])
def test_bulk_inference_runs_once_for_each_shard(spec, name):
    loop = next(task for task in spec.root.dag.tasks.values() if task.task_info.name == name)
    assert loop.parameter_iterator.items.input_parameter == "pipelinechannel--data-validation-Output"
    (task,) = spec.components[loop.component_ref.name].dag.tasks.values()
    assert task.inputs.parameters["shard"].component_input_parameter == loop.parameter_iterator.item_input


def test_parameters_of_the_closed_pipeline_keep_names_types_and_defaults(spec):
    ours = spec.root.input_definitions.parameters
    theirs = rlhf_pipeline.pipeline_spec.root.input_definitions.parameters
    platforms_own = {"project", "location", "accelerator_type"}
    assert set(theirs) - set(ours) == platforms_own
    # Deploying costs money on a cluster of one's own: it is asked for.
    differs_on_purpose = {"deploy_model"}
    for name in set(theirs) - platforms_own:
        assert ours[name].parameter_type == theirs[name].parameter_type, name
        assert ours[name].is_optional == theirs[name].is_optional, name
        if name not in differs_on_purpose and theirs[name].HasField("default_value"):
            assert ours[name].default_value == theirs[name].default_value, name


def test_every_parameter_reaches_a_stage_or_is_for_a_platform(spec):
    used = {
        parameter.component_input_parameter
        for task in spec.root.dag.tasks.values()
        for parameter in task.inputs.parameters.values()
    }
    platforms_own = {"deploy_model", "tensorboard_resource_id", "encryption_spec_key_name"}
    assert set(spec.root.input_definitions.parameters) - used == platforms_own


def test_every_parameter_is_documented(spec):
    for name, definition in spec.root.input_definitions.parameters.items():
        assert definition.description, name


def test_every_setting_of_a_later_stage_is_checked_by_the_first(spec):
    first = {
        parameter.component_input_parameter
        for parameter in spec.root.dag.tasks["data-validation"].inputs.parameters.values()
    }
    for name, task in spec.root.dag.tasks.items():
        later = {parameter.component_input_parameter for parameter in task.inputs.parameters.values()} - {""}
        assert later <= first, name


def test_the_pipeline_hands_back_the_report_the_models_and_the_metrics_of_every_stage_that_always_runs(spec):
    without = ["data-fingerprint", "publisher"]
    handed_back = set(spec.root.output_definitions.artifacts)
    assert handed_back == set(Outputs._fields)
    assert len([name for name in handed_back if name.endswith("_metrics")]) == len(tasks_of(spec)) - len(without)


def conditions_of(spec, dag, name: str, above: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """The conditions under which the task of this name runs, outermost first."""
    for task in dag.tasks.values():
        here = (*above, *filter(None, [task.trigger_policy.condition]))
        inner = spec.components[task.component_ref.name]
        if inner.HasField("dag"):
            if (found := conditions_of(spec, inner.dag, name, here)) is not None:
                return found
        elif task.task_info.name == name:
            return here
    return None


def test_the_publisher_alone_is_under_conditions_that_there_is_a_place_and_the_verdict_is_promote(spec):
    under = {name: conditions_of(spec, spec.root.dag, name) for name in tasks_of(spec)}
    assert under.pop("publisher") == (
        "inputs.parameter_values['pipelinechannel--publish_to'] != ''",
        "inputs.parameter_values['pipelinechannel--evaluator-Output'] == 'promote'",
    )
    assert set(under.values()) == {()}


def test_cached_steps_are_reused_by_default(spec):
    cached = {name: task.spec.caching_options.enable_cache for name, task in tasks_of(spec).items()}
    assert not cached.pop("data-fingerprint"), "data may change under an unchanged URI"
    assert not cached.pop("publisher"), "a folder may be cleared under an unchanged URI"
    assert all(cached.values())


def test_the_two_inferences_can_be_told_apart(spec):
    assert {"bulk-inference-before", "bulk-inference-after"} <= set(tasks_of(spec))


def test_one_function_defines_the_dag_and_placement_sees_every_component():
    placed = []

    def recording(component):
        placed.append(component.name)
        return component

    build(recording)
    assert len(placed) == len(set(placed)) == 8
