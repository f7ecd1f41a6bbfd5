"""A judge's answers, kept so that no question is put to it twice, by a run that was killed and started again least."""

import json
import threading
import uuid
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from rlhf.data.file_systems import file_system, redacted
from rlhf.errors import ConfigError, DataError

ANSWERS_A_FILE = 20  # in a store whose files cannot be added to: as many are asked again at most after a kill


class Answers:
    """Answers by the digest of what was asked, as JSON lines (`key`, `better`) in a folder or store.

    Each run adds files of its own, so that what a killed one left half-written stands at an end, and several may run at
    once. On disk every answer is written as it comes; in a store, `ANSWERS_A_FILE` of them at a time.
    """

    def __init__(self, uri: str, valid: frozenset[str]):
        """Read what earlier runs were answered; a line that is not whole, or answers otherwise, was never answered.

        Args:
            uri: Folder or URI; empty keeps nothing.
            valid: What an answer can be.

        Raises:
            ConfigError: The URI cannot be used.
            DataError: The store cannot be read.
        """
        self.uri, self._known, self._waiting, self._lock = uri.rstrip("/"), {}, [], threading.Lock()
        self._file: Any = None
        self._written = 0
        if not uri:
            return
        self._run = uuid.uuid4().hex
        try:
            self._fs, self._folder = file_system(self.uri)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"judge.cache {redacted(uri)!r}: {redacted(' '.join(str(error).split()))}; expected a folder or a URI "
                "such as gs://bucket/folder"
            ) from error
        try:
            for path in self._fs.find(self._folder, maxdepth=1):
                if path.endswith(".jsonl"):
                    self._known |= _read(self._fs.cat_file(path), valid)
        except OSError as error:
            raise self._failed("read", error) from error

    def get(self, key: str) -> str | None:
        return self._known.get(key)

    def add(self, key: str, better: str) -> None:
        """Keep an answer; from any thread.

        Raises:
            DataError: It cannot be written.
        """
        with self._lock:
            self._known[key] = better
            if not self.uri:
                return
            self._waiting.append(json.dumps({"key": key, "better": better}) + "\n")
            if isinstance(self._fs, LocalFileSystem) or len(self._waiting) >= ANSWERS_A_FILE:
                self._write()

    def close(self) -> None:
        """Write what is left.

        Raises:
            DataError: It cannot be written.
        """
        with self._lock:
            if self._waiting:
                self._write()
            if self._file is not None:
                self._file.close()

    def _write(self) -> None:
        lines, self._waiting = "".join(self._waiting).encode(), []
        try:
            if isinstance(self._fs, LocalFileSystem):
                if self._file is None:
                    self._fs.makedirs(self._folder, exist_ok=True)
                    self._file = open(f"{self._folder}/{self._run}.jsonl", "ab", buffering=0)  # noqa: SIM115
                self._file.write(lines)
            else:
                self._fs.pipe_file(f"{self._folder}/{self._run}-{self._written:05}.jsonl", lines)
                self._written += 1
        except OSError as error:
            raise self._failed("written", error) from error

    def _failed(self, what: str, error: OSError) -> DataError:
        reason = redacted(" ".join(str(error).split())) or type(error).__name__
        return DataError(f"judge.cache {redacted(self.uri)!r}: cannot be {what} ({reason})")


def _read(content: bytes, valid: frozenset[str]) -> dict[str, str]:
    found = {}
    for line in content.splitlines():
        try:
            answer = json.loads(line)
        except ValueError:  # UnicodeDecodeError too
            continue
        key, better = (answer.get("key"), answer.get("better")) if isinstance(answer, dict) else (None, None)
        if isinstance(key, str) and isinstance(better, str) and better in valid:
            found[key] = better
    return found
