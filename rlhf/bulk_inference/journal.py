"""Completions as they come, kept so that who starts again generates none of them twice.

    <uri>/job.json            what is generated, written once: a journal of something else is refused
    <uri>/part-000000.jsonl   lines, each with the place of its row; never written to again

A part that a killed writer left short ends in half a line, which is not read.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from rlhf.data.file_systems import file_system, redacted
from rlhf.errors import ConfigError, DataError, TrainingError
from rlhf.training.checkpoints import raise_if_full

_JOB = "job.json"

Line = dict[str, Any]


class Journal:
    """The lines of one job by place.

    Args:
        uri: Folder or URI; nothing else may be kept there.
        job: What makes the job this job.

    Raises:
        ConfigError: The URI cannot be used, or holds another job's lines.
        DataError: The store cannot be read.
    """

    def __init__(self, uri: str, job: Mapping[str, Any]):
        self.uri = uri.rstrip("/")
        self.lines: dict[int, Line] = {}
        self._parts = 0
        try:
            self._fs, self._folder = file_system(self.uri)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"checkpoint_dir {redacted(uri)!r}: {' '.join(str(error).split())}; expected a folder or a URI such as "
                "gs://bucket/folder"
            ) from error
        job = json.loads(json.dumps(dict(job)))
        with self._told("read", DataError):
            self._fs.invalidate_cache()
            names = self._names()
            parts = sorted(name for name in names if name.startswith("part-"))
            known = self._is_of(job, bool(parts))
            for name in parts:
                self._read(name)
                self._parts = int(name[len("part-") : -len(".jsonl")]) + 1
        if not known:
            with self._told("written", TrainingError):
                self._write_job(job)

    def write(self, lines: Mapping[int, Line]) -> None:
        """Keep lines by place.

        Raises:
            TrainingError: There is no room, or the store cannot be written.
        """
        text = "".join(json.dumps({"place": place, **line}, ensure_ascii=False) + "\n" for place, line in lines.items())
        with self._told("written", TrainingError):
            self._fs.pipe_file(f"{self._folder}/part-{self._parts:06d}.jsonl", text.encode())
        self._parts += 1
        self.lines.update(lines)

    def remove(self) -> None:
        """Delete what is kept: the job is done."""
        with self._told("cleared", TrainingError):
            for name in self._names():  # what says whose they are goes last: a kill in between leaves a journal
                if name != _JOB:
                    self._fs.rm(f"{self._folder}/{name}")
            self._fs.rm(self._folder, recursive=True)

    def _names(self) -> Sequence[str]:
        try:
            return [str(name).rstrip("/").rpartition("/")[2] for name in self._fs.ls(self._folder, detail=False)]
        except FileNotFoundError:
            return []

    def _is_of(self, job: Mapping[str, Any], has_parts: bool) -> bool:
        """Whether it is known to be this job's; False where a killed writer left nothing that says.

        Raises:
            ConfigError: It is another job's, or there are completions and nothing that says whose.
        """
        try:
            found = json.loads(self._fs.cat_file(f"{self._folder}/{_JOB}"))
        except (FileNotFoundError, ValueError):
            found = None
        if not isinstance(found, dict):
            if not has_parts:
                return False
            raise ConfigError(
                f"{redacted(self.uri)!r}: holds completions, and no {_JOB} that can be read and says of what run; give "
                "every run a checkpoint_dir of its own, or clear this one to start anew"
            )
        names = sorted(name for name in found.keys() | job.keys() if found.get(name) != job.get(name))
        if names:
            differences = redacted(
                "; ".join(f"{name}: {found.get(name)!r} there, {job.get(name)!r} now" for name in names)
            )
            raise ConfigError(
                f"{redacted(self.uri)!r}: holds completions of another run ({differences}); give every run a "
                "checkpoint_dir of its own, or clear this one to start anew"
            )
        return True

    def _write_job(self, job: Mapping[str, Any]) -> None:
        self._fs.makedirs(self._folder, exist_ok=True)
        path, content = f"{self._folder}/{_JOB}", json.dumps(job).encode()
        if not isinstance(self._fs, LocalFileSystem):  # an object is there as a whole or not at all
            return self._fs.pipe_file(path, content)
        unfinished = f"{self._folder}/.{_JOB}"
        self._fs.pipe_file(unfinished, content)
        os.replace(unfinished, path)

    def _read(self, name: str) -> None:
        for text in self._fs.cat_file(f"{self._folder}/{name}").decode(errors="replace").split("\n"):
            try:
                line = json.loads(text)
                self.lines[line.pop("place")] = line
            except ValueError:
                return  # the end, or where a killed writer left off

    @contextlib.contextmanager
    def _told(self, what: str, kind: type[Exception]) -> Iterator[None]:
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:  # each store's client has exceptions of its own
            where = f"completions kept in {redacted(self.uri)!r}"
            raise_if_full(error, where)
            reason = redacted(" ".join(str(error).split()))
            raise kind(
                f"{where}: cannot be {what} ({type(error).__name__}: {reason}); give a checkpoint_dir that this "
                "machine may write to"
            ) from error
