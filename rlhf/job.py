"""How a stage is started, from a KFP component or from the shell, and how its errors end it."""

import argparse
import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from rlhf.config import StageConfig
from rlhf.errors import ConfigError, RlhfError
from rlhf.progress import say


@contextlib.contextmanager
def stage_errors(stage: str) -> Iterator[None]:
    """Turn an error meant for the user into one line and exit status 1; anything else keeps its traceback."""
    try:
        yield
    except RlhfError as error:
        say(stage, f"error: {error}")
        raise SystemExit(1) from None


def main(stage: str, config: type[StageConfig], run: Callable[..., dict[str, float]]) -> None:
    """`python -m rlhf.<stage> --config job.yaml`: run a stage from a file, without KFP.

    The file holds `inputs` and `outputs` (paths, by the names of `run`'s keyword arguments) and `options`, the
    stage's config.
    """
    import yaml

    parser = argparse.ArgumentParser(prog=f"python -m rlhf.{stage}", description=inspect.getdoc(run))
    parser.add_argument("--config", required=True, metavar="JOB.yaml", help="file with inputs, outputs and options")
    path = parser.parse_args().config
    with stage_errors(stage):
        try:
            with open(path, encoding="utf-8") as file:
                job = yaml.safe_load(file)
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"--config {path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
        metrics = run(config.parse(_part(job, "options", path), "options"), **_paths(job, run, path))
    for name, value in metrics.items():
        say(stage, f"{name} {value:.6g}")


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


def limit_threads() -> None:
    """Use the cores this process may run on, no more (a container's limit, not the machine's count)."""
    import os

    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
