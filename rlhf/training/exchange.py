"""How machines that share no disk hand files to each other: a folder in an object store, or on a volume they all mount.

    <uri>/job.json             what to run, and how: inputs, outputs, options
    <uri>/awaited.json         written again and again, as long as somebody waits for the outputs
    <uri>/inputs/<name>/...    what the stage reads
    <uri>/outputs/<name>/...   what it made
    <uri>/complete.json        written last: metrics, and the size of every file of the outputs

Outputs without `complete.json`, or with a file of another size, are what a killed writer left, and are never taken.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.data.file_systems import file_system, redacted
from rlhf.errors import ConfigError, DataError, TrainingError
from rlhf.paths import below
from rlhf.training.checkpoints import raise_if_full

JOB, AWAITED, COMPLETE = "job.json", "awaited.json", "complete.json"
Files = dict[str, int]
"""Sizes by path below a folder; a file by itself has the path ""."""


class Exchange:
    """A folder that all machines of one run reach, and nobody else.

    Args:
        uri: Folder or URI.

    Raises:
        ConfigError: The URI cannot be used.
    """

    def __init__(self, uri: str):
        self.uri = uri.rstrip("/")
        try:
            self._fs, self._folder = file_system(self.uri)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"exchange {redacted(uri)!r}: {' '.join(str(error).split())}; expected a folder on a volume that every "
                "pod mounts, or a URI such as s3://bucket/folder"
            ) from error

    def offer(self, job: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        """Send a job, and the files and folders that it reads, in place of whatever was here.

        Raises:
            TrainingError: The folder cannot be written.
        """
        with self._told("written"):
            self.remove()
            files = {name: self._put(Path(path), f"inputs/{name}") for name, path in inputs.items()}
            self._write(JOB, {**job, "files": files})

    def take_job(self, folder: Path) -> dict[str, Any]:
        """The job that was offered, its inputs in `folder` under their names.

        Raises:
            DataError: The folder cannot be read, or has no job.
        """
        with self._told("read"):
            job = self._read(JOB)
            for name, files in job.pop("files").items():
                self._get(f"inputs/{name}", files, below(folder, name))
                job["inputs"][name] = str(folder / name)
            return job

    def beat(self) -> bool:
        """Say that somebody waits for what the job makes.

        Returns:
            Whether it could be written; it may be the next time.
        """
        with contextlib.suppress(Exception):
            self._write(AWAITED, {"at": time.time()})
            return True
        return False

    def last_beat(self) -> float | None:
        """What was written last, which is another at every beat; None where it cannot be read now."""
        with contextlib.suppress(Exception):
            return self._read(AWAITED)["at"]
        return None

    def hand_back(self, outputs: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """Send what a job made.

        Raises:
            TrainingError: The folder cannot be written.
        """
        with self._told("written"):
            files = {name: self._put(Path(path), f"outputs/{name}") for name, path in outputs.items()}
            self._write(COMPLETE, {"metrics": dict(metrics), "files": files})

    def take_back(self, outputs: Mapping[str, str]) -> dict[str, float]:
        """Put what a job made where it belongs.

        Returns:
            The job's metrics.

        Raises:
            DataError: The folder cannot be read, or its content is not complete.
        """
        with self._told("read"):
            try:
                record = self._read(COMPLETE)
            except FileNotFoundError:
                raise DataError(
                    f"exchange {redacted(self.uri)!r}: its nodes handed nothing back; what they said is above"
                ) from None
            for name, files in record["files"].items():
                self._get(f"outputs/{name}", files, Path(outputs[name]))
            return record["metrics"]

    def remove(self) -> None:
        """Delete all of it."""
        self._fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._folder, recursive=True)

    def _put(self, path: Path, name: str) -> Files | None:
        """None where there is nothing: a stage need not write every output."""
        if not path.exists():
            return None
        found = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        files = {str(file.relative_to(path)) if file != path else "": file.stat().st_size for file in found}
        for file in files:
            target = self._at(name, file)
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(path / file if file else path), target)
        return files

    def _get(self, name: str, files: Files | None, path: Path) -> None:
        if files is None:
            return
        if "" not in files:
            path.mkdir(parents=True, exist_ok=True)
        for file, size in files.items():
            target = below(path, file)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(self._at(name, file), str(target))
            if target.stat().st_size != size:
                raise DataError(
                    f"exchange {redacted(self.uri)!r}: {self._at(name, file)} has {target.stat().st_size} bytes of "
                    f"{size}; something else writes to that folder, so give it one of its own"
                )

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        self._fs.makedirs(self._folder, exist_ok=True)
        self._fs.pipe_file(f"{self._folder}/{name}", json.dumps(content).encode())

    def _read(self, name: str) -> dict[str, Any]:
        self._fs.invalidate_cache()
        return json.loads(self._fs.cat_file(f"{self._folder}/{name}"))

    def _at(self, name: str, file: str) -> str:
        return f"{self._folder}/{name}/{file}" if file else f"{self._folder}/{name}"

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except (DataError, TrainingError):
            raise
        except Exception as error:  # each store's client has exceptions of its own
            raise_if_full(error, f"exchange {redacted(self.uri)!r}")
            kind = DataError if what == "read" else TrainingError
            raise kind(
                f"exchange {redacted(self.uri)!r}: cannot be {what} ({type(error).__name__}: "
                f"{redacted(' '.join(str(error).split()))}); every node needs a folder on a volume that all of them "
                "mount, or a store that it has credentials for"
            ) from error
