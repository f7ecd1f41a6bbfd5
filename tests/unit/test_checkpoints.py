import json
import os
import subprocess
from pathlib import Path
from unittest.mock import patch

import fsspec
import pytest
from fsspec.registry import _registry as clients

from rlhf.errors import ConfigError, DataError, TrainingError
from rlhf.models.card import ModelCard
from rlhf.ppo.config import PPOTrainerConfig
from rlhf.rewards.config import RewardFunction
from rlhf.rewards.groups import fingerprint
from rlhf.training import checkpoints, processes
from rlhf.training.checkpoints import Checkpoints, checkpoints_of, raise_if_full
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


def test_a_checkpoint_is_due_so_many_minutes_after_the_last(state, tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now)
    kept = Checkpoints(str(tmp_path / "kept"), IDENTITY, minutes=2)
    now = 1119.0
    assert not kept.are_due()
    now = 1121.0
    assert kept.are_due()
    kept.save(state, 1)
    assert not kept.are_due()
    now = 1242.0
    assert kept.are_due()
    monkeypatch.setattr(processes, "gather", lambda part: [False, part])
    assert not kept.are_due(), "the first process's clock counts"


def test_where_nothing_is_there_is_nothing_to_go_on_from(tmp_path):
    assert Checkpoints(str(tmp_path / "nothing"), IDENTITY).fetch_latest(tmp_path / "back") is None


@pytest.mark.parametrize("name", ["../escaped", "/{}/escaped"])
def test_a_checkpoint_whose_files_lead_out_of_its_folder_is_refused(name, state, tmp_path):
    kept, name = tmp_path / "kept", name.format(tmp_path)
    Checkpoints(str(kept), IDENTITY).save(state, 10)
    (kept / "escaped").write_text("x")
    Path(f"{kept}/step-00000010/{name}").parent.mkdir(parents=True, exist_ok=True)
    Path(f"{kept}/step-00000010/{name}").write_text("x")
    mark = kept / "step-00000010/complete.json"
    record = json.loads(mark.read_text())
    mark.write_text(json.dumps({**record, "files": {name: 1, **record["files"]}}))
    with pytest.raises(DataError, match=f"'{name}' leads out of its folder"):
        Checkpoints(str(kept), IDENTITY).fetch_latest(tmp_path / "back")
    assert not (tmp_path / "escaped").exists()


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


@pytest.mark.parametrize(
    ("changed", "goes_on"),
    [
        ({"microbatch_tokens": 100, "rollout_tokens": 100, "logits_at_once": 10}, True),
        ({"activation_checkpointing": True, "max_bad_rewards": 0.5, "stop_on_alarm": True}, True),
        ({"reward_functions": [{"function": "f.py:g", "timeout_seconds": 900, "memory_gb": 16}]}, True),
        ({"reward_functions": [{"function": "f.py:g", "weight": 2.0}]}, False),
        ({"kl_coeff": 0.3}, False),
        ({"rewarded_by": ["another reward model"]}, False),
    ],
)
def test_what_a_message_advises_to_change_is_changed_without_losing_the_run(changed, goes_on, state, tmp_path):
    def of(rewarded_by, **options):
        config = {"checkpoint_dir": str(tmp_path / "kept"), "reward_functions": [{"function": "f.py:g"}], **options}
        known = {"data": "d", "template": "t", "starts_from": "m", "rewarded_by": rewarded_by}
        return checkpoints_of("ppo_trainer", PPOTrainerConfig.parse(config), **known)

    of(["a reward model"]).save(state, 3)
    again = of(changed.pop("rewarded_by", ["a reward model"]), **changed)
    if goes_on:
        assert again.fetch_latest(tmp_path / "back") == 3
    else:
        with pytest.raises(ConfigError, match="holds a checkpoint of another run"):
            again.fetch_latest(tmp_path / "back")


def test_a_grader_is_another_one_when_its_file_or_its_reward_model_is(tmp_path):
    def prints():
        function = {"function": f"{tmp_path}/grade.py"}
        return [
            fingerprint(RewardFunction.parse(options))
            for options in (function, {"sum": [function, {"http": "http://127.0.0.1/grade"}]}, judge)
        ]

    judge = {"builtin": "reward_model", "options": {"model": str(tmp_path)}}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "grade.py").write_text("def grade(prompts, completions, **columns): return [1.0]")
    ModelCard(kind="reward_model", base="b", data_digest="old").save(tmp_path)
    before = prints()
    assert prints() == before
    (tmp_path / "grade.py").write_text("def grade(prompts, completions, **columns): return [2.0]")
    ModelCard(kind="reward_model", base="b", data_digest="new").save(tmp_path)
    assert not set(prints()) & set(before)
