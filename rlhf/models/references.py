"""What may stand in `large_model_reference`, checked and resolved without loading a model."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from rlhf.data.file_systems import file_system, redacted
from rlhf.errors import ModelError
from rlhf.models.card import FILE_NAME
from rlhf.paths import below

# The closed Vertex pipeline's names, case and - or _ as one likes, and the open model that takes each one's place.
# Its T5 checkpoints were Flan-T5; Llama 2 is gated: the account of the token must have accepted Meta's licence.
SHORT_NAMES = {
    "t5-small": "google/flan-t5-small",
    "t5-large": "google/flan-t5-large",
    "t5-xl": "google/flan-t5-xl",
    "t5-xxl": "google/flan-t5-xxl",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-2-13b": "meta-llama/Llama-2-13b-hf",
    "llama-2-7b-chat": "meta-llama/Llama-2-7b-chat-hf",
    "llama-2-13b-chat": "meta-llama/Llama-2-13b-chat-hf",
}
_PRIVATE = re.compile(r"(text-|chat-)?bison(@\d+|-\d+)?")

HUB_TIMEOUT_SECONDS = 10.0

_URI = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Formats that run code when they are loaded, or that only other frameworks read.
_UNSAFE_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
ADAPTER_CONFIG = "adapter_config.json"  # in a folder that holds a PEFT adapter and no whole model
_NOT_NEEDED = (*_UNSAFE_WEIGHTS, ".h5", ".msgpack", ".onnx", ".gguf", ".ot")
_EXPECTED = (
    "expected a Hugging Face id (owner/name), a local folder, a gs://, s3:// or hf:// URI, "
    f"or one of {', '.join(SHORT_NAMES)}"
)


def resolve(reference: str) -> str:
    """Turn a model reference into what `from_pretrained` takes.

    Args:
        reference: A Hugging Face id, local folder, hf://owner/name, URI of a folder (gs://, s3:// ...: downloaded
            once to `$HF_HOME/rlhf`, without pickles), or a short name of the old pipeline. A stage's artifact on the
            Hub is downloaded to the Hub's cache.

    Returns:
        A local folder, or a Hugging Face id.

    Raises:
        ModelError: The reference has no meaning, or cannot be downloaded.
    """
    reference = _expand(reference, "model reference")
    if _URI.match(reference):
        return _download(reference)
    return reference if _is_local(reference) else _artifact_on_the_hub(reference) or reference


def check(reference: str, parameter: str) -> None:
    """Find out within seconds whether a model reference can be used, without loading or downloading weights.

    Args:
        reference: As for `resolve`.
        parameter: Whose value it is, for the message.

    Raises:
        ModelError: One line saying that the model is missing, gated, unreachable, or only has pickle weights.
    """
    expanded = _expand(reference, parameter)
    label = redacted(f"{parameter} {reference!r}" + (f" ({expanded})" if expanded != reference else ""))
    if _URI.match(expanded):
        fs, folder = _filesystem(expanded, label)
        names = [name.rsplit("/", 1)[-1] for name in _remotely(label, fs.ls, folder, detail=False)]
        _check_files(names, label)
        look, file = _looked_at(names)
        look(_remotely(label, fs.cat_file, f"{folder}/{file}"), label)
    elif _is_local(expanded):
        _check_folder(Path(expanded), label)
    else:
        _check_hub(expanded, label)


def _expand(reference: str, parameter: str) -> str:
    """A short name's model, a hf:// URI's id, a local path without ~ or file://; anything else as it is."""
    name = reference.strip()
    short = name.lower().replace("_", "-")
    if _PRIVATE.fullmatch(short):
        raise ModelError(
            f"{parameter}: {reference!r} is a private model of Google's, its weights were never published; {_EXPECTED}"
        )
    if short in SHORT_NAMES and not Path(name).exists():
        return SHORT_NAMES[short]
    if name.startswith("hf://"):
        name = name.removeprefix("hf://").strip("/")
        if not _HUB_ID.fullmatch(name):
            raise ModelError(f"{parameter}: found {reference!r}, expected hf://owner/name")
        return name
    name = os.path.expanduser(name.removeprefix("file://"))
    if not (_URI.match(name) or _is_local(name) or _HUB_ID.fullmatch(name)):
        raise ModelError(f"{parameter}: found {reference!r}, {_EXPECTED}")
    return name


def _is_local(name: str) -> bool:
    return name.startswith(("/", "./", "../")) or (name != "" and Path(name).is_dir())


def _check_folder(folder: Path, label: str) -> None:
    if not folder.is_dir():
        raise ModelError(f"{label}: no such folder, expected one with config.json and safetensors weights")
    names = [path.name for path in folder.iterdir()]
    _check_files(names, label)
    look, file = _looked_at(names)
    look((folder / file).read_bytes(), label)


def _check_files(names: Collection[str], label: str) -> None:
    if "config.json" not in names and not {ADAPTER_CONFIG, FILE_NAME} <= set(names):
        raise ModelError(f"{label}: no config.json there, expected a Hugging Face model folder")
    if any(name.endswith(".safetensors") for name in names):
        return
    unsafe = sorted(name for name in names if name.endswith(_UNSAFE_WEIGHTS))
    if unsafe:
        raise ModelError(
            f"{label}: only has pickle weights ({unsafe[0]}), which can run code when loaded and are refused; "
            "convert them once with save_pretrained(..., safe_serialization=True) where you trust them"
        )
    raise ModelError(f"{label}: no weights there, expected *.safetensors beside config.json")


def _looked_at(names: Collection[str]) -> tuple[Callable[[bytes, str], None], str]:
    """What checks a model's folder further, and the file there that it reads."""
    return (_check_adapter, FILE_NAME) if ADAPTER_CONFIG in names else (_check_config, "config.json")


def _check_config(content: bytes, label: str) -> None:
    try:
        config = json.loads(content)
    except ValueError as error:
        raise ModelError(f"{label}: config.json is not JSON ({error})") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(f"{label}: config.json names no model_type, expected the one of a transformers model")


def _check_adapter(content: bytes, label: str) -> None:
    try:
        base = json.loads(content)["base"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{label}: rlhf.json names no base, expected the reference of a base model") from error
    check(base, f"{label}: its base")


def _check_hub(model_id: str, label: str) -> None:
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    api = HfApi()
    try:
        model = api.model_info(model_id, timeout=HUB_TIMEOUT_SECONDS)
        if model.gated:
            api.auth_check(model_id)
    except GatedRepoError as error:
        raise ModelError(
            f"{label}: this model is gated; accept its licence at https://huggingface.co/{model_id} and set HF_TOKEN "
            "to a token of that account"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{label}: no local folder of that name and no such model on the Hugging Face Hub, or a private one that "
            "HF_TOKEN gives no access to"
        ) from error
    except (OSError, HTTPError) as error:
        cached = try_to_load_from_cache(model_id, "config.json")
        if isinstance(cached, str):
            return _check_folder(Path(cached).parent, label)
        cause = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else _one_line(error)
        raise ModelError(
            f"{label}: no local folder of that name, and the Hugging Face Hub cannot be asked for it ({cause}); "
            "name a local folder, or download the model into the Hub's cache before"
        ) from error
    names = [sibling.rfilename for sibling in model.siblings or []]
    _check_files(names, label)
    if ADAPTER_CONFIG in names:
        _check_adapter(Path(_remotely(label, hf_hub_download, model_id, FILE_NAME)).read_bytes(), label)


def _filesystem(uri: str, label: str) -> tuple[Any, str]:
    try:
        fs, folder = file_system(uri)
    except ImportError as error:
        raise ModelError(f"{label}: {_one_line(error)}") from error
    except ValueError as error:
        raise ModelError(f"{label}: {_one_line(error)}; {_EXPECTED}") from error
    return fs, folder.rstrip("/")


def _remotely(label: str, call: Any, *args: Any, **options: Any) -> Any:
    try:
        return call(*args, **options)
    except FileNotFoundError as error:
        raise ModelError(f"{label}: nothing there, expected a Hugging Face model folder") from error
    except Exception as error:  # each file system's client has exceptions of its own
        raise ModelError(f"{label}: cannot be read ({type(error).__name__}: {redacted(_one_line(error))})") from error


def _download(uri: str) -> str:
    """Copy a remote model folder to the cache, or find it there; another state of the folder is another copy.

    Of several processes one copies, and the others wait.
    """
    from filelock import FileLock
    from huggingface_hub import constants

    label = redacted(f"model reference {uri!r}")
    fs, folder = _filesystem(uri, label)
    files = _remotely(label, fs.find, folder, detail=True)
    wanted = {name: info for name, info in sorted(files.items()) if not name.endswith(_NOT_NEEDED)}
    _check_files([name[len(folder) :].lstrip("/") for name in files], label)
    marks = ("size", "ETag", "etag", "md5Hash", "mtime")
    state = [[name, *(str(info.get(mark)) for mark in marks)] for name, info in wanted.items()]
    target = Path(constants.HF_HOME) / "rlhf" / hashlib.sha256(json.dumps([uri, state]).encode()).hexdigest()[:16]
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent) as unfinished:
                copy = Path(unfinished) / "model"
                for name in wanted:
                    local = _remotely(label, below, copy, name[len(folder) :].lstrip("/"))
                    local.parent.mkdir(parents=True, exist_ok=True)
                    _remotely(label, fs.get_file, name, str(local))
                copy.rename(target)
    return str(target)


def _artifact_on_the_hub(model_id: str) -> str | None:
    """Folder of a Model artifact that was uploaded; None for any other model, and where the Hub cannot be asked."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        hf_hub_download(model_id, FILE_NAME)
    except (EntryNotFoundError, OSError):  # whoever loads the model says what is wrong with it
        return None
    return snapshot_download(model_id, ignore_patterns=[f"*{ending}" for ending in _NOT_NEEDED])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
