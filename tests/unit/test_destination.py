"""What is published is there as a whole or not at all, once, and never over something else."""
# ruff: noqa: F811 - tests take fixtures that are imported

import errno
import json
import os
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from rlhf.data.file_systems import file_system
from rlhf.errors import ConfigError, RlhfError, TrainingError
from rlhf.models import destination
from rlhf.models.destination import LAST, MANIFEST, Destination
from tests import stores
from tests.loopback import environment, loopback_only, moto_port, opened  # noqa: F401

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"w" * 100,
    "additional_chat_templates/tool_use.jinja": b"t",
    "tokenizer.json": b"tok",
}


@pytest.fixture
def model(tmp_path) -> Path:
    return write_model(tmp_path / "model")


def write_model(folder: Path, digest: str = "ab12", **changed: bytes) -> Path:
    files = FILES | changed
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    sizes = {name: len(content) for name, content in files.items()}
    manifest = {"digest": digest, "display_name": "mine", "files": sizes}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.fixture(params=["disk", "file", "s3", "gs"])
def uri(request, tmp_path) -> str:
    """A folder that is not there yet, of each kind."""
    if request.param in ("s3", "gs"):
        return request.getfixturevalue("opened")(request.param).uri("models/mine")
    return f"{'file://' if request.param == 'file' else ''}{tmp_path}/models/mine"


@pytest.fixture
def puts(monkeypatch) -> list[str]:
    """Names of the files that are copied, in order."""
    names = []
    put = destination._put

    def recording(fs, source, target):
        names.append(target.rpartition("models/mine/")[2])
        put(fs, source, target)

    monkeypatch.setattr(destination, "_put", recording)
    return names


def publish(uri: str, model: Path) -> int:
    return Destination(uri).publish(model, lambda done: None)


def contents(uri: str) -> dict[str, bytes]:
    fs, folder = file_system(uri)
    fs.invalidate_cache()
    return {path[len(folder) + 1 :]: fs.cat_file(path) for path in fs.find(folder)}


def refusal(function, kind: type[RlhfError] = ConfigError) -> str:
    with pytest.raises(kind) as error:
        function()
    message = str(error.value)
    assert message.startswith("publish_to")
    assert "\n" not in message
    assert stores.SECRET not in message
    return message


def test_a_model_is_there_with_every_file(uri, model):
    assert publish(uri, model) == len(FILES) + 1
    assert contents(uri) == FILES | {MANIFEST: (model / MANIFEST).read_bytes()}


def test_who_it_is_comes_first_and_what_loads_it_last(uri, model, puts):
    publish(uri, model)
    assert (puts[0], puts[-1]) == (MANIFEST, LAST)


def test_the_same_model_is_not_copied_again_even_if_said_differently(uri, model, puts):
    publish(uri, model)
    puts.clear()
    manifest = json.loads((model / MANIFEST).read_text())
    (model / MANIFEST).write_text(json.dumps(manifest | {"display_name": "another name"}))
    assert publish(uri, model) == 0
    assert puts == []


def test_a_task_that_is_started_again_copies_only_what_is_not_there(uri, model, puts, monkeypatch):
    put = destination._put

    def killed_at(name):
        def put_until(fs, source, target):
            if target.endswith(name):
                raise KeyboardInterrupt
            put(fs, source, target)

        return put_until

    with monkeypatch.context() as patched:
        patched.setattr(destination, "_put", killed_at("tokenizer.json"))
        with pytest.raises(KeyboardInterrupt):
            publish(uri, model)
    assert LAST not in contents(uri), "half a model must not load"
    puts.clear()
    assert publish(uri, model) == 3
    assert puts == [MANIFEST, "tokenizer.json", LAST]
    assert contents(uri) == FILES | {MANIFEST: (model / MANIFEST).read_bytes()}


def test_a_file_of_another_size_is_half_a_file(uri, model, puts):
    publish(uri, model)
    fs, folder = file_system(uri)
    fs.pipe_file(f"{folder}/model.safetensors", b"w" * 60)
    puts.clear()
    publish(uri, model)
    assert "model.safetensors" in puts
    assert contents(uri)["model.safetensors"] == FILES["model.safetensors"]


def test_on_disk_a_file_has_its_name_only_when_it_is_whole(tmp_path, model, monkeypatch):
    copy = LocalFileSystem.put_file

    def breaks_off(self, source, target, **options):
        copy(self, source, target, **options)
        Path(target).write_bytes(b"half")
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(LocalFileSystem, "put_file", breaks_off)
    refusal(lambda: publish(str(tmp_path / "out"), model))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{MANIFEST}.unfinished"]


def test_another_model_there_is_refused_by_its_name(uri, model, tmp_path):
    publish(uri, model)
    before = contents(uri)
    other = write_model(tmp_path / "other", digest="cd34")
    message = refusal(lambda: publish(uri, other))
    assert "holds another model ('mine', digest ab12; this one has cd34); give every model a folder" in message
    assert refusal(lambda: Destination(uri).require_free("cd34")) == message
    assert contents(uri) == before
    Destination(uri).require_free("ab12")


def test_an_unfinished_copy_of_another_model_is_refused_too(uri, model, tmp_path):
    publish(uri, model)
    fs, folder = file_system(uri)
    fs.rm_file(f"{folder}/{LAST}")
    message = refusal(lambda: publish(uri, write_model(tmp_path / "other", digest="cd34")))
    assert "an unfinished copy of another model" in message


@pytest.mark.parametrize("name", ["report.html", MANIFEST])
def test_a_folder_of_other_files_is_refused_and_left_alone(uri, model, name):
    fs, folder = file_system(uri)
    fs.makedirs(folder, exist_ok=True)
    content = json.dumps({"digest": "ab12", "kind": "prompts", "shards": []}).encode()  # as beside a dataset
    fs.pipe_file(f"{folder}/{name}", content)
    for call in (lambda: publish(uri, model), Destination(uri).check):
        message = refusal(call)
        assert f"holds 1 files ('{name}' among them) that are no model published by this pipeline" in message
    assert contents(uri) == {name: content}


def test_hidden_files_are_no_content(uri, model):
    fs, folder = file_system(uri)
    fs.makedirs(folder, exist_ok=True)
    fs.pipe_file(f"{folder}/.DS_Store", b"left by a file manager")
    assert Destination(uri).check() is None
    assert publish(uri, model) == len(FILES) + 1


def test_a_file_in_the_folders_place_is_refused(tmp_path, model):
    (tmp_path / "out").write_text("a file")
    assert "found a file; expected a folder" in refusal(lambda: publish(str(tmp_path / "out"), model))


def test_checking_tells_whether_one_can_write_and_leaves_nothing(uri, model, tmp_path):
    assert Destination(uri).check() is None
    assert contents(uri) == {}
    assert [path.name for path in tmp_path.iterdir() if path.name != "none"] == ["model"]
    publish(uri, model)
    assert Destination(uri).check() == "ab12"


@pytest.mark.parametrize("uri", ["/proc/models/mine"])
def test_a_place_on_disk_that_cannot_be_written_to_is_said(uri, model):
    for call in (lambda: publish(uri, model), Destination(uri).check):
        assert f"publish_to '{uri}': cannot be written to (" in refusal(call)


def test_a_bucket_that_cannot_be_written_to_is_said(opened, model):
    store = opened("s3")
    store.deny_writing()
    uri = store.uri("models/mine")
    for call in (lambda: publish(uri, model), Destination(uri).check):
        message = refusal(call)
        assert "cannot be written to (PermissionError: " in message
        assert "see that its credentials are there" in message


@pytest.mark.parametrize("protocol", ["s3", "gs"])
def test_a_bucket_that_does_not_exist_is_said(opened, model, protocol):
    uri = opened(protocol).uri("models/mine", "none")
    for call in (lambda: publish(uri, model), Destination(uri).check):
        assert "cannot be written to (" in refusal(call)


def test_a_full_disk_is_said(tmp_path, model, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(LocalFileSystem, "put_file", full)
    assert "no space left for" in refusal(lambda: publish(str(tmp_path / "out"), model), TrainingError)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        (
            "hf://me/model",
            "the Hugging Face Hub is not supported: publish to a folder, and upload that with `hf upload`",
        ),
        (
            "https://host/model",
            "expected a folder on disk, or its URI: file://, gs://bucket/folder or s3://bucket/folder",
        ),
        ("abfs://container/model", "expected a folder on disk"),
        ("simplecache::s3://bucket/model", "expected a folder on disk"),
        ("gs:/bucket/model", "expected a folder on disk"),
        ("gs://", "names no folder"),
        ("s3:///", "names no folder"),
        ("/", "names no folder"),
    ],
)
def test_what_is_no_folder_that_can_be_written_to_is_refused_at_once(uri, says):
    message = refusal(lambda: Destination(uri))
    assert message.startswith(f"publish_to: found '{uri}', ")
    assert says in message


def test_no_password_is_shown(model, monkeypatch):
    secret = "s3://id:a-pass-word@bucket/models"
    assert Destination(secret).name == "s3://…@bucket/models"

    def fails(uri, **options):
        raise ValueError(f"cannot reach {uri}")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fails)
    message = refusal(lambda: publish(secret, model))
    assert "a-pass-word" not in message
    assert "a-pass-word" not in refusal(lambda: Destination("abfs://id:a-pass-word@bucket/models"))
