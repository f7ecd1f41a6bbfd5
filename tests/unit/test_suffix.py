"""How prompts end: found in the data, one for all sources, and taken off completions."""

import pytest

from rlhf.data.store import read_dataset
from rlhf.data.template import Template
from rlhf.data_validation.suffix import detect, without_marker
from rlhf.errors import DataError
from tests.intake import write_rows
from tests.validation import validate


@pytest.mark.parametrize(
    ("endings", "suffix"),
    [
        ([" [summary]: "] * 10, " [summary]: "),
        (["\nTL;DR:"] * 10, "\nTL;DR:"),
        (["\n\nTL;DR:"] * 6 + ["\nTL;DR: "] * 4, "\n\nTL;DR:"),
        (["\n\nAssistant:"] * 10, "\n\nAssistant:"),
        (["\n### Your summary"] * 10, "\n### Your summary"),
        ([" TL;DR:"] * 9 + [""], " TL;DR:"),
        ([" TL;DR:"] * 8 + [""] * 2, ""),
        ([""] * 10, ""),
        ([" Why?"] * 10, ""),
        ([" TL;DR:"], ""),
    ],
)
def test_the_suffix_is_the_ending_that_nine_tenths_of_the_prompts_share(endings, suffix):
    texts = [f"Post number {i}.{ending}" for i, ending in enumerate(endings)]
    assert detect({"prompt_dataset": texts}, {})[0] == suffix


def test_repeating_one_prompt_makes_no_suffix():
    assert detect({"prompt_dataset": ["Name three things:"] * 10}, {}) == ("", "")


def test_one_source_gives_its_suffix_to_the_others(options, tmp_path):
    write_rows(tmp_path / "eval.jsonl", [{"input_text": "No ending."}])
    validate(options, tmp_path)
    rows, _, template = read_dataset(tmp_path / "out" / "evaluation", "prompts")
    assert template.render(rows[0]["prompt"]) == "No ending. [summary]: "


def test_two_suffixes_are_an_error_unless_one_is_given(options, tmp_path):
    write_rows(tmp_path / "prompts.jsonl", [{"input_text": f"Post {i}.\nTL;DR:"} for i in range(9)])
    del options["demonstration_dataset"]
    with pytest.raises(DataError, match=r"suffix: .*'TL;DR:' in prompt_dataset.*; make them alike"):
        validate(options, tmp_path)
    validate(options | {"suffix": "TL;DR:"}, tmp_path)
    assert Template.load(tmp_path / "out" / "prompts").suffix == "TL;DR:"


def test_a_marker_that_candidates_begin_with_moves_to_the_prompts(options, tmp_path):
    def row(i):
        return {"prompt": f"POST: {i}", "chosen": f"TL;DR:  good {i}", "rejected": "TL;DR:  bad"}

    write_rows(tmp_path / "pairs.jsonl", [row(i) for i in range(9)])
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"POST: {i}"} for i in range(9)])
    write_rows(tmp_path / "eval.jsonl", [{"prompt": "POST: x", "label": "TL;DR: ref"}])
    validate(options | {"demonstration_dataset": ""}, tmp_path)
    rows, _, template = read_dataset(tmp_path / "out" / "preferences", "preferences")
    assert template.render(rows[0]["prompt"]) == "POST: 0\nTL;DR: "
    assert (rows[0]["chosen"].strip(), rows[0]["rejected"].strip()) == ("good 0", "bad")
    assert read_dataset(tmp_path / "out" / "evaluation", "prompts")[0][0]["reference"].strip() == "ref"


def test_a_marker_inside_a_completion_stays():
    assert without_marker("So, TL;DR: it works", "TL;DR:") == "So, TL;DR: it works"
    assert without_marker("TL;DR:", "TL;DR:") == "TL;DR:"
    assert without_marker("words", "") == "words"
