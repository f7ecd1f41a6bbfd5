"""Reinforcement fine-tuning of the demo's policy with a grader of twenty lines (`make demo-rft`)."""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from examples.demo.__main__ import run_apart
from pipelines import local, params, rft
from pipelines.placement.local import place

ROOT = Path("build/demo-rft")  # as in the parameter file beside this one
MARGIN = 0.2  # one fact: what the grade is to rise by on unseen prompts, whatever the seed


def main() -> int:
    """Run the demo.

    Returns:
        Exit status: 0, 1 when a stage failed or the grade did not rise by the margin, 2 when a parameter is wrong, 130
        when interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m examples.demo.rft", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of data, models and training (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another parameter's value")
    given = parser.parse_args()
    started = time.monotonic()
    try:
        values = params.read(Path(__file__).with_name("rft.yaml")) | {"seed": given.seed}
        for name, _, value in (each.partition("=") for each in given.set):
            changed = yaml.safe_load(value)
            values[name] = values[name] | changed if isinstance(changed, dict) else changed
        # From wherever the demo is started.
        values["grader"] = {"function": str(Path(__file__).parents[2] / values["grader"]["function"])}
        pipeline = rft.build(place)
        arguments, _ = params.check(values, pipeline)
        # A run that fails must not leave an older run's verdict behind.
        for name in ("report.html", "summary.json"):
            (ROOT / name).unlink(missing_ok=True)
        for name in ("run", "policy", "supervised"):
            shutil.rmtree(ROOT / name, ignore_errors=True)
        run_apart("demo data and base model", "inputs", ROOT, "llama", given.seed)
        run_apart("supervised fine-tuning of the policy to start from", "supervised", ROOT, given.seed)
        prepared = time.monotonic()
        outputs = local.run(pipeline, arguments, ROOT / "run")
        summary = summarise(outputs, given.seed, prepared - started, time.monotonic() - started)
    except params.ParameterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except local.StageFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    shutil.copyfile(outputs["report"].path, ROOT / "report.html")
    (ROOT / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    low, high = summary["grade_change_ci"]
    print(
        f"grade on {summary['prompts']} unseen prompts {summary['grade_before']:.3f} -> {summary['grade_after']:.3f} "
        f"(95 % interval of the change {low:.3f} to {high:.3f}), win rate {summary['win_rate']:.3f}, KL "
        f"{summary['kl']:.2f} nats\nreport: {ROOT / 'report.html'}\nsummary: {ROOT / 'summary.json'}"
    )
    if low < MARGIN:
        print(f"the lower end is below the margin of {MARGIN}", file=sys.stderr)
        return 1
    return 0


def summarise(outputs: dict[str, Any], seed: int, prepared: float, total: float) -> dict[str, Any]:
    """What the run was worth on the evaluation's prompts, none of which was trained on."""
    found, training = outputs["evaluator_metrics"].metadata, outputs["grpo_trainer_metrics"].metadata
    rows = [json.loads(line) for line in Path(outputs["side_by_side"].path).read_text(encoding="utf-8").splitlines()]
    scores = [row["scores"]["grader"] for row in rows]
    return {
        "seed": seed,
        "prompts": len(rows),
        "grade_before": fmean(before for before, _, _ in scores),
        "grade_after": fmean(after for _, after, _ in scores),
        "grade_change_ci": [found["grade_change_low"], found["grade_change_high"]],
        "margin": MARGIN,
        "win_rate": found["win_rate"],
        "win_rate_ci": [found["win_rate_low"], found["win_rate_high"]],
        "ties": found["ties"],
        "kl": found["kl"],
        "no_signal": training["no_signal"],
        "promote": bool(found["promote"]),
        "seconds": {
            "prepare": round(prepared, 1),
            "grpo_trainer": round(training["seconds"], 1),
            "total": round(total, 1),
        },
    }


if __name__ == "__main__":
    sys.exit(main())
