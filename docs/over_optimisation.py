"""Draw what concepts/over-optimisation.md shows of two runs: `python -m docs.over_optimisation docs/images`."""

import json
import sys
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

RECORDED = Path(__file__).parents[1] / "tests" / "data" / "ppo_demo_histories.json"
RUNS = {"llama, kl_coeff 0, seed 0": "kl_coeff 0", "llama, kl_coeff 0.2, seed 0": "kl_coeff 0.2"}
PANELS = {
    "eval/reward": "Reward model's score",
    "eval/kl": "KL, nats a completion",
    "eval/length": "Length, tokens",
}


def rows() -> list[tuple[str, ...]]:
    """The table of the page: what the run without a leash was like on held-out prompts, every 16 updates."""
    measured = {name: dict(points) for name, points in _run("llama, kl_coeff 0, seed 0").items()}
    figures = ("eval/reward", "eval/kl", "eval/length", "eval/entropy")
    return [(str(update), *(f"{measured[name][update]:.3g}" for name in figures)) for update in range(0, 81, 16)]


def draw(path: Path) -> None:
    """Three panels on white paper, so that they are legible on a dark page too."""
    # Paths by a fixed salt and no date: the same data makes the same file.
    with rc_context({"svg.hashsalt": "rlhf", "font.size": 9}):
        figure = Figure(figsize=(9, 2.8), layout="constrained", facecolor="white")
        for axes, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            for (run, label), style in zip(RUNS.items(), ("-o", "--s"), strict=True):
                axes.plot(*zip(*_run(run)[name], strict=True), style, markersize=3, label=label)
            axes.set(title=title, xlabel="update", ylim=(min(0, axes.get_ylim()[0]), None))
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].legend(frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _run(name: str) -> dict[str, list]:
    return json.loads(RECORDED.read_text(encoding="utf-8"))[name]


if __name__ == "__main__":
    draw(Path(sys.argv[1], "over-optimisation.svg"))
