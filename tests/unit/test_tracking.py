# ruff: noqa: F811 - tests take fixtures that are imported
import math

import pytest

from rlhf.data.file_systems import file_system
from rlhf.errors import DataError
from rlhf.tracking import find_logs, read_scalars
from tests.events import write_events
from tests.loopback import environment, loopback_only, moto_port, opened  # noqa: F401

SERIES = {"rank_loss": [(10, 1.5), (20, 0.75)], "learning_rate": [(10, 0.5)]}


@pytest.mark.parametrize("as_tensors", [False, True], ids=["TensorFlow 1 and torch", "TensorFlow 2"])
def test_scalars_are_read_whichever_way_they_were_logged(tmp_path, as_tensors):
    write_events(tmp_path, SERIES, as_tensors)
    assert read_scalars(tmp_path) == SERIES


def test_tensors_that_are_no_scalars_are_left_out(tmp_path):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.text.summary_v2 import text_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(tmp_path))
    writer.add_event(Event(step=1, summary=text_pb("note", "hello")))
    writer.close()
    assert read_scalars(tmp_path) == {}


def test_values_that_are_not_finite_are_read_as_such(tmp_path):
    write_events(tmp_path, {"reward": [(1, math.inf), (2, math.nan)]}, as_tensors=True)
    (_, first), (_, second) = read_scalars(tmp_path)["reward"]
    assert math.isinf(first)
    assert math.isnan(second)


def test_a_file_that_was_cut_off_gives_what_it_still_has(tmp_path):
    write_events(tmp_path, SERIES)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    assert read_scalars(tmp_path) == {"rank_loss": SERIES["rank_loss"]}


def test_csv_of_all_tags(tmp_path):
    path = tmp_path / "run.csv"
    path.write_text("wall_time,step,tag,value\n1.5,10,rank_loss,1.5\n1.6,10,learning_rate,0.5\n2.5,20,rank_loss,0.75\n")
    assert read_scalars(path) == SERIES


def test_csv_as_a_spreadsheet_saves_it_begins_with_a_mark(tmp_path):
    path = tmp_path / "run.csv"
    path.write_text("step,tag,value\n10,rank_loss,1.5\n", encoding="utf-8-sig")
    assert read_scalars(path) == {"rank_loss": [(10, 1.5)]}


def test_csv_as_tensorboard_downloads_it_has_its_tag_in_the_name(tmp_path):
    path = tmp_path / "run-train-tag-rank_loss.csv"
    path.write_text("Wall time,Step,Value\r\n1.5,10,1.5\r\n2.5,20,0.75\r\n")
    assert read_scalars(path) == {"rank_loss": SERIES["rank_loss"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", r"found the columns \(none\), expected step, tag, value too"),
        ("step,value\n1,2\n", "found the columns step, value, expected tag too"),
        ("step,tag,value\n1,a,2\n2,a,high\n", "line 3: found step '2' and value 'high', expected numbers"),
        ("step,tag,value\n1,a\n", "line 2: found step '1' and value None, expected numbers"),
        (b"step,tag,value\n1,\xff,2\n", "cannot be read as a .csv of scalars"),
        ("<!doctype html>\n<p>\n", "found the columns <!doctype html>, expected step, tag, value too"),
    ],
)
def test_a_csv_of_something_else_is_refused_with_its_name(tmp_path, content, said):
    path = tmp_path / "run.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=f"run.csv'.*{said}"):
        read_scalars(path)


def test_logs_are_found_at_any_depth(tmp_path):
    for folder in ("", "a/b", "c"):
        write_events(tmp_path / folder, SERIES)
    assert find_logs(tmp_path) == [tmp_path, tmp_path / "a/b", tmp_path / "c"]


def test_a_csv_is_a_log_of_its_own(tmp_path):
    (tmp_path / "run.csv").touch()
    assert find_logs(tmp_path / "run.csv") == [tmp_path / "run.csv"]


def test_no_logs_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find_logs(tmp_path / "none")
    with pytest.raises(DataError, match="no such folder"):
        read_scalars(tmp_path / "none")
    with pytest.raises(DataError, match="no event files"):
        find_logs(tmp_path)


def test_real_runs_of_the_vertex_pipeline(real_data):
    reward = read_scalars(real_data / "tensorboard/vertex_llama2_7b_reward.scalars.csv")
    assert {tag: len(points) for tag, points in reward.items()} == {
        "learning_rate": 282,
        "learning_rate/current": 282,
        "rank_loss": 282,
        "timing/uptime": 282,
    }
    assert reward["rank_loss"][0] == (10, 1.4887608289718628)
    assert reward["rank_loss"][-1] == (2820, 0.004227924160659313)
    reinforcer = read_scalars(real_data / "tensorboard/vertex_llama2_7b_reinforcer.scalars.csv")
    assert {"kl_loss", "reward", "rl_loss", "learning_rate"} <= set(reinforcer)
    assert [step for step, _ in reinforcer["reward"]] == list(range(10, 650, 10))


def tracked(folder, *steps: float, close: bool = True) -> None:
    from rlhf.tracking import Tracker

    tracker = Tracker(folder)
    for step, value in enumerate(steps, start=1):
        tracker.scalars(step, {"reward": value})
    if close:
        tracker.close()


@pytest.mark.parametrize("protocol", ["gs", "file"])
def test_on_vertex_event_files_are_written_where_tensorboard_is_streamed_from(tmp_path, monkeypatch, opened, protocol):
    streamed = opened("gs").uri("jobs/7/logs/") if protocol == "gs" else str(tmp_path / "jobs" / "logs")
    monkeypatch.setenv("AIP_TENSORBOARD_LOG_DIR", streamed)
    tracked(tmp_path / "out", 0.5, 1.5)
    fs, folder = file_system(streamed)
    fs.get(folder.rstrip("/") + "/", str(tmp_path / "got"), recursive=True)
    assert read_scalars(tmp_path / "out") == {"reward": [(1, 0.5), (2, 1.5)]}
    written, arrived = ({file.name: file.read_bytes() for file in (tmp_path / of).iterdir()} for of in ("out", "got"))
    assert arrived == written


def test_they_are_there_while_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("AIP_TENSORBOARD_LOG_DIR", str(tmp_path / "streamed"))
    monkeypatch.setattr("rlhf.tracking.MIRROR_SECONDS", 0.0)
    tracked(tmp_path / "out", 0.5, 1.5, close=False)
    assert read_scalars(tmp_path / "streamed") == {"reward": [(1, 0.5), (2, 1.5)]}


def test_training_goes_on_where_they_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AIP_TENSORBOARD_LOG_DIR", str(tmp_path / "file" / "logs"))
    monkeypatch.setattr("rlhf.tracking.MIRROR_SECONDS", 0.0)
    tracked(tmp_path / "out", 0.5, 1.5)
    assert read_scalars(tmp_path / "out") == {"reward": [(1, 0.5), (2, 1.5)]}
    assert capsys.readouterr().out.count("cannot be written to, no more is streamed") == 1


def test_what_a_store_says_is_repeated_without_secrets(tmp_path, monkeypatch, capsys):
    def refused(uri):
        raise OSError(f"403 for {uri}")

    monkeypatch.setenv("AIP_TENSORBOARD_LOG_DIR", "https://me:s3cret@host/logs?sig=s3cret")
    monkeypatch.setattr("rlhf.tracking.file_system", refused)
    tracked(tmp_path / "out", 0.5)
    said = capsys.readouterr().out
    assert "no more is streamed: 403 for https://" in said
    assert "s3cret" not in said


def test_of_several_processes_one_writes_there(tmp_path, monkeypatch):
    monkeypatch.setenv("AIP_TENSORBOARD_LOG_DIR", str(tmp_path / "streamed"))
    tracked(None, 0.5)
    assert not (tmp_path / "streamed").exists()
