"""What is measured: each in a process of its own."""

import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from benchmarks.validation.loop import validate
from rlhf.data.intake import Intake
from rlhf.data.sources import Source
from rlhf.data.template import Template
from rlhf.data_validation.canonical import write_canonical
from rlhf.data_validation.config import DataValidationConfig
from rlhf.data_validation.index import Index
from rlhf.data_validation.rejects import Rejects
from rlhf.data_validation.stage import run, threads_at_work

SUFFIX = "\n\nTL;DR:"


def ours(source: Path, target: Path) -> int:
    """Rows checked and written by the stage's own functions; the rows read."""
    target.mkdir()
    intake = Intake(Source(str(source), "preference_dataset"), "preferences", None)
    with threads_at_work() as threads, ThreadPoolExecutor(threads) as pool, Index(target) as index:
        rejects = Rejects(target / "quarantine", pool)

        def parts():
            for part in intake.parts(pool, threads + 2):
                rejects.add(part.quarantined, "preference_dataset")
                yield part

        template = Template(suffix=SUFFIX)
        written = write_canonical(
            "preferences", "preferences", parts(), target / "preferences", template, 0.1, 0, index, pool, threads + 2
        )
        rejects.finish()
    return written.manifest.rows + rejects.rows


def loop(source: Path, target: Path) -> int:
    """The same by a plain loop; the rows read."""
    return sum(validate(source, target, Template(suffix=SUFFIX)))


def stage(source: Path, target: Path) -> int:
    """The whole stage with every check and its report; the rows of the preferences."""
    model, prompts = target / "model", target / "prompts.jsonl"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "model.safetensors").touch()
    prompts.write_text("".join(json.dumps({"input_text": f"Prompt {n}.{SUFFIX}"}) + "\n" for n in range(1000)))
    options = {"preference_dataset": str(source), "prompt_dataset": str(prompts), "large_model_reference": str(model)}
    outputs = ("preferences", "prompts", "evaluation", "demonstrations", "quarantine", "report", "findings")
    metrics = run(DataValidationConfig.parse(options), **{name: target / name for name in outputs})
    return int(metrics["rows_read"]) - 1000


def measure(what: Callable[[Path, Path], int], source: Path, folder: Path) -> tuple[int, float, float]:
    """Rows, seconds (imports aside), and peak resident memory in 1e9 bytes, of a process of its own."""
    os.sync()  # what others left to be written would be written on this one's time
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_run, what, source, folder).result()


def _run(what: Callable[[Path, Path], int], source: Path, folder: Path) -> tuple[int, float, float]:
    target = Path(tempfile.mkdtemp(dir=folder))
    started = time.perf_counter()
    rows = what(source, target / "out")
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return rows, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
