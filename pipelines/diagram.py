"""Draw each DAG as SVG, from what it compiles to: `python -m pipelines.diagram docs/images`.

Every task has a column of its own; every layer has a row, with a track below it for each of its tasks. An artifact
runs down from its producer to the producer's track, along it, and down its consumer's column. So all that is on a track
comes from one task and all that is in a column goes to one, and crossings mean nothing.
"""

import importlib
import sys
from graphlib import TopologicalSorter
from html import escape
from pathlib import Path
from textwrap import wrap

from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from components.images import STAGES
from pipelines import PIPELINES
from pipelines.compile import PLACEMENTS
from pipelines.placement.cluster import load_profile
from pipelines.placement.local import place
from pipelines.rlhf import build
from pipelines.tasks import tasks_of

COLUMN, BOX_WIDTH, BOX_HEIGHT = 126, 118, 42
GAP, CHIP_LINE, CHIP_PADDING = 12, 14, 7  # between rows of things; height of a line of text; around it
MARGIN = 20

# What a profile says that asks for every step after the publisher.
SERVED = {
    "kubeflow": {"kserve": {}, "model_registry": {"url": "http://model-registry"}},
    "vertex": {"serving": {"image": "gcr.io/p/vllm:1"}},
}

STYLE = """
.paper { fill: #faf9f6; stroke: #e3e0d8; } .task { fill: #e4eef7; stroke: #1f6fb2; } .name { fill: #22262b; }
.chip { fill: #ffffff; stroke: #c9c5ba; } .artifact { fill: #4a515a; }
.edge { fill: none; stroke: #9aa1ac; stroke-width: 1.5; shape-rendering: crispEdges; } .arrow { fill: #6b7280; }
text { font-family: system-ui, -apple-system, "Segoe UI", "Noto Sans", "Liberation Sans", Arial, sans-serif;
  text-anchor: middle; dominant-baseline: central; }
.name { font-size: 13px; font-weight: 600; } .artifact { font-size: 11.5px; }
@media (prefers-color-scheme: dark) {
  .paper { fill: #15171a; stroke: #31353b; } .task { fill: #1b2b3a; stroke: #6cb2ee; } .name { fill: #e4e3df; }
  .chip { fill: #22262b; stroke: #4a515a; } .artifact { fill: #c3c8d0; }
  .edge { stroke: #6b7280; } .arrow { fill: #9aa1ac; }
}
""".strip()


def edges(spec: PipelineSpec) -> dict[tuple[str, str], list[str]]:
    """{(producer, consumer): names of the artifacts that pass}, tasks by the names they are shown under.

    That one only waits for another is left out where it follows from the rest.
    """
    tasks = tasks_of(spec)
    passed = {(up, task.name): task.artifacts.get(up, ()) for task in tasks.values() for up in task.after}

    def waits_for(name: str, other: str) -> bool:
        return any(up == other or waits_for(up, other) for up in tasks[name].after)

    return {
        (up, down): sorted(artifacts)
        for (up, down), artifacts in sorted(passed.items())
        if artifacts or not any(waits_for(via, up) for via in tasks[down].after if via != up)
    }


def layers(spec: PipelineSpec) -> list[list[str]]:
    """Tasks by layer, first to run first. A task's layer is the last it can be in: just above its first consumer.

    By the longest path to the end, therefore: what is compared in the end stands side by side.
    """
    consumers = {name: set() for name in tasks_of(spec)}
    for up, down in edges(spec):
        consumers[up].add(down)
    depth = {}
    for name in TopologicalSorter(consumers).static_order():
        depth[name] = 1 + max((depth[down] for down in consumers[name]), default=-1)
    height = max(depth.values())
    connected = {name for pair in edges(spec) for name in pair}
    depth |= {name: height for name in depth if name not in connected}  # what nothing waits for, and waits for nothing
    # "before" ahead of "after": of two in a layer, the one that could have run earlier comes first.
    ready = {name: max((height - depth[up] for up, down in edges(spec) if down == name), default=0) for name in depth}
    rows = [[] for _ in range(height + 1)]
    for name in sorted(depth, key=lambda name: (ready[name], name)):
        rows[height - depth[name]].append(name)
    return rows


def draw(spec: PipelineSpec) -> str:
    """The DAG as an SVG document, legible on light and dark pages, the same for the same pipeline."""
    passed, rows = edges(spec), layers(spec)
    x, top, track = {}, {}, {}
    y = MARGIN
    for row in rows:
        for name in row:
            x[name], top[name] = MARGIN + BOX_WIDTH / 2 + COLUMN * len(x), y
        y += BOX_HEIGHT + GAP
        # The rightmost task has the upper track, so that a track never crosses its neighbour's way down.
        for name in reversed(row):
            lines = max((max(1, len(artifacts)) for (up, _), artifacts in passed.items() if up == name), default=0)
            chip = lines * CHIP_LINE + CHIP_PADDING
            track[name] = y + chip / 2
            y += chip + GAP if lines else 0
    width, height = 2 * MARGIN + COLUMN * (len(x) - 1) + BOX_WIDTH, y - GAP + MARGIN

    lines, chips, boxes = [], [], []
    for (up, down), artifacts in passed.items():
        bottom = top[up] + BOX_HEIGHT
        lines.append(
            f'<path class="edge" data-edge="{escape(up)} {escape(down)}" '
            f'd="M{x[up]:g} {bottom:g}V{track[up]:g}H{x[down]:g}V{top[down] - 5:g}"/>'
        )
        tip = top[down]
        lines.append(f'<path class="arrow" d="M{x[down]:g} {tip:g}l-4.5 -8h9z"/>')
        if artifacts:
            tall = len(artifacts) * CHIP_LINE + CHIP_PADDING
            chips.append(_box("chip", x[down], track[up] - tall / 2, BOX_WIDTH - 8, tall, radius=9))
            chips.extend(_text("artifact", x[down], track[up], artifacts, CHIP_LINE))
    for name in x:
        boxes.append(f'<g data-task="{escape(name)}">')
        boxes.append(_box("task", x[name], top[name], BOX_WIDTH, BOX_HEIGHT, radius=6))
        boxes.extend(_text("name", x[name], top[name] + BOX_HEIGHT / 2, wrap(name.replace("-", " "), 14), 16))
        boxes.append("</g>")

    said = "; ".join(f"{up} to {down}: {', '.join(what) or 'order only'}" for (up, down), what in passed.items())
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img" aria-labelledby="title desc">',
            f'<title id="title">Pipeline {escape(spec.pipeline_info.name)}: its tasks and what they pass on</title>',
            f'<desc id="desc">{escape(said)}.</desc>',
            f"<style>\n{STYLE}\n</style>",
            _box("paper", width / 2, 0.5, width - 1, height - 1, radius=8),
            *lines,
            *chips,
            *boxes,
            "</svg>\n",
        ]
    )


def _box(kind: str, middle: float, top: float, width: float, height: float, radius: float) -> str:
    return (
        f'<rect class="{kind}" x="{middle - width / 2:g}" y="{top:g}" width="{width:g}" height="{height:g}" '
        f'rx="{radius:g}"/>'
    )


def _text(kind: str, x: float, y: float, lines: list[str], line_height: float) -> list[str]:
    first = y - line_height * (len(lines) - 1) / 2
    return [
        f'<text class="{kind}" x="{x:g}" y="{first + line_height * i:g}">{escape(line)}</text>'
        for i, line in enumerate(lines)
    ]


def drawn() -> dict[str, PipelineSpec]:
    """{file: pipeline}: each one, and with what clusters add to it where a profile asks for all of it."""
    found = {name: importlib.import_module(f"pipelines.{name}").build(place).pipeline_spec for name in PIPELINES}
    for platform, settings in SERVED.items():
        profile = load_profile(f"{platform}-l4")
        cluster = "kubernetes" if platform == "kubeflow" else platform
        profile = profile.model_validate(profile.model_dump(exclude_unset=True) | {cluster: settings})
        placed = PLACEMENTS[platform].placement(profile, dict.fromkeys(STAGES, "image"))
        found[f"rlhf-{platform}"] = build(placed).pipeline_spec
    return found


if __name__ == "__main__":
    for name, spec in drawn().items():
        Path(sys.argv[1], f"{name}.svg").write_text(draw(spec), encoding="utf-8")
