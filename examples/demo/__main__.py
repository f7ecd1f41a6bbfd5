"""The demo: made-up posts, tiny base models, the whole pipeline, and what it was worth (`make demo`)."""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from components.images import ImageError, local_images
from examples.demo import gold as gold_scores
from examples.demo import posts
from pipelines import local, params, rlhf
from pipelines.placement.local import in_containers, place

ROOT = Path("build/demo")  # as in the parameter files beside this one
UNLEASHED = 2  # times as many updates without the KL penalty: it takes some to find what the reward model overrates


def main() -> int:
    """Run the demo.

    Returns:
        Exit status: 0, 1 when a stage failed, 2 when a parameter is wrong, 130 when interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--arch", choices=("llama", "t5"), default="llama", help="policy (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of data, models and training (default: %(default)s)")
    parser.add_argument(
        "--kl", type=float, help="kl_coeff (default: the parameter file's); 0: twice the updates, over-optimised"
    )
    parser.add_argument("--runner", choices=("process", "docker"), default="process", help="default: %(default)s")
    parser.add_argument("--registry", default="", help="of the images, with --runner docker")
    parser.add_argument("--tag", default="", help="of the images, with --runner docker (default: the commit)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another parameter's value")
    given = parser.parse_args()
    started = time.monotonic()
    try:
        values = params.read(Path(__file__).with_name(f"{given.arch}.yaml")) | {"seed": given.seed}
        if given.kl is not None:
            values["kl_coeff"] = given.kl
        if given.kl == 0:
            values["reinforcement_learning_train_steps"] *= UNLEASHED
        for name, _, value in (each.partition("=") for each in given.set):
            changed = yaml.safe_load(value)
            values[name] = values[name] | changed if isinstance(changed, dict) else changed
        images = built_images(given.registry, given.tag) if given.runner == "docker" else None
        pipeline = rlhf.build(in_containers(images) if images else place)
        arguments, _ = params.check(values, pipeline)
        forget_last_run()
        make_inputs(given.arch, given.seed)
        made = time.monotonic()
        outputs = local.run(pipeline, arguments, ROOT / "run", docker_runner() if images else None)
        ran = time.monotonic()
        probe_reward_model(outputs)
        probed = time.monotonic()
        summary = conclude(outputs, made - started, ran - made, probed - ran)
    except (params.ParameterError, ImageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except local.StageFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    evaluation, reward_model = summary["evaluation"], summary["reward_model"]
    print(
        f"gold score {evaluation['gold_before']:.2f} -> {evaluation['gold_after']:.2f} of 5, "
        f"gold win rate {evaluation['gold_win_rate']}, KL {summary['ppo']['kl']:.2f} nats, reward model accuracy "
        f"{reward_model['accuracy_clean']:.3f} ({reward_model['accuracy_prompt_swapped']:.3f} with posts exchanged, "
        f"{min(reward_model['one_fact'].values()):.3f} against one fact swapped of the kind it sees least)\n"
        f"report: {ROOT / 'report.html'}\nsummary: {ROOT / 'summary.json'}"
    )
    return 0


def built_images(registry: str, tag: str) -> dict[str, str]:
    """The stages' images on this machine.

    Raises:
        ImageError: Not all are there.
    """
    from containers.build import default_tag, git
    from pipelines.containers import check_images

    images = local_images(registry, tag or default_tag(dirty=git("status", "--porcelain") != ""))
    check_images(images.values())
    return images


def docker_runner() -> Any:
    """Runs stages in containers that read what the demo made."""
    from pipelines.containers import runner

    for weights in ROOT.glob("*/*.safetensors"):
        weights.chmod(0o644)  # safetensors gives files to their owner alone, and who is root here is not so in there
    return runner([ROOT])


def forget_last_run() -> None:
    """A run that fails must not leave an older run's verdict behind."""
    for name in ("report.html", "summary.json", "one_fact.jsonl"):
        (ROOT / name).unlink(missing_ok=True)
    shutil.rmtree(ROOT / "run", ignore_errors=True)


def make_inputs(arch: str, seed: int) -> None:
    """Write data, gold facts and base models under `ROOT`."""
    run_apart("demo data and base models", "inputs", ROOT, arch, seed)


def probe_reward_model(outputs: dict[str, Any]) -> None:
    """Write under `ROOT` how the reward model scores summaries with one fact swapped."""
    paths = [outputs[name].path for name in ("side_by_side", "reward_model")]
    run_apart("one fact swapped", "one_fact", ROOT / "gold", *paths, ROOT / "one_fact.jsonl")


def run_apart(what: str, module: str, *arguments: object) -> None:
    """Run a module of the demo in a process of its own, as a stage.

    Raises:
        local.StageFailed: It failed; the message ends in what it wrote.
    """
    print(f"{what}: started", flush=True)
    started = time.monotonic()
    command = [sys.executable, "-m", f"examples.demo.{module}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise local.StageFailed(f"{what}: failed with status {done.returncode}:\n{done.stderr}")
    print(f"{what}: finished in {time.monotonic() - started:.1f} s", flush=True)


def conclude(
    outputs: dict[str, Any], inputs_seconds: float, run_seconds: float, probe_seconds: float
) -> dict[str, Any]:
    """Write `report.html` and `summary.json` from the pipeline's outputs, the gold facts and the probe."""
    from rlhf.report.page import append_section

    gold = gold_scores.measure(
        posts.load_gold(ROOT / "gold"),
        preferences=ROOT / "data" / "preferences.jsonl",
        one_fact_scores=ROOT / "one_fact.jsonl",
        **{name: Path(outputs[name].path) for name in ("scores", "samples", "side_by_side")},
    )
    metrics = {
        name.removesuffix("_metrics"): _of_all(output) if isinstance(output, list) else output.metadata
        for name, output in outputs.items()
        if name.endswith("_metrics")
    }
    reward, ppo, evaluation = metrics["reward_trainer"], metrics["ppo_trainer"], metrics["evaluator"]
    stages = {name: round(values["seconds"], 2) for name, values in metrics.items()}
    own_rss_gb = psutil.Process().memory_info().rss / 1e9
    summary = {
        "reward_model": {
            "accuracy": reward["accuracy"],
            "best_possible": gold.best_possible,
            "accuracy_clean": gold.clean.rate,
            "accuracy_prompt_swapped": gold.clean_swapped.rate,
            "one_fact": {kind: gold.one_fact[kind].rate for kind in posts.FACTS},
        },
        "ppo": {name: ppo[name] for name in ("reward_before", "reward_after", "kl", "alarms")},
        "evaluation": {
            **{name: evaluation.get(name) for name in ("rouge_l_before", "rouge_l_after", "win_rate")},
            "win_rate_ci": [evaluation.get("win_rate_low"), evaluation.get("win_rate_high")],
            "ties": evaluation["ties"],
            "gold_win_rate": gold.wins.rate,
            "gold_win_rate_ci": [gold.wins.low, gold.wins.high],
            "gold_ties": gold.wins.ties,
            "gold_before": gold.before,
            "gold_after": gold.after,
            "over_optimised": gold.over_optimised,
            "promote": bool(evaluation["promote"]),
        },
        "seconds": {
            "demo_inputs": round(inputs_seconds, 2),
            **stages,
            "orchestration": round(run_seconds - sum(stages.values()), 2),
            "one_fact": round(probe_seconds, 2),
            "total": round(inputs_seconds + run_seconds + probe_seconds, 2),
        },
        "peak_rss_gb": round(own_rss_gb + max(values["peak_rss_gb"] for values in metrics.values()), 2),
    }
    page = Path(outputs["report"].path).read_text(encoding="utf-8")
    page = append_section(page, gold_scores.section(gold, ppo["kl"]))
    (ROOT / "report.html").write_text(page, encoding="utf-8")
    (ROOT / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _of_all(parts: list[Any]) -> dict[str, float]:
    """What tasks that ran side by side took together."""
    metrics = [part.metadata for part in parts]
    return {
        "seconds": max(each["seconds"] for each in metrics),
        "peak_rss_gb": sum(each["peak_rss_gb"] for each in metrics),
    }


if __name__ == "__main__":
    sys.exit(main())
