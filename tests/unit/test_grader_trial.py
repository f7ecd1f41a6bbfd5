"""`rlhf grade`: what it finds of a sound grader, and of ones that are not."""

import json
import re
from pathlib import Path

import pytest

from rlhf.__main__ import main
from rlhf.errors import ConfigError, DataError
from rlhf.rewards.trial import read_grader, read_rows, try_grader

SOUND = """
def grade(prompts, completions, reference, **columns):
    # Words that are right, less those that are not: neither much nor little of anything helps.
    def one(said, wanted):
        said, wanted = said.split(), wanted.split()
        return sum(a == b for a, b in zip(said, wanted)) - abs(len(said) - len(wanted))
    return [float(one(c, r)) for c, r in zip(completions, reference)]
"""


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [
        {"id": f"r{i}", "prompt": f"Say the number {i} in words please", "reference": f"number {i} is here",
         "completion": f"number {i if i % 2 else 'x'} is {'here' if i % 3 else 'there'}"}
        for i in range(80)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def trial(tmp_path, rows):
    def run(code: str):
        (tmp_path / "g.py").write_text(code)
        return try_grader(read_grader(f"{tmp_path}/g.py"), read_rows(str(rows), 500))

    return run


def test_a_sound_grader_has_no_problem(trial):
    found = trial(SOUND)
    assert found.problems == []
    assert sorted(set(found.known)) == [2.0, 3.0, 4.0]
    assert set(found.fakes) == {"empty", "repeated", "prompt-copying", "keyword-stuffed"}
    assert all(share == 0.0 for _, share in found.fakes.values())
    assert len(found.seconds) == 3


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import random\ndef grade(completions, **_): return [random.random() for _ in completions]", "not determin"),
        (
            "import random\ndef grade(completions, **_): return [random.choice([1.0, 'none']) for _ in completions]",
            "not determin",
        ),
        ("def grade(completions, **_): return list(range(len(completions)))", "depends on the other rows of a call"),
        ("def grade(completions, **_): return [1.0] * len(completions)", "100\u00a0% of the rows got the same grade"),
        ("def grade(completions, **_): return [None] * len(completions)", "It gave no row a grade"),
        ("def grade(completions, **_): return [len(c) for c in completions]", "gamed: repeated answers do at least"),
        ("def grade(completions, **_): return [-len(c) for c in completions]", "gamed: empty answers do at least"),
        (
            "def grade(prompts, completions, **_):\n"
            "    return [len(set(p.split()) & set(c.split())) / 10 for p, c in zip(prompts, completions)]",
            "gamed: prompt-copying answers do at least as well as the real ones for 100",
        ),
        (
            "def grade(prompts, completions, **_):\n"
            "    return [sum(w in c for w in p.split() if len(w) > 3) / len(c or 'x')\n"
            "            for p, c in zip(prompts, completions)]",
            "gamed: keyword-stuffed answers do at least",
        ),
        (
            "def grade(completions, id, **_): return ['?' if int(i[1:]) % 8 == 0 else hash(c) % 7 for i, c in "
            "zip(id, completions)]",
            "12\u00a0% of the rows got no grade because of a fault",
        ),
        (
            "def grade(completions, **_): return [1 / len(c.split()[0]) for c in completions]",
            "It fails at empty answers",
        ),
    ],
)
def test_a_problem_is_found_and_named(trial, code, expected):
    assert any(expected in problem for problem in trial(code).problems), trial(code).problems


def test_the_command_shows_writes_and_ends_with_1_at_a_problem(tmp_path, rows, capsys):
    (tmp_path / "g.py").write_text(SOUND)
    common = ["grade", "--grader", f"{tmp_path}/g.py", "--data", str(rows)]
    main([*common, "--rows", "40", "--out", f"{tmp_path}/page.html", "--json", f"{tmp_path}/found.json"])
    said = capsys.readouterr().out
    assert f"{tmp_path}/g.py:grade: 40 completions" in said
    assert re.search(r"grades       mean [\d.]+, standard deviation", said)
    assert "no problem found" in said
    assert re.search(r"best +4  r1: 'number 1 is here'", said)
    assert json.loads((tmp_path / "found.json").read_text())["problems"] == []
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Sound" in page
    assert "keyword-stuffed answers" in page
    with pytest.raises(SystemExit, match="1"):
        main(["grade", "--grader", "builtin.yaml", "--data", str(rows)])
    (tmp_path / "long.yaml").write_text("grader: {builtin: length, options: {least: 3}}\n")
    with pytest.raises(SystemExit, match="1"):
        main(["grade", "--grader", f"{tmp_path}/long.yaml", "--data", str(rows)])
    assert "PROBLEM: It can be gamed: repeated answers" in capsys.readouterr().out


def test_rows_are_read_in_the_shapes_that_data_comes_in(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = [
        {"input_text": "a", "candidate_0": "b", "candidate_1": "c", "choice": 0},
        {"messages": [{"author": "user", "content": "x"}], "output_text": "y"},
        {"id": "p", "prompt": "q", "prediction": "r", "reference": "s"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(lines))
    rows = read_rows(str(tmp_path / "rows.json"), 9)
    assert [(r.id, r.completion, r.reference) for r in rows] == [
        ("1", "b", None), ("1", "c", None), ("2", "y", "y"), ("p", "r", "s"),
    ]  # fmt: skip
    assert rows[2].prompt == [{"role": "user", "content": "x"}]
    asked, by = {"author": "user", "content": "hi"}, {"author": "assistant"}
    both = {"candidate_0": "x", "candidate_1": "y", "choice": 1}
    for last in ([asked, by | both], [asked | both]):
        (tmp_path / "rows.json").write_text(json.dumps([{"messages": last}]))
        rows = read_rows(str(tmp_path / "rows.json"), 9)
        assert [(r.prompt, r.completion) for r in rows] == [([{"role": "user", "content": "hi"}], c) for c in "xy"]
    pq.write_table(pa.table({"prompt": ["a", "b"], "completion": ["c", "d"]}), tmp_path / "rows.parquet")
    assert [row.completion for row in read_rows(str(tmp_path / "rows.parquet"), 1)] == ["c"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "found no rows"),
        ('{"a": 1}', "row 1: found no prompt or input_text or messages among a"),
        ('{"prompt": "a"}', "row 1: found nothing to grade, expected one of prediction"),
        (
            '{"messages": [{"author": "user"}], "completion": "c"}',
            "row 1: found a prompt that is neither text nor mess",
        ),
        ('{"prompt": 5, "completion": "c"}', "row 1: found a prompt that is neither text nor messages, expected role"),
        ("<html>", "cannot be read as rows"),
        ("[1]", "row 1: found no mapping"),
    ],
)
def test_what_is_no_data_is_said(tmp_path, content, expected):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match=expected):
        read_rows(str(tmp_path / "rows.jsonl"), 9)


def test_a_grader_is_named_in_several_ways(tmp_path):
    assert read_grader("g.py").function == "g.py:grade"
    assert read_grader("a.b:fn").function == "a.b:fn"
    assert read_grader("https://host/grade").http == "https://host/grade"
    (tmp_path / "g.yaml").write_text("- {builtin: length, options: {most: 9}, weight: 2.0}\n- {builtin: rouge}\n")
    assert [part.name for part in read_grader(f"{tmp_path}/g.yaml").sum] == ["length", "rouge"]
    (tmp_path / "g.yaml").write_text("bultin: length\n")
    with pytest.raises(ConfigError, match=r"unknown option 'grader\.bultin': did you mean 'builtin'"):
        read_grader(f"{tmp_path}/g.yaml")
    with pytest.raises(ConfigError, match=r"--grader none\.yaml: cannot be read as YAML"):
        read_grader("none.yaml")


@pytest.mark.parametrize("name", ["https://host/grader.py?sig=s3cret", "https://u:s3cret@host/grade"])
def test_no_secret_in_a_graders_name_is_said(name):
    with pytest.raises(ConfigError) as error:
        read_grader(name)
    assert "s3cret" not in str(error.value)
