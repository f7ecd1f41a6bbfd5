"""The picture of the DAG."""

from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from kfp import dsl

from pipelines import PIPELINES
from pipelines.diagram import draw, drawn, edges, layers
from pipelines.tasks import tasks_of

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def specs():
    return drawn()


@pytest.fixture(scope="module", params=["rlhf", "rlhf-kubeflow", "rlhf-vertex", "rft"])
def spec(request, specs):
    return specs[request.param]


@pytest.fixture(scope="module")
def svg(spec):
    return ElementTree.fromstring(draw(spec))


def test_the_committed_pictures_are_fresh_and_each_pipeline_has_one(specs):
    assert set(PIPELINES) < set(specs)
    for name, spec in specs.items():
        assert (IMAGES / f"{name}.svg").read_text(encoding="utf-8") == draw(spec), "run `make docs`"


def reaches(pairs: set[tuple[str, str]], up: str, down: str) -> bool:
    return (up, down) in pairs or any(reaches(pairs, via, down) for first, via in pairs if first == up)


def test_there_is_a_node_for_each_task_and_a_way_for_each_dependency(spec, svg):
    tasks = tasks_of(spec)
    assert {node.get("data-task") for node in svg.iter(f"{SVG}g")} == set(tasks)
    shown = {tuple(path.get("data-edge").split()) for path in svg.iter(f"{SVG}path") if path.get("data-edge")}
    assert shown <= {(up, task.name) for task in tasks.values() for up in task.after}
    assert all(reaches(shown, up, task.name) for task in tasks.values() for up in task.after)
    for up, down in shown:
        others = shown - {(up, down)}
        assert edges(spec)[up, down] or not reaches(others, up, down), "waiting that follows from the rest is clutter"


def test_every_artifact_passed_is_named(spec, svg):
    named = [text.text for text in svg.iter(f"{SVG}text") if text.get("class") == "artifact"]
    assert sorted(named) == sorted(artifact for artifacts in edges(spec).values() for artifact in artifacts)
    assert "tuned_policy" in named


def test_what_is_compared_stands_side_by_side_and_every_edge_goes_down(spec):
    rows = layers(spec)
    assert ["bulk-inference-before", "bulk-inference-after"] in rows
    depth = {name: i for i, row in enumerate(rows) for name in row}
    assert all(depth[up] < depth[down] for up, down in edges(spec))


def test_no_two_labels_or_boxes_overlap(svg):
    boxes = [rect for rect in svg.iter(f"{SVG}rect") if rect.get("class") != "paper"]
    spans = sorted((*(float(box.get(name)) for name in ("x", "y", "width", "height")),) for box in boxes)
    columns = {}
    for x, y, width, height in spans:
        columns.setdefault(x + width / 2, []).append((y, y + height))
    for column in columns.values():
        assert all(above[1] < below[0] for above, below in pairwise(sorted(column)))
    middles = sorted(columns)
    assert all(right - left > max(span[2] for span in spans) for left, right in pairwise(middles))


def test_a_task_that_only_waits_for_another_is_drawn_too():
    @dsl.component(base_image="python:3.11")
    def nothing():
        pass

    @dsl.pipeline(name="waits")
    def waits():
        first = nothing().set_display_name("first <one>")
        nothing().set_display_name("second").after(first)

    svg = ElementTree.fromstring(draw(waits.pipeline_spec))
    assert [path.get("data-edge") for path in svg.iter(f"{SVG}path") if path.get("data-edge")] == ["first <one> second"]


def test_the_picture_says_in_words_what_it_shows(spec, svg):
    assert spec.pipeline_info.name in svg.find(f"{SVG}title").text
    trainer = {"rlhf": "ppo-trainer", "rft": "grpo-trainer"}[spec.pipeline_info.name]
    assert f"{trainer} to bulk-inference-after: tuned_policy" in svg.find(f"{SVG}desc").text
