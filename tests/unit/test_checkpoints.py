import json
import os
import subprocess
from unittest.mock import patch

import fsspec
import pytest
from fsspec.registry import _registry as clients

from rlhf.errors import ConfigError, DataError, TrainingError
from rlhf.training import processes
from rlhf.training.checkpoints import Checkpoints, raise_if_full
from tests import stores

IDENTITY = {"stage": "reward_trainer", "learning_rate": 1e-4, "lora": {"rank": 4}, "data_digest": "abc"}


@pytest.fixture
def state(tmp_path):
    folder = tmp_path / "state"
    (folder / "nested").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "nested/run.json").write_text("{}")
    return folder


def names(folder):
    return sorted(path.name for path in folder.glob("step-*"))


def test_the_newest_checkpoint_comes_back_and_those_before_it_go(state, tmp_path):
    kept = tmp_path / "kept"
    for step in (10, 20, 5):
        Checkpoints(str(kept), IDENTITY).save(state, step)
        assert names(kept) == [f"step-{step:08d}"]
    assert Checkpoints(str(kept), IDENTITY).fetch_latest(tmp_path / "back") == 5
    assert (tmp_path / "back/model.safetensors").read_bytes() == b"weights" * 1000
    assert (tmp_path / "back/nested/run.json").read_text() == "{}"
    Checkpoints(str(kept), IDENTITY).remove()
    assert names(kept) == []


def test_where_nothing_is_there_is_nothing_to_go_on_from(tmp_path):
    assert Checkpoints(str(tmp_path / "nothing"), IDENTITY).fetch_latest(tmp_path / "back") is None


@pytest.mark.parametrize("damage", ["no mark", "cut mark", "cut file", "lost file"])
def test_what_a_killed_writer_left_is_not_taken_for_whole(damage, state, tmp_path):
    kept = tmp_path / "kept"
    Checkpoints(str(kept), IDENTITY).save(state, 10)
    whole = tmp_path / "step-00000010"
    (kept / "step-00000010").rename(whole)
    Checkpoints(str(kept), IDENTITY).save(state, 20)
    whole.rename(kept / "step-00000010")
    last = kept / "step-00000020"
    if damage == "no mark":
        (last / "complete.json").unlink()
    elif damage == "cut mark":
        (last / "complete.json").write_bytes((last / "complete.json").read_bytes()[:-5])
    elif damage == "cut file":
        (last / "model.safetensors").write_bytes(b"weigh")
    else:
        (last / "nested/run.json").unlink()
    assert Checkpoints(str(kept), IDENTITY).fetch_latest(tmp_path / "back") == 10


def test_a_checkpoint_of_another_run_is_refused_and_says_in_what_it_differs(state, tmp_path):
    kept = str(tmp_path / "kept")
    Checkpoints(kept, IDENTITY).save(state, 10)
    with pytest.raises(ConfigError) as error:
        Checkpoints(kept, {**IDENTITY, "learning_rate": 2e-4, "lora": {"rank": 16}}).fetch_latest(tmp_path / "back")
    assert "learning_rate: 0.0001 there, 0.0002 now" in str(error.value)
    assert "lora: {'rank': 4} there, {'rank': 16} now" in str(error.value)
    assert "data_digest" not in str(error.value)
    assert "give every run a folder of its own" in str(error.value)


@pytest.fixture
def s3():
    """A store of which no client is left that another test could meet."""
    with (
        stores.moto() as port,
        stores.s3(port) as store,
        patch.dict(os.environ, store.environment),
        patch.dict(clients),
    ):
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield store
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_checkpoints_lie_in_an_object_store_as_on_a_disk(s3, state, tmp_path):
    uri = s3.uri("checkpoints")
    Checkpoints(uri, IDENTITY).save(state, 10)
    Checkpoints(uri, IDENTITY).save(state, 20)
    assert Checkpoints(uri, IDENTITY).fetch_latest(tmp_path / "back") == 20
    assert (tmp_path / "back/nested/run.json").read_text() == "{}"
    Checkpoints(uri, IDENTITY).remove()
    assert Checkpoints(uri, IDENTITY).fetch_latest(tmp_path / "again") is None


def test_a_full_disk_is_named_with_what_to_do(state, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("a file system of 64 kB cannot be mounted here: it takes root")  # nothing else fills up as surely
    try:
        Checkpoints(str(small), IDENTITY).save(state, 1)
        (state / "model.safetensors").write_bytes(b"weights" * 10_000)
        with pytest.raises(TrainingError, match=r"no space left for 7e-05 GB; free some or name another disk"):
            Checkpoints(str(small), IDENTITY).save(state, 2)
        assert Checkpoints(str(small), IDENTITY).fetch_latest(tmp_path / "back") == 1, "what was whole is kept"
    finally:
        subprocess.run(["umount", small], check=True)


def test_errors_of_libraries_without_a_number_are_known_for_a_full_disk():
    for error in (
        OSError(28, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ):
        with pytest.raises(TrainingError, match="no space left"):
            raise_if_full(error, "model")
    raise_if_full(OSError(2, "No such file"), "model")


def test_a_place_that_cannot_be_used_is_an_error_that_names_it(state, tmp_path):
    with pytest.raises(ConfigError, match=r"checkpoint_dir 'nowhere://x'"):
        Checkpoints("nowhere://x", IDENTITY)
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be written"):
        Checkpoints(str(tmp_path / "file"), IDENTITY).save(state, 1)
    kept = tmp_path / "kept"
    Checkpoints(str(kept), IDENTITY).save(state, 1)
    record = json.loads((kept / "step-00000001/complete.json").read_text())
    (kept / "step-00000001/complete.json").write_text(json.dumps({**record, "identity": None}))
    with pytest.raises(ConfigError, match="another run"):
        Checkpoints(str(kept), IDENTITY).fetch_latest(tmp_path / "back")
    with pytest.raises((DataError, ConfigError)):
        Checkpoints(f"{tmp_path}/file/below", IDENTITY).fetch_latest(tmp_path / "back")


def test_nodes_that_do_not_share_the_folder_are_told(state, tmp_path, monkeypatch):
    """A node that finds no checkpoint would start anew beside one that goes on."""
    kept = tmp_path / "kept"
    Checkpoints(str(kept), IDENTITY).save(state, 5)
    monkeypatch.setattr(processes, "gather", lambda part: [part, None])
    with pytest.raises(ConfigError, match=r"different steps there \(5, None\).*volume that all of them mount"):
        Checkpoints(str(kept), IDENTITY).fetch_latest(tmp_path / "back")
