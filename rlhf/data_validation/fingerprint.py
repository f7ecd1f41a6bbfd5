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
        model: What the run tunes; its files count where it is the URI or the absolute path of a folder. A Hugging
            Face id counts by name.
        options: Of stages, by their names. What they name of files counts, wherever in there: those of graders, whose
            text counts there where it travels with the options; those of `base_model` and of a built-in grader's
            `model`, as of `model`; and of `others`.

    Returns:
        64 hex digits; others each time where a store does not say enough of a file to tell, or is not there, so that
        nothing old is taken for new. What is wrong there is data_validation's to say.
    """
    whole = hashlib.sha256(b"" if _is_place(model) else model.encode())
    try:
        for parameter, uris in sorted(sources.items()):
            for name, info in Source(uris, parameter).infos() if uris else ():
                whole.update(f"{parameter} {name} {_identity(name, info)}\n".encode())
        for name, info in _files(model) if _is_place(model) else ():
            whole.update(f"model {name} {_identity(name, info)}\n".encode())
        for place in sorted(set(_named(options))):
            for name, info in _files(place):
                whole.update(f"option {name} {_identity(name, info)}\n".encode())
    except Exception as error:  # each file system's client has exceptions of its own
        said = redacted(" ".join(str(error).split()))
        say(STAGE, f"whether the data has changed cannot be told, so it is read again: {said}")
        return secrets.token_hex(32)
    return whole.hexdigest()


class _Unknown(Exception):
    """A store says nothing that would tell one content of a file from another."""


def _is_place(model: str) -> bool:
    """Whether a model is named by where it lies, so that its name says nothing of what lies there."""
    return "://" in model or model.startswith("/")


def _files(place: str) -> list[tuple[str, dict[str, Any]]]:
    """A file, or those of a folder."""
    fs, path = file_system(place)
    if fs.isfile(path):
        return [(place, fs.info(path))]
    files = sorted(fs.find(path, detail=True).items())
    if not files:
        raise _Unknown(f"{place}: no such file or folder")
    return files


def _named(options: Any) -> Iterator[str]:
    """Paths and URIs that options name: of graders' functions (FILE.py or FILE.py:name), models and predictions."""
    if isinstance(options, dict):
        model, others = options.get("base_model"), options.get("others")
        if options.get("builtin") and isinstance(options.get("options"), dict):
            model = options["options"].get("model")
        if isinstance(model, str) and _is_place(model):
            yield model
        if isinstance(others, dict):
            yield from (place for place in others.values() if isinstance(place, str))
        function = options.get("function")
        if isinstance(function, str) and not options.get("source"):
            place = function if function.endswith(".py") else function.rpartition(":")[0]
            if place.endswith(".py"):
                yield place
        options = list(options.values())
    if isinstance(options, list):
        for each in options:
            yield from _named(each)


def _identity(name: str, info: dict[str, Any]) -> str:
    known = {str(key).lower().replace("-", "_"): value for key, value in info.items()}
    for mark in _MARKS:
        if known.get(mark):
            return f"{known.get('size')} {mark}={known[mark]}"
    raise _Unknown(f"{name}: its store says neither a checksum nor a time")
