"""Whether what lies under a run's URIs is what lay there before, without reading it."""

import hashlib
import secrets
from collections.abc import Iterator
from typing import Any

from rlhf.data.file_systems import file_system, redacted
from rlhf.data.sources import Source
from rlhf.progress import say

STAGE = "data_validation"
# What stores say of a file that changes with its content, the surest first: the first that is there is taken, so that
# what was uploaded again unchanged is known for the same.
_MARKS = ("md5hash", "content_md5", "digest", "blob_id", "etag", "generation", "last_modified", "lastmodified", "mtime")


def fingerprint(sources: dict[str, str], model: str = "", options: Any = None) -> str:
    """A digest of names, sizes, and checksums or times of the files that the sources name.

    Args:
        sources: {parameter: URIs}; empty ones are left out.
        model: What the run tunes; its files count where it is a URI of a folder. A Hugging Face id counts by name.
        options: Of stages, by their names. The files of graders, wherever in there, count; where their text travels
            with the options, it counts there.

    Returns:
        64 hex digits; others each time where a store does not say enough of a file to tell, or is not there, so that
        nothing old is taken for new. What is wrong there is data_validation's to say.
    """
    whole = hashlib.sha256(b"" if "://" in model else model.encode())
    try:
        for parameter, uris in sorted(sources.items()):
            for name, info in Source(uris, parameter).infos() if uris else ():
                whole.update(f"{parameter} {name} {_identity(name, info)}\n".encode())
        for name, info in _folder(model) if "://" in model else ():
            whole.update(f"model {name} {_identity(name, info)}\n".encode())
        for place in sorted(set(_grader_files(options))):
            fs, path = file_system(place)
            whole.update(f"grader {place} {_identity(place, fs.info(path))}\n".encode())
    except Exception as error:  # each file system's client has exceptions of its own
        said = redacted(" ".join(str(error).split()))
        say(STAGE, f"whether the data has changed cannot be told, so it is read again: {said}")
        return secrets.token_hex(32)
    return whole.hexdigest()


class _Unknown(Exception):
    """A store says nothing that would tell one content of a file from another."""


def _folder(uri: str) -> list[tuple[str, dict[str, Any]]]:
    fs, folder = file_system(uri)
    files = sorted(fs.find(folder, detail=True).items())
    if not files:
        raise _Unknown(f"{uri}: no such folder")
    return files


def _grader_files(options: Any) -> Iterator[str]:
    """Paths and URIs of the files that functions of graders are in: `function` is FILE.py or FILE.py:name."""
    if isinstance(options, dict):
        function = options.get("function")
        if isinstance(function, str) and not options.get("source"):
            place = function if function.endswith(".py") else function.rpartition(":")[0]
            if place.endswith(".py"):
                yield place
        options = list(options.values())
    if isinstance(options, list):
        for each in options:
            yield from _grader_files(each)


def _identity(name: str, info: dict[str, Any]) -> str:
    known = {str(key).lower().replace("-", "_"): value for key, value in info.items()}
    for mark in _MARKS:
        if known.get(mark):
            return f"{known.get('size')} {mark}={known[mark]}"
    raise _Unknown(f"{name}: its store says neither a checksum nor a time")
