"""Checkpoints of a training run at any URI.

    <uri>/step-00000100/...            files of the run's state
    <uri>/step-00000100/complete.json  written last: the step, what run it belongs to, and the size of every file

A folder without `complete.json`, or with a file of another size, is what a killed writer left, and is never read.
"""

import contextlib
import errno
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.data.file_systems import file_system, redacted
from rlhf.errors import ConfigError, DataError, Stopped, TrainingError
from rlhf.paths import below
from rlhf.training import processes
from rlhf.training.config import TrainerConfig

COMPLETE = "complete.json"
KEEP = "RLHF_KEEP_CHECKPOINTS"
"""Environment variable: set by whoever removes them later, once what the run wrote is where it belongs."""
# Options that may be others when a run goes on: they change nothing that was trained, or its rounding alone.
_MAY_CHANGE = {
    *("checkpoint_dir", "checkpoint_every", "checkpoint_minutes"),
    *("max_skipped_steps", "eval_batch_size", "save", "base_model"),
    *("microbatch_size", "microbatch_tokens", "rollout_tokens", "logits_at_once", "tokens_per_forward"),
    *("activation_checkpointing", "sample_every", "max_bad_rewards", "stop_on_alarm"),
}
_MAY_CHANGE_OF_GRADERS = {"timeout_seconds", "memory_gb", "retries", "concurrency"}
_STEP = re.compile(r"step-(\d{8})")


class Checkpoints:
    """The checkpoints of one run; the newest is kept.

    Args:
        uri: Folder or URI; nothing else may be kept there.
        identity: What makes a run this run: options, data, base model. A checkpoint of another run is refused.
        minutes: After which one is due.

    Raises:
        ConfigError: The URI cannot be used.
    """

    def __init__(self, uri: str, identity: Mapping[str, Any], minutes: float = math.inf):
        self.uri = uri.rstrip("/")
        self._seconds, self._last = 60 * minutes, time.monotonic()
        self._identity = json.loads(json.dumps(dict(identity)))
        try:
            self._fs, self._folder = file_system(self.uri)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"checkpoint_dir {redacted(uri)!r}: {' '.join(str(error).split())}; expected a folder or a URI such as "
                "gs://bucket/folder"
            ) from error

    def are_due(self) -> bool:
        """Whether the last one, or the run's beginning, is `minutes` ago, by the first process's clock; all ask."""
        return processes.gather(time.monotonic() - self._last >= self._seconds)[0]

    def fetch_latest(self, folder: Path) -> int | None:
        """Copy the newest complete checkpoint into `folder`.

        Returns:
            Its step, None where there is none.

        Raises:
            ConfigError: It belongs to another run, or is not there for every process.
            DataError: The store cannot be read.
        """
        found = self._fetch_latest(folder)
        steps = processes.gather(found)
        if len(set(steps)) > 1:
            raise ConfigError(
                f"checkpoint_dir {redacted(self.uri)!r}: processes find checkpoints of different steps there "
                f"({', '.join(str(step) for step in steps)}); nodes that train together need a URI, or a folder on a "
                "volume that all of them mount"
            )
        return found

    def _fetch_latest(self, folder: Path) -> int | None:
        with self._told("read"):
            for step in sorted(self._steps(), reverse=True):
                record = self._complete(step)
                if record is None:
                    continue
                self._require_same_run(record["identity"])
                for name in record["files"]:
                    target = below(folder, name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self._fs.get_file(f"{self._path(step)}/{name}", str(target))
                return step
        return None

    def save(self, folder: Path, step: int) -> None:
        """Store the files below `folder` as the checkpoint of `step`, then remove those before it.

        Raises:
            TrainingError: There is no room, or the store cannot be written.
        """
        files = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        target = self._path(step)
        with self._told("written", sum(files.values())):
            earlier = self._steps()
            if step in earlier:
                self._fs.rm(target, recursive=True)
            self._fs.makedirs(target, exist_ok=True)
            for name in files:
                if "/" in name:
                    self._fs.makedirs(f"{target}/{name.rpartition('/')[0]}", exist_ok=True)
                self._fs.put_file(str(folder / name), f"{target}/{name}")
            record = {"step": step, "identity": self._identity, "files": files}
            self._fs.pipe_file(f"{target}/{COMPLETE}", json.dumps(record).encode())
            for old in earlier - {step}:
                self._fs.rm(self._path(old), recursive=True)
        self._last = time.monotonic()

    def remove(self) -> None:
        """Delete every checkpoint, for the run is over; unless `KEEP` is set."""
        if os.environ.get(KEEP):
            return
        with self._told("cleared"):
            for step in self._steps():
                self._fs.rm(self._path(step), recursive=True)

    def _steps(self) -> set[int]:
        self._fs.invalidate_cache()
        try:
            names = [str(name).rstrip("/").rpartition("/")[2] for name in self._fs.ls(self._folder, detail=False)]
        except FileNotFoundError:
            return set()
        return {int(found[1]) for name in names if (found := _STEP.fullmatch(name))}

    def _complete(self, step: int) -> dict[str, Any] | None:
        path = self._path(step)
        try:
            record = json.loads(self._fs.cat_file(f"{path}/{COMPLETE}"))
            sizes = {name: self._fs.size(f"{path}/{name}") for name in record["files"]}
            return record if sizes == record["files"] and record["step"] == step else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _require_same_run(self, found: Any) -> None:
        found = found if isinstance(found, dict) else {}
        names = sorted(
            name for name in found.keys() | self._identity.keys() if found.get(name) != self._identity.get(name)
        )
        if names:
            differences = redacted(
                "; ".join(f"{name}: {found.get(name)!r} there, {self._identity.get(name)!r} now" for name in names)
            )
            raise ConfigError(
                f"checkpoint_dir {redacted(self.uri)!r}: holds a checkpoint of another run ({differences}); give every "
                "run a folder of its own, or clear this one to start anew"
            )

    def _path(self, step: int) -> str:
        return f"{self._folder}/step-{step:08d}"

    @contextlib.contextmanager
    def _told(self, what: str, size: int = 0) -> Iterator[None]:
        try:
            yield
        except (ConfigError, TrainingError):
            raise
        except Exception as error:  # each store's client has exceptions of its own
            raise_if_full(error, f"checkpoint_dir {redacted(self.uri)!r}", size)
            kind = DataError if what == "read" else TrainingError
            reason = redacted(" ".join(str(error).split()))
            raise kind(
                f"checkpoint_dir {redacted(self.uri)!r}: cannot be {what} ({type(error).__name__}: {reason}); give a "
                "folder or URI that this machine may write to"
            ) from error


def checkpoints_of(
    stage: str, config: TrainerConfig, *, data: str, template: str, starts_from: str, rewarded_by: Sequence[str] = ()
) -> Checkpoints | None:
    """The checkpoints that a stage's options ask for; None where they ask for none.

    Args:
        data, template: Digests of the dataset and of the prompt template.
        starts_from: `rlhf.models.loading.Source.fingerprint` of the model that is trained.
        rewarded_by: The same of a reward model, and `rlhf.rewards.groups.fingerprint` of graders.

    Raises:
        ConfigError: `config.checkpoint_dir` cannot be used.
    """
    if not config.checkpoint_dir:
        return None
    options = _without(_MAY_CHANGE_OF_GRADERS, config.model_dump(mode="json", exclude=_MAY_CHANGE))
    known = {"data_digest": data, "template_digest": template, "starts_from": starts_from}
    if rewarded_by:
        known["rewarded_by"] = list(rewarded_by)
    return Checkpoints(config.checkpoint_dir, {"stage": stage, **options, **known}, config.checkpoint_minutes)


def _without(names: set[str], options: Any) -> Any:
    """Options, and those in them, without some."""
    if isinstance(options, list):
        return [_without(names, each) for each in options]
    if isinstance(options, dict):
        return {name: _without(names, value) for name, value in options.items() if name not in names}
    return options


def stopped(after: str, checkpoints: Checkpoints | None) -> Stopped:
    """What ends a run that SIGTERM came to.

    Args:
        after: The last step that was finished, in words.
        checkpoints: Where it was kept, if anywhere.
    """
    kept = "no checkpoint_dir is set, so it is lost"
    if checkpoints is not None:
        kept = f"a checkpoint of it is in {redacted(checkpoints.uri)}"
    return Stopped(f"stopped by SIGTERM after {after}; {kept}")


def raise_if_full(error: BaseException, where: str, size: int = 0) -> None:
    """Raise TrainingError where `error` says that a disk is full, and return otherwise.

    Args:
        where: What was being written.
        size: Bytes it takes, where known.
    """
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    # safetensors' and torch's own errors carry no number.
    if full or "No space left" in str(error) or "os error 28" in str(error):
        need = f" for {size / 1e9:.3g} GB" if size else ""
        raise TrainingError(
            f"{where}: no space left{need}; free some or name another disk, then run again: what was complete before "
            "is kept, what is half-written is never read"
        ) from error
