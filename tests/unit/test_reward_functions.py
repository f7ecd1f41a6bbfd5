"""A reward function of the user's own: what it is given, what it may return, and how its faults are said."""
# ruff: noqa: F811 - tests take a fixture that is imported

import math
import os
import re
import time
from zlib import crc32

import pytest

from rlhf.errors import ConfigError, TrainingError
from rlhf.rewards import functions
from rlhf.rewards.config import RewardFunction
from rlhf.rewards.functions import FunctionReward
from tests.reward_functions import children, failed, grade, one_line, refused, reward  # noqa: F401

# What it is given, and what it may return


def test_a_function_is_called_with_prompts_completions_and_columns(reward):
    function = reward(
        "def fn(prompts, completions, **columns):\n"
        "    assert columns == {'id': ['x', 'y'], 'reference': ['bb', None]}, columns\n"
        "    return [float(p == 'P 0') + (c == r) for p, c, r in zip(prompts, completions, columns['reference'])]\n"
    )
    assert grade(function, id=["x", "y"], reference=["bb", None]) == [1.0, 0.0]


def test_a_function_can_be_one_of_a_package_that_this_process_finds(tmp_path, monkeypatch):
    (tmp_path / "company").mkdir()
    (tmp_path / "company/graders.py").write_text("def fn(**_): return [1, 2]\n")
    monkeypatch.syspath_prepend(tmp_path)
    function = FunctionReward(RewardFunction(function="company.graders:fn"))
    assert grade(function) == [1.0, 2.0]
    function.close()


def test_every_kind_of_number_is_a_reward(reward):
    function = reward(
        "import numpy\nfrom fractions import Fraction\n"
        "def fn(**_): return [True, 2, numpy.float32(0.5), numpy.int64(3), Fraction(1, 4), None]\n"
    )
    rewards = grade(function, "abcdef")
    assert rewards == [1.0, 2.0, 0.5, 3.0, 0.25, None]
    assert {type(reward) for reward in rewards[:-1]} == {float}


def test_an_array_is_as_good_as_a_list(reward):
    assert grade(reward("import numpy\ndef fn(**_): return numpy.array([1.5, 2])\n")) == [1.5, 2.0]


def test_rewards_that_are_not_finite_stay_for_the_caller_to_count(reward):
    rewards = grade(reward("def fn(**_): return [float('nan'), float('inf'), -float('inf')]\n"), "abc")
    assert math.isnan(rewards[0])
    assert rewards[1:] == [math.inf, -math.inf]


def test_a_function_may_be_async_and_keeps_its_event_loop(reward):
    function = reward(
        "import asyncio\nloops = set()\n"
        "async def fn(completions, **_):\n"
        "    await asyncio.sleep(0)\n"
        "    loops.add(id(asyncio.get_running_loop()))\n"
        "    return [len(loops)] * len(completions)\n"
    )
    assert grade(function) == grade(function) == [1.0, 1.0]


def test_a_function_is_loaded_once_and_remembers(reward):
    function = reward("calls = []\ndef fn(**_):\n    calls.append(1)\n    return [len(calls)] * 2\n")
    assert [grade(function)[0] for _ in range(3)] == [1.0, 2.0, 3.0]


def test_what_a_function_prints_reaches_the_log_and_disturbs_nothing(reward, capfd):
    function = reward(
        "import os, sys\nprint('{\"rewards\": [9, 9]}')\n"
        "def fn(completions, **_):\n"
        "    print('from the function'); print('{}', file=sys.stderr); os.write(1, b'raw' * 100_000)\n"
        "    return [1] * len(completions)\n"
    )
    assert grade(function) == grade(function) == [1.0, 1.0]
    assert "from the function" in capfd.readouterr().out


def test_any_text_reaches_the_function_as_it_is(reward):
    texts = ["two\nlines", "\u2028 é 🙂 \x00", "\ud800", "x" * 3_000_000, ""]
    function = reward(
        "from zlib import crc32\n"
        "def fn(completions, reference, **_):\n"
        "    assert completions == reference\n"
        "    return [crc32(text.encode('utf-8', 'surrogatepass')) for text in completions]\n"
    )
    assert grade(function, texts, reference=texts) == [crc32(text.encode("utf-8", "surrogatepass")) for text in texts]


def test_a_file_can_import_its_neighbours_and_be_called_as_a_library_is(tmp_path):
    (tmp_path / "neighbour.py").write_text("VALUE = 7\n")
    (tmp_path / "json.py").write_text(
        "from neighbour import VALUE\ndef fn(**_):\n    import json\n    return [VALUE, json.loads('8')]\n"
    )
    function = FunctionReward(RewardFunction(function=f"{tmp_path}/json.py:fn"))
    assert grade(function) == [7.0, 8.0]
    function.close()


def test_the_process_that_trains_does_not_run_the_function(reward):
    function = reward("import os\ndef fn(**_): return [os.getpid(), os.getppid()]\n")
    child, parent = grade(function)
    assert child != parent == os.getpid()


# What is refused before anything is trained


@pytest.mark.parametrize("function", ["graders.txt", "graders.py:", ":fn", "graders.py:not a name", ""])
def test_a_function_that_is_not_named_by_place_and_name_is_refused(function):
    with pytest.raises(
        ConfigError, match=r"function: found .* expected: .*path/to/file.py:name or package.module:name"
    ):
        RewardFunction.parse({"function": function})


@pytest.mark.parametrize(
    "option", [{"timeout_seconds": 0}, {"timeout_seconds": math.inf}, {"weight": math.nan}, {"wieght": 1}]
)
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ConfigError, match=next(iter(option))):
        RewardFunction.parse({"function": "graders.py:fn"} | option)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("nowhere/graders.py:fn", r"there is no file .*nowhere/graders.py; correct the path"),
        ("tests.no_such_module:fn", r"there is no module tests.no_such_module; correct its name, install it"),
        ("no_such_package.graders:fn", r"there is no module no_such_package; correct its name, install it"),
        ("math:no_such", r"there is no no_such in math"),
    ],
)
def test_a_place_where_there_is_no_function_is_refused(function, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        FunctionReward(RewardFunction(function=function))
    assert f"reward function {function}: " in one_line(caught.value)


def test_a_file_without_the_function_is_refused_with_those_it_has(reward):
    code = "from math import sqrt\nfrom textwrap import dedent\ndef length(**_): ...\ndef overlap(**_): ...\n"
    assert "there is no fn in " in (message := refused(reward, code))
    assert "which has length, overlap; correct it" in message


def test_what_cannot_be_called_is_refused(reward):
    assert "found [1, 2] (list), expected a function fn(prompts, completions, **columns)" in refused(
        reward, "fn = [1, 2]"
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("\nimport no_such_package\n", r"ModuleNotFoundError: No module named 'no_such_package' at .*graders.py:2; "),
        ("def fn(:\n", r"SyntaxError: .*graders.py, line 1\); "),
        ("\n\n1 / 0\n", r"ZeroDivisionError: division by zero at .*graders.py:3; "),
        ("raise SystemExit('bye')\n", r"SystemExit: bye at .*graders.py:1; "),
        ("raise ValueError('two\\nlines')\n", r"ValueError: two lines at .*graders.py:1; "),
    ],
)
def test_a_file_that_cannot_be_run_is_refused_with_its_error_and_line(reward, code, expected):
    message = refused(reward, code)
    assert re.search(r"cannot be loaded: " + expected, message)


def test_a_file_that_ends_its_process_when_loaded_is_refused(reward):
    assert "its process ended (exit status 3) during loading" in refused(reward, "import os\nos._exit(3)\n")


def test_a_file_that_never_gets_loaded_is_refused_and_its_process_ended(reward, tmp_path, monkeypatch):
    monkeypatch.setattr(functions, "LOAD_SECONDS", 1.0)
    monkeypatch.setattr(functions.tempfile, "tempdir", str(tmp_path))
    started = children()
    assert "loading took more than 1 s, so its process was ended" in refused(reward, "while True: pass\n")
    assert children() == started
    assert not list(tmp_path.glob("grader-*")), "nothing of it is left"


# What ends training


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            "def fn(**_):\n    raise KeyError('colour')\n",
            r"raised KeyError: 'colour' at .*graders.py:2, expected rewards",
        ),
        ("import json\ndef fn(**_):\n\n    json.loads('{')\n", r"raised JSONDecodeError: .* at .*graders.py:4, "),
        ("def fn(**_):\n    raise SystemExit(0)\n", r"raised SystemExit: 0 at .*graders.py:2, "),
        ("async def fn(**_):\n    1 / 0\n", r"raised ZeroDivisionError: .* at .*graders.py:2, "),
        (
            "def fn(**_):\n    raise ValueError('x' * 10_000_000)\n",
            r"raised ValueError: x{100,500} at .*graders.py:2, ",
        ),
    ],
)
def test_a_function_that_raises_ends_training_with_its_error_and_line(reward, code, expected):
    assert re.search(expected, failed(reward(code)))


def test_a_function_that_does_not_take_the_columns_is_told_what_it_is_given(reward):
    message = failed(reward("def fn(prompts, completions): return [0, 0]\n"), id=["x", "y"])
    assert "unexpected keyword argument 'id', expected it to take fn(prompts, completions, **columns)" in message


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("[1.0]", "returned 1 rewards for 2 completions, expected one for each"),
        ("[]", "returned 0 rewards for 2 completions, expected one for each"),
        ("[1, 2, 3]", "returned 3 rewards for 2 completions, expected one for each"),
        ("0.5", "returned 0.5 (float), expected a list"),
        ("None", "returned None (NoneType), expected a list"),
        ("'ab'", "returned 'ab' (str), expected a list"),
        ("{'a': 1, 'b': 2}", "returned {'a': 1, 'b': 2} (dict), expected a list"),
        ("['a', 'b']", "returned 'a' (str) for row 1 of 2 (id 'x'), expected a number or None"),
    ],
)
def test_what_is_not_a_number_for_each_completion_ends_training(reward, returned, expected):
    assert expected in failed(reward(f"def fn(**_): return {returned}\n"), id=["x", "y"])


@pytest.mark.parametrize(
    ("returned", "row", "expected"),
    [
        ("[1, 'good']", 1, "returned 'good' (str) for row 2 of 2 (id 'y'), expected a number or None"),
        ("['1.5', 1]", 0, "returned '1.5' (str) for row 1 of 2 (id 'x'), expected a number or None"),
        ("[1, [2]]", 1, "returned [2] (list) for row 2 of 2 (id 'y'), expected a number or None"),
        ("[1j, 1]", 0, "returned 1j (complex) for row 1 of 2 (id 'x'), expected a number or None"),
    ],
)
def test_a_single_row_without_a_number_is_nan_and_said(reward, returned, row, expected):
    function = reward(f"def fn(**_): return {returned}\n")
    rewards = grade(function, id=["x", "y"])
    assert math.isnan(rewards[row])
    assert rewards[1 - row] == 1.0
    assert list(function.faults) == [row]
    assert function.faults[row].startswith("reward function ")
    assert expected in function.faults[row]


def test_a_single_row_that_raises_is_nan_and_said_with_its_error_and_line(reward):
    function = reward("def fn(completions, **_): return [1 / len(c) for c in completions]\n")
    rewards = grade(function, ["aa", "", "a"], id=["x", "y", "z"])
    assert rewards[::2] == [0.5, 1.0]
    assert math.isnan(rewards[1])
    assert re.search(r"raised ZeroDivisionError: .* at .*graders.py:1 for row 2 of 3 \(id 'y'\)", function.faults[1])
    assert grade(function, ["aa", "a"]) == [0.5, 1.0]
    assert function.faults == {}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("time.sleep(1000)", "hung for row 6 of 8 (id 5)"),
        ("os._exit(3)", "its process ended (exit status 3) for row 6"),
    ],
)
def test_a_single_row_that_hangs_or_ends_the_process_is_found_and_skipped(reward, body, expected):
    function = reward(
        f"import os, time\ndef fn(completions, **_):\n    if 'bad' in completions:\n        {body}\n"
        "    return [len(c) for c in completions]\n",
        timeout_seconds=2.0,
    )
    rewards = grade(function, ["a", "aa", "a", "a", "a", "bad", "a", "aaa"], id=list(range(8)))
    assert [r for r in rewards if not math.isnan(r)] == [1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 3.0]
    assert math.isnan(rewards[5])
    assert expected in function.faults[5]
    assert grade(function) == [1.0, 2.0]


ENDS_AT_B = (
    "import os\ndef fn(completions, **_):\n"
    "    'b' in completions and os._exit(3)\n    return [1 for _ in completions]\n"
)


def test_rows_in_both_halves_that_end_the_process_are_found_up_to_a_bound(reward, monkeypatch):
    function = reward(ENDS_AT_B)
    rewards = grade(function, "baab", id=list("wxyz"))
    assert rewards[1:3] == [1.0, 1.0]
    assert all(map(math.isnan, rewards[::3]))
    assert "its process ended (exit status 3) for row 1 of 4 (id 'w')" in function.faults[0]
    assert "its process ended (exit status 3) for row 4 of 4 (id 'z')" in function.faults[3]
    monkeypatch.setattr(functions, "MOST_ROWS_THAT_END_IT", 1)
    with pytest.raises(TrainingError, match="its process ended"):
        grade(function, "baab")


def test_rows_that_end_the_process_are_counted_by_call_not_by_run(reward, monkeypatch):
    monkeypatch.setattr(functions, "MOST_ROWS_THAT_END_IT", 1)
    function = reward(ENDS_AT_B)
    for _ in range(3):
        assert math.isnan(grade(function, "ab")[1])


def test_a_row_that_raises_beside_one_that_hangs_is_a_fault_of_its_own(reward):
    function = reward(
        "import time\ndef fn(completions, **_):\n    if 'hangs' in completions: time.sleep(1000)\n"
        "    return [1 / len(c) for c in completions]\n",
        timeout_seconds=2.0,
    )
    rewards = grade(function, ["hangs", "", "a", "aa"], id=list("wxyz"))
    assert rewards[2:] == [1.0, 0.5]
    assert all(map(math.isnan, rewards[:2]))
    assert "hung for row 1 of 4 (id 'w')" in function.faults[0]
    assert re.search(r"raised ZeroDivisionError: .* at .*graders.py:4 for row 2 of 4 \(id 'x'\)", function.faults[1])


def test_what_a_slow_function_raised_is_not_lost_where_its_rows_take_too_long_one_by_one(reward, monkeypatch):
    monkeypatch.setattr(functions, "MOST_ROWS_THAT_END_IT", 1)
    function = reward(
        "import time\ndef fn(completions, **_):\n    time.sleep(1.4)\n    raise KeyError('colour')\n",
        timeout_seconds=2.0,
    )
    with pytest.raises(TrainingError, match=r"raised KeyError: 'colour' at .*graders.py:4.* took more than 2 s"):
        grade(function, "abcd")


def test_rows_are_graded_one_by_one_in_a_time_of_their_own(reward):
    function = reward(
        "import time\ndef fn(completions, **_):\n"
        "    if len(completions) > 1:\n        time.sleep(1.4)\n        raise KeyError('colour')\n"
        "    open('calls', 'a').write(completions[0])\n    time.sleep(0.3)\n    return [1]\n",
        timeout_seconds=2.0,
    )
    assert grade(function, "abcd") == [1.0] * 4
    assert (function._scratch / "work/calls").read_text() == "abcd", "none of them twice"


def test_many_completions_are_graded_in_calls_of_some(reward):
    function = reward(
        "def fn(completions, id, **_):\n"
        "    assert id == completions\n"
        "    return ['no' if c == '70' else len(completions) for c in completions]\n"
    )
    texts = [str(i) for i in range(130)]
    rewards = grade(function, texts, id=texts)
    assert [r for r in rewards if not math.isnan(r)] == [43.0] * 43 + [43.0] * 42 + [44.0] * 44
    assert list(function.faults) == [70]
    assert "returned 'no' (str)" in function.faults[70]
    assert "(id '70')" in function.faults[70]
    assert grade(function, texts[:64], id=texts[:64]) == [64.0] * 64


def test_rewards_are_counted_against_the_completions_that_were_given(reward):
    function = reward("def fn(completions, **_):\n    completions.pop()\n    return [1] * len(completions)\n")
    assert "returned 1 rewards for 2 completions" in failed(function)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("os._exit(3)", "exit status 3"),
        ("os._exit(0)", "exit status 0"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("os.abort()", "SIGABRT"),
        ("os.system('sleep 987.5 &'); os._exit(3)", "exit status 3"),
        ("os.fork() and os._exit(3); os.fork(); import time; time.sleep(60)", "exit status 3"),
    ],
)
def test_a_function_that_ends_its_process_is_said_at_once(reward, how, expected):
    function = reward(f"import os, signal\ndef fn(**_): {how}\n")
    before = time.monotonic()
    assert f"its process ended ({expected}) during a call with 2 completions" in failed(function)
    assert time.monotonic() - before < 10
    assert "its process ended" in failed(function)  # and stays said


# Where the file is


def test_a_file_alone_is_its_function_grade(tmp_path):
    (tmp_path / "g.py").write_text("def grade(**_): return [1, 2]\n")
    function = FunctionReward(RewardFunction(function=f"{tmp_path}/g.py"))
    assert function.config.name == "grade"
    assert grade(function) == [1.0, 2.0]
    function.close()


def test_a_file_can_travel_as_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = FunctionReward(RewardFunction(function="my/g.py:fn", source="def fn(**_): return [3, 4]\n"))
    assert grade(function) == [3.0, 4.0]
    function.close()
    with pytest.raises(ConfigError, match=r"reward function my/g.py:fn: cannot be loaded: SyntaxError.*g.py"):
        FunctionReward(RewardFunction(function="my/g.py:fn", source="def fn(:\n"))


def test_a_file_can_lie_at_a_uri():
    import fsspec

    fsspec.filesystem("memory").pipe_file("/team/g.py", b"def fn(**_): return [5, 6]\n")
    function = FunctionReward(RewardFunction(function="memory://team/g.py:fn"))
    assert grade(function) == [5.0, 6.0]
    function.close()
    with pytest.raises(ConfigError, match=r"reward function memory://team/none.py:fn: cannot be read \(FileNotFound"):
        FunctionReward(RewardFunction(function="memory://team/none.py:fn"))


def test_a_function_that_raises_for_completions_of_one_prompt_is_not_broken(reward):
    function = reward(
        "def fn(completions, **_):\n"
        "    if 'bad' in completions: raise ValueError('no reference')\n"
        "    return [1.0] * len(completions)\n"
    )
    rewards = grade(function, ["bad"] * 8 + ["good"] * 24)
    assert [math.isnan(r) for r in rewards] == [True] * 8 + [False] * 24
    rewards = grade(function, ["good"] * 64 + ["bad"] * 64)
    assert [math.isnan(r) for r in rewards] == [False] * 64 + [True] * 64
    assert "no reference" in function.faults[127]
    with pytest.raises(TrainingError, match="no reference"):
        grade(function, ["bad"] * 128)
