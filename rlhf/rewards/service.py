"""A grader that is a service: what is sent, and what may come back."""

import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from rlhf.data.file_systems import redacted
from rlhf.errors import TrainingError
from rlhf.rewards.config import RewardFunction
from rlhf.rewards.worker import row_name
from rlhf.secrets import key_in

ANSWER_BYTES = 2**24
SHOWN = 120  # characters of an answer, in messages
LONGEST_WAIT = 30.0  # seconds, between two tries
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # that may go well when tried again


class ServiceGrader:
    """Sends `{"prompts": [...], "completions": [...], "columns": {name: [...]}}`, and wants `{"grades": [...]}`.

    A grade is a number, or null where the service does not judge; `{"error": "..."}` in its place is a row that it
    could not grade.
    """

    reads_rendered = False

    def __init__(self, config: RewardFunction):
        """
        Raises:
            ConfigError: The variable that is to hold the key does not.
        """
        self.config = config
        self.faults: dict[int, str] = {}
        self._where = redacted(config.http)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if config.api_key_env:
            key = key_in(config.api_key_env, f"{config.words}: api_key_env")
            self._headers["Authorization"] = f"Bearer {key}"
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix=config.name)
        # A redirect would take the key to another host.
        self._open = urllib.request.build_opener(_NoRedirect).open

    def grade(
        self,
        prompts: Sequence[str | list[dict[str, str]]],
        completions: Sequence[str | list[dict[str, str]]],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float | None]:
        """Grades by the service, asked in batches; as `FunctionReward.grade`.

        Raises:
            TrainingError: It is down, slow, refuses, or answers what is no list of grades, after all tries.
        """
        self.faults = {}
        size, rows = self.config.batch_size, len(completions)
        starts = range(0, rows, size)

        def ask(start: int) -> list[Any]:
            part = slice(start, start + size)
            body = {
                "prompts": list(prompts[part]),
                "completions": list(completions[part]),
                "columns": {name: list(values[part]) for name, values in columns.items()},
            }
            first = columns["id"][start] if columns.get("id") else start + 1
            return self._ask(json.dumps(body).encode(), len(body["completions"]), first)

        found = [grade for answer in self._pool.map(ask, starts) for grade in answer]
        ids = columns.get("id")
        return [self._read(grade, row, rows, ids) for row, grade in enumerate(found)]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, grade: Any, row: int, rows: int, ids: Sequence[Any] | None) -> float | None:
        if grade is None:
            return None
        if isinstance(grade, int | float):
            return float(grade)
        said = grade["error"] if isinstance(grade, dict) and isinstance(grade.get("error"), str) else None
        what = f"could not grade ({said[:SHOWN]})" if said is not None else f"gave {_short(grade)}, no number or null,"
        self.faults[row] = f"{self.config.words}: {what} {row_name(row, rows, ids or [])}"
        return math.nan

    def _ask(self, body: bytes, rows: int, first: Any) -> list[Any]:
        again = Retrying(
            stop=stop_after_attempt(self.config.retries + 1),
            wait=_wait,
            retry=retry_if_exception(lambda error: isinstance(error, _NoGrades) and error.passing),
            reraise=True,
        )
        try:
            return again(self._once, body, rows)
        except _NoGrades as error:
            made = again.statistics["attempt_number"]
            tried = f", {made} times in a row" if made > 1 else ""
            words = (
                f"grader {self._where}: {error}{tried}, for the {rows} completions from row {first!r} on; see that "
                'the service runs and answers {"grades": [a number or null for each]}'
            )
            raise TrainingError(redacted(" ".join(words.split()))) from None

    def _once(self, body: bytes, rows: int) -> list[Any]:
        request = urllib.request.Request(self.config.http, body, self._headers, method="POST")
        seconds = self.config.timeout_seconds
        try:
            with self._open(request, timeout=seconds) as response:
                return self._grades(_read(response, seconds), rows)
        except urllib.error.HTTPError as error:
            raise _NoGrades(
                f"answered HTTP {error.code} ({_short(_said(error))})", error.code in PASSING, _retry_after(error)
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:  # URLError among them
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _NoGrades(f"took more than {seconds:g} s") from None
            raise _NoGrades(f"cannot be reached ({reason or type(reason).__name__})") from None

    def _grades(self, body: bytes, rows: int) -> list[Any]:
        try:
            answer = json.loads(body)
        except ValueError:
            what = "HTML" if body.lstrip()[:1] == b"<" else "no JSON"
            raise _NoGrades(f"answered {what} ({_short(body.decode('utf-8', 'replace'))})") from None
        grades = answer.get("grades") if isinstance(answer, dict) else None
        if not isinstance(grades, list):
            raise _NoGrades(f"answered JSON without a list `grades` ({_short(answer)})")
        if len(grades) != rows:
            raise _NoGrades(f"answered {len(grades)} grades for {rows} completions")
        return grades


class _NoGrades(Exception):
    """Why there are none; whether they may come when asked again, and after how many seconds at least."""

    def __init__(self, words: str, passing: bool = True, seconds: float = 0.0):
        super().__init__(words)
        self.passing, self.seconds = passing, seconds


def _wait(state: RetryCallState) -> float:
    return max(_EXPONENTIAL(state), state.outcome.exception().seconds)


_EXPONENTIAL = wait_exponential(multiplier=0.5, max=LONGEST_WAIT)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _read(response: Any, seconds: float) -> bytes:
    """All of an answer, which may neither be long nor trickle in."""
    deadline, parts, total = time.monotonic() + seconds, [], 0
    while part := response.read1(65536):
        parts.append(part)
        total += len(part)
        if total > ANSWER_BYTES:
            raise _NoGrades(f"answered more than {ANSWER_BYTES:,} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(parts)


def _said(error: urllib.error.HTTPError) -> str:
    """The beginning of an error's text; empty where it does not come."""
    try:
        with error:
            return error.read(SHOWN * 4).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""


def _retry_after(error: urllib.error.HTTPError) -> float:
    value = error.headers.get("Retry-After", "")
    return min(float(value), LONGEST_WAIT) if value.isdecimal() else 0.0


def _short(said: Any) -> str:
    said = " ".join((said if isinstance(said, str) else json.dumps(said)).split())
    return repr(said if len(said) <= SHOWN else f"{said[:SHOWN]}...")
