import math

import pytest

from rlhf.errors import DataError
from rlhf.tracking import find_logs, read_scalars
from tests.events import write_events

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
