"""How a stage is started, from a KFP component or from the shell, and how its errors end it."""

import argparse
import contextlib
import inspect
import json
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.config import StageConfig
from rlhf.errors import ConfigError, DataError, RlhfError
from rlhf.progress import say
from rlhf.secrets import resolve


@contextlib.contextmanager
def stage_errors(stage: str) -> Iterator[None]:
    """Turn an error meant for the user into one line and its exit status; anything else keeps its traceback."""
    try:
        yield
    except RlhfError as error:
        say(stage, f"error: {error}")
        raise SystemExit(error.exit_status) from None


class Job:
    """What a running stage says of itself to whoever orchestrates it."""

    def __init__(self, metrics: Any):
        self._metrics = metrics

    def log(self, values: dict[str, float]) -> None:
        """Record metrics; one that is not finite is left out, for JSON cannot carry it."""
        for name, value in values.items():
            if math.isfinite(value):
                self._metrics.log_metric(name, float(value))

    def log_classification(self, metrics: Any) -> None:
        """Record the ROC curve and the confusion matrix that a stage wrote as JSON to a ClassificationMetrics' path."""
        found = json.loads(Path(metrics.path).read_text(encoding="utf-8"))
        if found["roc"]:
            metrics.log_roc_curve(found["roc"]["fpr"], found["roc"]["tpr"], found["roc"]["threshold"])
        metrics.log_confusion_matrix(["first preferred", "second preferred"], found["confusion"])

    def check(self, *artifacts: Any) -> None:
        """See that data folders are what they were when their stage described them.

        Raises:
            DataError: What lies at an artifact's path has another digest than its metadata.
        """
        for artifact in artifacts:
            path = Path(artifact.path, "manifest.json")
            described = artifact.metadata.get("digest")
            if described and path.is_file():
                found = json.loads(path.read_text(encoding="utf-8")).get("digest")
                if found != described:
                    raise DataError(
                        f"{artifact.path}: holds data of digest {found}, data_validation described it as {described}; "
                        "it was written again since, so run the pipeline again with caching off"
                    )

    def describe(self, *artifacts: Any) -> None:
        """Copy the plain fields of a data folder's manifest, or a model's card, into the artifact's metadata."""
        for artifact in artifacts:
            for card in (Path(artifact.path, "manifest.json"), Path(artifact.path, "rlhf.json")):
                if card.is_file():
                    fields = json.loads(card.read_text(encoding="utf-8"))
                    artifact.metadata.update({k: v for k, v in fields.items() if isinstance(v, str | int | float)})


@contextlib.contextmanager
def stage_job(stage: str, metrics: Any, parameters: Mapping[str, str] = {}) -> Iterator[Job]:
    """Run a stage under an orchestrator: its errors as in `stage_errors`, its time and memory among its metrics.

    Args:
        stage: The stage's name, as in `rlhf.<stage>`.
        metrics: Anything with `log_metric(name, value)`. Gains `seconds` (the wall time of the body) and
            `peak_rss_gb` (the process's highest resident memory, in 1e9 bytes).
        parameters: The orchestrator's names of settings that errors name otherwise, by the latter.
    """
    started = time.monotonic()
    say(stage, "started")  # before what takes long: loading libraries and models
    with stage_errors(stage):
        resolve()
        job = Job(metrics)
        try:
            yield job
        except ConfigError as error:
            text = str(error)
            for name, parameter in parameters.items():
                text = text.replace(f"{name}: ", f"{parameter}: ")
            raise ConfigError(text) from error
        # A stage that starts a process on each device is idle itself.
        peak_kib = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        job.log({"seconds": time.monotonic() - started, "peak_rss_gb": peak_kib * 1024 / 1e9})


def merge_options(options: dict[str, Any], where: str, **named: Any) -> dict[str, Any]:
    """The stage's config as one dictionary: `options`, and the settings that have a parameter of their own.

    Raises:
        ConfigError: A setting is in `options` although it has a parameter of its own.
    """
    twice = sorted(set(options) & set(named))
    if twice:
        raise ConfigError(
            "; ".join(
                f"{where}.{name}: found {options[name]!r} in {where}, but it has a parameter of its own: set that one"
                for name in twice
            )
        )
    return {**options, **named}


def main(
    stage: str,
    config: type[StageConfig],
    run: Callable[..., dict[str, float]],
    start: Callable[..., dict[str, float]] | None = None,
) -> None:
    """`python -m rlhf.<stage> --config job.yaml`: run a stage from a file, without KFP.

    The file holds `inputs` and `outputs` (paths, by the names of `run`'s keyword arguments) and `options`, the
    stage's config.

    Args:
        start: What calls `run`, where that is not done in this process; takes what `run` takes.
    """
    import yaml

    from rlhf import yaml12

    parser = argparse.ArgumentParser(prog=f"python -m rlhf.{stage}", description=inspect.getdoc(run))
    parser.add_argument("--config", required=True, metavar="JOB.yaml", help="file with inputs, outputs and options")
    parser.add_argument("--metrics", metavar="FILE.json", help="file to write the metrics to")
    given = parser.parse_args()
    path = given.config
    with stage_errors(stage):
        try:
            job = yaml12.parse(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"--config {path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
        resolve()
        settings, paths = config.parse(_part(job, "options", path), "options"), _paths(job, run, path)
        for output in _part(job, "outputs", path).values():
            Path(output).parent.mkdir(parents=True, exist_ok=True)
        metrics = (start or run)(settings, **paths)
    for name, value in metrics.items():
        say(stage, f"{name} {value:.6g}")
    if given.metrics and metrics:
        Path(given.metrics).write_text(json.dumps(metrics), encoding="utf-8")


def _part(job: Any, name: str, path: str) -> dict[str, Any]:
    part = job.get(name) or {} if isinstance(job, dict) else None
    if not isinstance(part, dict) or set(job) - {"inputs", "outputs", "options"}:
        raise ConfigError(f"--config {path}: expected mappings named inputs, outputs and options, and nothing else")
    return part


def _paths(job: Any, run: Callable[..., Any], path: str) -> dict[str, str]:
    given = {**_part(job, "inputs", path), **_part(job, "outputs", path)}
    known = {p.name: p for p in inspect.signature(run).parameters.values() if p.kind is p.KEYWORD_ONLY}
    missing = [name for name, p in known.items() if p.default is p.empty and name not in given]
    unknown = [name for name in given if name not in known]
    if missing or unknown:
        raise ConfigError(
            f"--config {path}: inputs and outputs must be {', '.join(known)}; "
            f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        )
    return given
