"""The folder that a model is published to, written so that a reader finds either a whole model or none.

    manifest.json    first: which model it is (`digest`), and the size of every file
    ...              weights, tokenizer, card
    config.json      last: without it nothing loads the folder

A task that was ended goes on with the files that are not there yet.
"""

import contextlib
import json
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from rlhf.data.file_systems import file_system, redacted
from rlhf.errors import ConfigError, RlhfError
from rlhf.training.checkpoints import raise_if_full

MANIFEST, LAST = "manifest.json", "config.json"

_SCHEMES = ("file", "gs", "gcs", "s3", "s3a")
_EXPECTED = "expected a folder on disk, or its URI: file://, gs://bucket/folder or s3://bucket/folder"
_SCHEME = re.compile(r"([A-Za-z][\w.+:-]+):(//)?")


class Destination:
    """A folder on disk or in an object store.

    Raises:
        ConfigError: The URI is of another kind.
    """

    def __init__(self, uri: str):
        self.name = redacted(uri)
        scheme = _SCHEME.match(uri)
        if scheme and not (scheme[2] and scheme[1] in _SCHEMES):
            hint = ""
            if scheme[1] == "hf":
                hint = "; the Hugging Face Hub is not supported: publish to a folder, and upload that with `hf upload`"
            raise ConfigError(f"publish_to: found {self.name!r}, {_EXPECTED}{hint}")
        if not uri.partition("://")[2 if scheme else 0].strip("/ "):
            raise ConfigError(f"publish_to: found {self.name!r}, which names no folder; {_EXPECTED}")
        self._uri = uri.rstrip("/")

    def check(self) -> str | None:
        """See whether a model can be written here, by writing a file and removing it.

        Returns:
            Digest of the model that is here already, None for none.

        Raises:
            ConfigError: It cannot be written to, or it holds something else than a model that this pipeline published.
        """
        with self._told():
            fs, folder = self._open()
            if files := self._files(fs, folder):
                return self._manifest_among(files, fs, folder)["digest"]
            while isinstance(fs, LocalFileSystem) and not fs.exists(folder):
                folder = folder.rpartition("/")[0] or "/"
            probe = f"{folder.rstrip('/')}/.{uuid.uuid4().hex}"
            fs.pipe_file(probe, b"a test whether this folder can be written to")
            with contextlib.suppress(Exception):  # whoever may not delete may publish
                fs.rm_file(probe)
        return None

    def require_free(self, digest: str) -> None:
        """See that nothing but the model of this digest, or a part of it, is here.

        Raises:
            ConfigError: It holds something else, or cannot be read.
        """
        with self._told():
            fs, folder = self._open()
            self._own(digest, fs, folder)

    def publish(self, model: Path, progress: Callable[[int], None]) -> int:
        """Copy a model folder here, less what is here of it.

        Args:
            model: Holds MANIFEST: `digest`, and `files` as {name: bytes}.
            progress: Told how many bytes are here.

        Returns:
            Files that were copied: 0 where the whole model was here.

        Raises:
            ConfigError: It holds something else, or cannot be written to.
            TrainingError: There is no room.
        """
        manifest = json.loads((model / MANIFEST).read_text(encoding="utf-8"))
        sizes, copied, here = manifest["files"], 0, 0
        with self._told(sum(sizes.values())):
            fs, folder = self._open()
            found, files = self._own(manifest["digest"], fs, folder)
            if found and all(files.get(name) == size for name, size in found["files"].items()):
                return 0
            for name in [MANIFEST, *sorted(sizes, key=lambda name: (name == LAST, name))]:
                if name == MANIFEST or files.get(name) != sizes[name]:
                    _put(fs, str(model / name), f"{folder}/{name}")
                    copied += 1
                here += sizes.get(name, 0)
                progress(here)
        return copied

    def _open(self) -> tuple[Any, str]:
        fs, folder = file_system(self._uri)
        fs.invalidate_cache()
        return fs, folder.rstrip("/")

    def _files(self, fs: Any, folder: str) -> dict[str, int]:
        """{name below the folder: bytes}, less hidden files and what object stores have in place of folders."""
        found = {path[len(folder) :].lstrip("/"): info for path, info in fs.find(folder, detail=True).items()}
        if found.get("", {}).get("size"):
            raise ConfigError(f"publish_to {self.name!r}: found a file; {_EXPECTED}")
        return {
            name: info["size"] for name, info in found.items() if name and not name.rpartition("/")[2].startswith(".")
        }

    def _own(self, digest: str, fs: Any, folder: str) -> tuple[dict[str, Any] | None, dict[str, int]]:
        """The manifest and the files that are here, of the model of this digest or of none."""
        files = self._files(fs, folder)
        if not files:
            return None, files
        manifest = self._manifest_among(files, fs, folder)
        if manifest["digest"] != digest:
            state = "another model" if LAST in files else "an unfinished copy of another model"
            raise ConfigError(
                f"publish_to {self.name!r}: holds {state} ({manifest.get('display_name')!r}, digest "
                f"{manifest['digest']}; this one has {digest}); give every model a folder of its own, or clear this one"
            )
        return manifest, files

    def _manifest_among(self, files: dict[str, int], fs: Any, folder: str) -> dict[str, Any]:
        manifest = None
        if MANIFEST in files:
            with contextlib.suppress(ValueError):
                manifest = json.loads(fs.cat_file(f"{folder}/{MANIFEST}"))
        if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) and "digest" in manifest:
            return manifest
        raise ConfigError(
            f"publish_to {self.name!r}: holds {len(files):,} files ({min(files)!r} among them) that are no model "
            "published by this pipeline, expected an empty folder or a new one; name another, or clear this one"
        )

    @contextlib.contextmanager
    def _told(self, size: int = 0) -> Iterator[None]:
        try:
            yield
        except RlhfError:
            raise
        except Exception as error:  # each store's client has exceptions of its own
            raise_if_full(error, f"publish_to {self.name!r}", size)
            reason = redacted(" ".join(str(error).split()))
            raise ConfigError(
                f"publish_to {self.name!r}: cannot be written to ({type(error).__name__}: {reason}); name a folder "
                "that this task may read, list and write, and see that its credentials are there"
            ) from error


def _put(fs: Any, source: str, target: str) -> None:
    """Copy a file so that it is whole or not there, as object stores do of themselves."""
    if not isinstance(fs, LocalFileSystem):
        fs.put_file(source, target)
        return
    unfinished = f"{target}.unfinished"
    fs.makedirs(target.rpartition("/")[0], exist_ok=True)
    fs.put_file(source, unfinished)
    fs.mv(unfinished, target)
