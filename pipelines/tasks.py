"""What a compiled pipeline runs, whatever loops and conditions its tasks stand in."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from kfp.pipeline_spec.pipeline_spec_pb2 import DagSpec, PipelineSpec, PipelineTaskSpec


@dataclass
class Task:
    """A task that runs a component, by the name it is shown under."""

    name: str
    spec: PipelineTaskSpec
    after: set[str] = field(default_factory=set)
    """Tasks that have to be done before."""
    artifacts: dict[str, set[str]] = field(default_factory=dict)
    """{task: names of its artifacts that this one reads}."""


def tasks_of(spec: PipelineSpec) -> dict[str, Task]:
    """All tasks by name, those within loops and conditions too."""
    return {task.name: task for task in _walk(spec, spec.root.dag, {}, set())}


def _walk(spec: PipelineSpec, dag: DagSpec, inputs: dict[str, tuple[str, str]], after: set[str]) -> Iterator[Task]:
    """Tasks of a DAG.

    Args:
        inputs: {name of an input artifact of the DAG: (task that made it, what it is called there)}.
        after: Tasks that have to be done before any of it.
    """
    for task in dag.tasks.values():
        read = {}
        for name, artifact in task.inputs.artifacts.items():
            output = artifact.task_output_artifact
            if output.producer_task:
                read[name] = _producer(spec, dag.tasks[output.producer_task], output.output_artifact_key)
            elif artifact.component_input_artifact in inputs:
                read[name] = inputs[artifact.component_input_artifact]
        waits = after | {leaf for up in task.dependent_tasks for leaf in _leaves(spec, dag.tasks[up])}
        inner = spec.components[task.component_ref.name]
        if inner.HasField("dag"):
            yield from _walk(spec, inner.dag, read, waits)
            continue
        found = Task(task.task_info.name, task, waits | {up for up, _ in read.values()})
        for up, key in read.values():
            found.artifacts.setdefault(up, set()).add(key)
        yield found


def _producer(spec: PipelineSpec, task: PipelineTaskSpec, key: str) -> tuple[str, str]:
    component = spec.components[task.component_ref.name]
    if not component.HasField("dag"):
        return task.task_info.name, key
    (selector,) = component.dag.outputs.artifacts[key].artifact_selectors
    return _producer(spec, component.dag.tasks[selector.producer_subtask], selector.output_artifact_key)


def _leaves(spec: PipelineSpec, task: PipelineTaskSpec) -> Iterator[str]:
    component = spec.components[task.component_ref.name]
    if not component.HasField("dag"):
        yield task.task_info.name
        return
    for inner in component.dag.tasks.values():
        yield from _leaves(spec, inner)
