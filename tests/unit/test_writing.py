"""What data validation says of texts themselves: private data, odd characters, languages."""

import json
import re

import pytest

from rlhf.errors import DataError
from tests.intake import write_rows
from tests.validation import pair, said, validate, verdict

EMAIL, PHONE = "jane.doe@example.org", "+1 212-555-0123"


@pytest.fixture
def private(options, tmp_path):
    """Private data in the first prompt, in pairs that repeat and contradict each other, and in a row put aside."""
    prompts = [
        {"input_text": f"Write to {EMAIL} [summary]: "},
        *({"input_text": f"P {i} [summary]: "} for i in range(9)),
    ]
    rows = [pair(f"Call {PHONE}", "yes", "no")] * 2 + [pair(f"Call {PHONE}", "no", "yes")]
    bad = pair(f"Mail {EMAIL}") | {"choice": 2}
    write_rows(tmp_path / "prompts.jsonl", prompts)
    write_rows(tmp_path / "pairs.jsonl", [*rows, bad, *(pair(f"Post {i}") for i in range(40))])
    return options


def test_private_data_is_counted_and_nowhere_shown_whole(private, tmp_path, capsys):
    metrics = validate(private, tmp_path)
    found = verdict(tmp_path, "private_data", "all texts")
    assert found["outcome"] == "warning"
    assert found["value"] == metrics["private_data_share"] > 0
    assert "4 of " in found["text"]
    assert "phone number in 3" in found["text"]
    assert "e-mail address in 1" in found["text"]
    assert [example["text"] for example in found["examples"]] == ["Call +1 … 23 [summary]: "] * 2
    page, out = (tmp_path / "out" / "report.html").read_text(), capsys.readouterr().out
    for shown in (page, json.dumps(said(tmp_path), ensure_ascii=False), out):
        assert not [secret for secret in (EMAIL, "jane.doe", PHONE, "555-0123") if secret in shown]
    assert page.count("j…@e…org") >= 3, "in the table, in the first prompt, in quarantine"


def test_what_is_looked_for_is_said_and_what_is_not(options, private, tmp_path):
    looked_for = (
        "an e-mail address, a phone number (with +, or as it is written in North America or the UK) or a key. Names, "
        "postal addresses and other numbers are not looked for."
    )
    validate(private, tmp_path)
    text = verdict(tmp_path, "private_data", "all texts")["text"]
    assert re.fullmatch(
        r"4 of [\d,]+ texts looked at, .*: phone number in 3, e-mail address in 1\. "
        + re.escape(f"Looked for: {looked_for}"),
        text,
    )
    for name in ("pairs", "prompts"):
        rows = [pair(f"Post {i}") for i in range(40)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    validate(options, tmp_path)
    text = verdict(tmp_path, "private_data", "all texts")["text"]
    assert re.fullmatch(r"None in [\d,]+ texts looked at\. " + re.escape(f"Looked for: {looked_for}"), text)


def test_private_data_is_not_in_the_message_of_a_run_that_fails(private, tmp_path):
    with pytest.raises(DataError) as error:
        validate(
            private | {"checks": {"private_data": {"action": "fail"}, "duplicates": {"limit": 0, "action": "fail"}}},
            tmp_path,
        )
    message = str(error.value)
    assert "Call +1 … 23" in message
    assert "555" not in message
    assert not (tmp_path / "out" / "preferences" / "manifest.json").exists()


def test_odd_characters_are_named_with_rows_to_look_at(options, tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [pair(f"Post {i}", f"go\u200bod {i}") for i in range(40)])
    metrics = validate(options, tmp_path)
    found = verdict(tmp_path, "control_characters", "all texts")
    assert found["outcome"] == "warning"
    assert found["text"].startswith("Zero-width character in 40 of ")
    assert found["value"] == metrics["odd_characters_share"]
    assert [example["place"].rsplit(":")[-1] for example in found["examples"]] == ["1", "2"]
    assert "go⟨U+200B⟩od" in (tmp_path / "out" / "report.html").read_text()


def test_a_text_with_any_odd_character_counts_whatever_its_kind(options, tmp_path):
    odd = ["\u200b", "\ufffd", "\0", "\u200b\0"]
    rows = [pair(f"Post {i}", f"good {i}{odd[i] if i < 4 else ''}") for i in range(40)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    metrics = validate(options, tmp_path)
    found = verdict(tmp_path, "control_characters", "all texts")
    of = int(re.search(r"of ([\d,]+) texts looked at", found["text"])[1])
    assert found["value"] == metrics["odd_characters_share"] == pytest.approx(4 / of)
    assert found["text"].startswith(f"NUL in 2, zero-width character in 2, replacement character in 1 of {of} texts")
    assert [example["place"].rsplit(":")[-1] for example in found["examples"]] == ["1", "2"]


def test_the_share_of_other_languages_is_of_texts_long_enough_to_tell(options, tmp_path):
    english = "My brother borrowed my old guitar last summer and has never given it back to me since then"
    german = "Mein Bruder hat sich im letzten Sommer meine alte Gitarre geliehen und nie zurückgegeben"
    rows = [pair(f"{english}, {i}", f"{i}") for i in range(30)] + [pair(f"{german}, {i}", f"{i}") for i in range(10)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    metrics = validate(options, tmp_path)
    found = verdict(tmp_path, "other_languages", "all texts")
    assert found["outcome"] == "warning"
    assert metrics["other_languages_share"] == found["value"] == pytest.approx(10 / 40)
    assert "en 30, de 10" in found["text"]
    assert "Bruder" in found["examples"][0]["text"]
