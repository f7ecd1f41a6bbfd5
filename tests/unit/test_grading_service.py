"""A grader that is a service: what is sent, and what comes of a service that is down, slow, wrong or no grader."""

import contextlib
import math
import socket
import threading
import time

import pytest

from rlhf.errors import ConfigError, TrainingError
from rlhf.grpo_trainer.config import GRPOTrainerConfig
from rlhf.grpo_trainer.stage import _graded_by
from rlhf.rewards import service
from rlhf.rewards.config import RewardFunction
from rlhf.rewards.service import ServiceGrader
from tests.http_server import Answer, Request, Service, served


class Lengths(Service):
    """Grades a completion by its length."""

    def answer(self, request: Request) -> Answer:
        return Answer(body={"grades": [len(each) for each in request.json["completions"]]})


@pytest.fixture
def lengths():
    with served(Lengths()) as running:
        yield running


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch):
    monkeypatch.setattr(service, "LONGEST_WAIT", 0.05)


def grader(url: str, **options) -> ServiceGrader:
    return ServiceGrader(RewardFunction.parse({"http": url, "timeout_seconds": 2.0, "retries": 2, **options}))


def grade(found: ServiceGrader, *completions, **columns):
    return found.grade(["P"] * len(completions), list(completions), columns)


def failed(found: ServiceGrader, *completions) -> str:
    with pytest.raises(TrainingError) as caught:
        grade(found, *(completions or ("a", "b")), id=["x", "y"])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_completions_are_sent_in_batches_with_their_columns_and_come_back_in_order(lengths):
    found = grade(grader(f"{lengths.url}/grade", batch_size=2), "a", "bb", "", "cccc", "e", reference=list("vwxyz"))
    assert found == [1.0, 2.0, 0.0, 4.0, 1.0]
    sent = sorted((request.json["completions"], request.json["columns"]["reference"]) for request in lengths.requests)
    assert sent == [(["", "cccc"], ["x", "y"]), (["a", "bb"], ["v", "w"]), (["e"], ["z"])]
    assert {request.headers.get("Content-Type") for request in lengths.requests} == {"application/json"}


def test_a_key_is_sent_from_the_environment_and_missing_it_is_said(lengths, monkeypatch):
    monkeypatch.setenv("GRADER_KEY", "s3cret")
    grade(grader(f"{lengths.url}/grade", api_key_env="GRADER_KEY"), "a")
    assert lengths.requests[0].headers["Authorization"] == "Bearer s3cret"
    monkeypatch.delenv("GRADER_KEY")
    with pytest.raises(ConfigError, match="api_key_env: found the environment variable GRADER_KEY empty or unset"):
        grader(f"{lengths.url}/grade", api_key_env="GRADER_KEY")


@pytest.mark.parametrize("key", ["", " \n", "s3cr\net", "s3cr\u00e9t"])
def test_a_key_that_no_header_can_hold_is_refused_without_saying_it(key, monkeypatch):
    monkeypatch.setenv("GRADER_KEY", key)
    said = "api_key_env: found the environment variable GRADER_KEY (empty or unset|characters that no key has)"
    with pytest.raises(ConfigError, match=said) as error:
        grader("http://127.0.0.1:9/", api_key_env="GRADER_KEY")
    assert "s3cr" not in str(error.value)


def test_a_line_break_behind_a_key_is_not_sent(lengths, monkeypatch):
    monkeypatch.setenv("GRADER_KEY", "s3cret\n")
    assert grade(grader(f"{lengths.url}/grade", api_key_env="GRADER_KEY"), "a") == [1.0]
    assert lengths.requests[0].headers["Authorization"] == "Bearer s3cret"


def test_waits_that_a_service_asks_for_take_no_try_away(lengths, monkeypatch):
    monkeypatch.setattr(service, "LONGEST_WAIT", 1.0)
    lengths.said["POST", "/grade"] = [Answer(429, {}, [("Retry-After", "1")])] * 2
    assert grade(grader(f"{lengths.url}/grade", timeout_seconds=0.3), "abc") == [3.0]


def test_a_service_that_is_busy_is_asked_again(lengths):
    busy = [Answer(503, "busy"), Answer(429, {}, [("Retry-After", "0")])]
    lengths.said["POST", "/grade"] = busy
    assert grade(grader(f"{lengths.url}/grade"), "abc") == [3.0]
    assert len(lengths.requests) == 3


@pytest.mark.parametrize(
    ("answer", "expected", "times"),
    [
        (Answer(500, "<h1>Oops</h1>"), "answered HTTP 500 ('<h1>Oops</h1>'), 3 times in a row", 3),
        (Answer(404, {"detail": "nothing"}), "answered HTTP 404", 1),
        (Answer(401, {}), "answered HTTP 401", 1),
        (Answer(302, "", [("Location", "http://127.0.0.1:9/")]), "answered HTTP 302", 1),
        (Answer(200, "<html>Log in</html>"), "answered HTML ('<html>Log in</html>'), 3 times in a row", 3),
        (Answer(200, {"grade": [1, 2]}), "answered JSON without a list `grades` ('{", 3),
        (Answer(200, {"grades": [1]}), "answered 1 grades for 2 completions", 3),
    ],
)
def test_what_is_no_list_of_grades_ends_the_run_with_the_service_the_rows_and_the_cause(
    lengths, answer, expected, times
):
    lengths.said["POST", "/grade"] = answer
    message = failed(grader(f"{lengths.url}/grade"))
    assert expected in message
    assert f"grader {lengths.url}/grade: " in message
    assert "for the 2 completions from row 'x' on" in message
    assert len(lengths.requests) == times


def test_a_row_that_the_service_could_not_grade_is_nan_and_said(lengths):
    grades = [1, None, {"error": "too long"}, "high", True]
    lengths.said["POST", "/grade"] = Answer(200, {"grades": grades})
    found = grader(f"{lengths.url}/grade")
    values = grade(found, *"abcde", id=list("vwxyz"))
    assert values[:2] == [1.0, None]
    assert values[4] == 1.0
    assert all(map(math.isnan, values[2:4]))
    assert found.faults[2].endswith("could not grade (too long) row 3 of 5 (id 'x')")
    assert found.faults[3].endswith("gave 'high', no number or null, row 4 of 5 (id 'y')")


def test_a_key_in_its_address_is_never_said():
    config = RewardFunction(http="https://grader/g?api_key=s3cret&v=1")
    for said in (config.words, _graded_by(GRPOTrainerConfig(grader=config), "")):
        assert "s3cret" not in said
        assert "grader/g" in said


@pytest.mark.parametrize("others", [{}, {"builtin": "rouge"}, {"retries": -1}])
def test_an_address_with_user_and_password_is_refused_without_saying_them(others):
    with pytest.raises(ConfigError, match=r"grader[.:].*http.*…@grader/g") as error:
        RewardFunction.parse({"http": "https://user:s3cret@grader/g", **others}, "grader")
    assert "s3cret" not in str(error.value)
    assert "expected: Value error, a URL without user and password: name a variable" in str(error.value)


def test_what_is_wrong_with_two_graders_in_one_is_said_without_their_secrets():
    with pytest.raises(ConfigError, match="exactly one of function, http") as error:
        RewardFunction.parse({"http": "https://grader/g?token=s3cret", "builtin": "rouge"}, "grader")
    assert "s3cret" not in str(error.value)


def test_nobody_there_is_said():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert "cannot be reached ([Errno 111] Connection refused), 3 times in a row" in failed(
        grader(f"http://127.0.0.1:{port}/")
    )


@pytest.mark.parametrize("trickles", [False, True])
def test_a_service_that_is_slow_is_given_up(trickles):
    stop = threading.Event()

    def answer(server):
        with contextlib.suppress(OSError):
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" if trickles else b"")
                while not stop.wait(0.1):
                    connection.sendall(b" " if trickles else b"")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,), daemon=True)
        thread.start()
        before = time.monotonic()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        message = failed(grader(url, timeout_seconds=0.5, retries=0))
        stop.set()
    assert "took more than 0.5 s" in message
    assert time.monotonic() - before < 5


def test_a_busy_service_that_stalls_in_its_answer_is_asked_again():
    stop = threading.Event()

    def answer(server):
        with contextlib.suppress(OSError):
            connections = []
            for _ in range(2):
                connection, _ = server.accept()
                connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\nbus")
                connections.append(connection)
            stop.wait(10)
            for connection in connections:
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        message = failed(grader(url, timeout_seconds=0.5, retries=1))
        stop.set()
    assert "answered HTTP 503 (''), 2 times in a row" in message


def test_an_answer_that_never_ends_is_given_up(lengths, monkeypatch):
    monkeypatch.setattr(service, "ANSWER_BYTES", 10_000)
    lengths.said["POST", "/grade"] = Answer(200, {"grades": ["x" * 50_000]})
    assert "answered more than 10,000 bytes" in failed(grader(f"{lengths.url}/grade", retries=0))
