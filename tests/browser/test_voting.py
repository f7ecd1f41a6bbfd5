"""Blind votes in Chromium: given, taken back, kept, counted and exported."""

import json

import pytest

from rlhf.metrics import win_rate
from rlhf.report.page import INVISIBLE
from tests.browser.conftest import json_lines, row
from tests.validation import options_that_pass, validate, written

ROWS = [row(i) for i in range(12)]
RIGHT, LEFT = "\ue014", "\ue012"


def kept(reader) -> list[str]:
    """Votes in the order they were given, as the browser keeps them."""
    return [v["vote"] for v in json.loads(reader.run("return localStorage.getItem(arguments[0]) || '[]'", reader.key))]


@pytest.fixture
def voter(reader):
    reader.open(ROWS)
    reader.key = f"rlhf votes {reader.digest}"
    reader.vote_blind()
    return reader


def side_of(reader, who: str) -> str:
    """A or B, by what this test's texts betray and no voter's would."""
    after_is_a = reader.sides()[0].startswith("my boss")
    return "AB"[after_is_a != (who == "after")]


def test_votes_are_given_by_mouse_and_by_keys(voter):
    expected = []
    for give in ("click A", "click B", "click tie", "1", "2", "3", "a", "B", "t"):
        choice = give.removeprefix("click ").upper().replace("TIE", "T").translate(str.maketrans("123", "ABT"))
        expected.append("tie" if choice == "T" else "after" if side_of(voter, "after") == choice else "before")
        voter.click(f"[data-vote={give[6:]}]") if give.startswith("click") else voter.press(give)
    assert kept(voter) == expected
    assert {"after", "before", "tie"} == set(expected)
    assert voter.text("#browser-progress") == "Row 10 of 12, 9 voted on"
    assert voter.one("#browser-bar").get_property("value") == 9


def test_nothing_tells_a_voter_which_is_which(voter):
    view = voter.one("[data-view=vote]")
    for _ in ROWS:
        assert [h.text for h in voter.all("#browser-sides h4")] == ["A", "B"]
        assert not {"wins", "tokens", "Before", "After"} & set(view.text.replace(",", " ").split())
        markup = view.get_attribute("outerHTML").lower()
        assert not [word for word in ("before", "after", "tokens", "win", "loss") if word in markup]
        voter.press(RIGHT)


def test_each_model_stands_on_each_side_and_the_order_is_not_the_datas(voter):
    sides, order = [], []
    for _ in ROWS:
        sides.append(side_of(voter, "after"))
        order.append(voter.text("#browser-prompt").split(":")[0])
        voter.press(RIGHT)
    assert set(sides) == {"A", "B"}
    assert len(set(order)) == 12
    assert order != [f"Post {i}" for i in range(12)]


def test_arrows_go_back_and_forth_and_show_the_vote_that_was_given(voter):
    voter.press("2")
    assert voter.pressed() == []
    voter.press(LEFT)
    assert voter.pressed() == ["B"]
    voter.press("1")
    assert kept(voter)[-1] != kept(voter)[0]
    assert voter.text("#browser-progress") == "Row 2 of 12, 1 voted on"
    voter.click("#browser-previous")
    assert voter.pressed() == ["A"]
    voter.click("#browser-previous")  # there is none
    assert voter.text("#browser-progress").startswith("Row 1 of 12")


def test_a_vote_goes_to_the_next_row_without_one(voter):
    voter.press(RIGHT * 11)
    voter.press("1")
    assert voter.text("#browser-progress") == "Row 1 of 12, 1 voted on"
    voter.press("1" * 11)
    assert voter.text("#browser-progress").endswith("of 12, all voted on")


def test_undo_takes_back_the_last_vote_and_shows_its_row(voter):
    voter.press("1")
    voter.press(LEFT + "3")
    voter.press(RIGHT * 4 + "u")
    assert voter.text("#browser-progress") == "Row 1 of 12, 1 voted on"
    assert voter.pressed() == ["A"]
    voter.click("#browser-undo")
    voter.click("#browser-undo")  # nothing is left
    assert voter.text("#browser-progress") == "Row 1 of 12, 0 voted on"
    assert kept(voter) == []


def test_keys_do_nothing_while_the_reader_is_elsewhere(voter):
    voter.run("document.querySelector('#browser-reveal').focus()")
    voter.press("1")
    voter.click("[data-mode=read]")
    voter.one("#browser-search").send_keys("a1")
    voter.run("document.activeElement.blur()")
    voter.press("1")
    assert kept(voter) == []
    voter.vote_blind()
    voter.run("document.activeElement.blur(); document.body.style.paddingTop = '300vh'; scrollTo(0, 0)")
    voter.press("1")  # nobody sees what it would be for
    assert kept(voter) == []
    voter.run("document.querySelector('#browser-ballot').scrollIntoView()")
    voter.press("1")
    assert len(kept(voter)) == 1


def test_votes_survive_a_reload_and_belong_to_their_comparison(voter):
    voter.press("132")
    before = kept(voter)
    voter.load("page.html")
    voter.wait_until_ready()
    voter.vote_blind()
    assert voter.text("#browser-progress") == "Row 4 of 12, 3 voted on"
    assert kept(voter) == before
    assert voter.text("#browser-limits") == "Votes stay in this browser, on this machine."
    voter.digest += "-other"
    voter.open(ROWS)
    voter.vote_blind()
    assert voter.text("#browser-progress") == "Row 1 of 12, 0 voted on"


JUNK = ["no json", "{}", "null", '[{"id": "row-0", "vote": "x"}, {"id": "no", "vote": "tie"}]']


@pytest.mark.parametrize("junk", JUNK)
def test_what_is_kept_and_is_no_vote_is_passed_over(voter, junk):
    voter.run("localStorage.setItem(arguments[0], arguments[1])", voter.key, junk)
    voter.load("page.html")
    voter.wait_until_ready()
    voter.vote_blind()
    assert voter.text("#browser-progress") == "Row 1 of 12, 0 voted on"


def test_votes_are_revealed_with_the_win_rate_and_its_interval(voter):
    votes = ["after"] * 6 + ["before"] * 2 + ["tie"]
    for vote in votes:
        voter.click(f"[data-vote={'tie' if vote == 'tie' else side_of(voter, vote)}]")
    assert not voter.one("#browser-result").is_displayed()
    voter.click("#browser-reveal")
    expected = win_rate([0] * 6 + [1] * 2 + [0], [1] * 6 + [0] * 2 + [0])
    said = voter.text("#browser-result").replace("\u00a0", " ")
    assert said.startswith("After won 6 of 8 decided votes: 75 %, 95 % interval ")
    assert f"{expected.low:.0%} to {expected.high:.1%}".replace("%", " %") in said
    assert "1 tie apart." in said
    assert {h.text for h in voter.all("#browser-sides h4")} <= {"A: After", "A: Before", "B: After", "B: Before"}
    assert "5 tokens" in voter.text("#browser-sides")
    voter.click("[data-mode=read]")
    assert voter.text("#browser-list").count("your vote: After") == 6


def test_the_judge_is_compared_on_rows_that_both_decided(voter):
    for _ in ROWS:
        voter.click(f"[data-vote={side_of(voter, 'after')}]")
    voter.click("#browser-reveal")
    wins, losses = (sum(r.outcome == outcome for r in ROWS) for outcome in ("win", "loss"))
    expected = f"the same in {wins} of the {wins + losses} rows that it and you decided"
    assert expected in voter.text("#browser-result")


def test_votes_are_exported_as_preferences_and_as_they_were_given(voter):
    given = {}
    for vote in ["after", "before", "tie", "after"]:
        number = voter.text("#browser-prompt").split(":")[0].removeprefix("Post ")
        given[f"row-{number}"] = (vote, side_of(voter, "after"))
        voter.click(f"[data-vote={'tie' if vote == 'tie' else side_of(voter, vote)}]")
    lines = json_lines(voter.downloaded("votes").read_text())
    assert lines == [{"id": row_id, "vote": vote, "side": side} for row_id, (vote, side) in given.items()]
    preferences = json_lines(voter.downloaded("preferences").read_text())
    assert voter.text("#browser-exported").endswith("3 preferences, without 1 tie.")
    by_prompt = {r.original: r for r in ROWS}
    assert len(preferences) == 3
    for line, (vote, _) in zip(preferences, [v for v in given.values() if v[0] != "tie"], strict=True):
        assert list(line) == ["prompt", "chosen", "rejected"]
        texts = by_prompt[line["prompt"]].texts
        other = "before" if vote == "after" else "after"
        assert (line["chosen"], line["rejected"]) == (texts[vote], texts[other])


def test_replies_in_a_conversation_are_messages_as_trl_has_them(reader):
    conversation = [{"role": "user", "content": "Hello."}]
    reader.open([row(0, original=conversation, texts={"before": "one", "after": "two"})])
    reader.vote_blind()
    reader.click(f"[data-vote={'AB'[reader.sides().index('one')]}]")
    replies = {
        name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "one"), ("rejected", "two"))
    }
    assert json_lines(reader.downloaded("preferences").read_text()) == [{"prompt": conversation, **replies}]


HARD = 'He said "\\no",\n\ttwice\u2028 \u202eback\u202c \x00\x1b 🎸 \U000e0041 </script> ]]> می\u200cخواهم'


@pytest.mark.parametrize("shape", ["text", "conversation"])
def test_data_validation_takes_the_export_to_the_character(reader, tmp_path, shape):
    prompts = originals = [f"Post {i} {HARD}" for i in range(30)]
    if shape == "conversation":
        system = {"role": "system", "content": "Be kind."}
        originals = [[system, {"role": "user", "content": prompt}] for prompt in prompts]
        prompts = [f"system: Be kind.\nuser: {prompt}\nassistant:" for prompt in prompts]
    texts = [{"before": f"before {i} {HARD}", "after": f"after {i} {HARD}"} for i in range(30)]
    texts[5]["after"] = ""
    reader.open([row(i, prompt=prompts[i], original=originals[i], texts=texts[i]) for i in range(30)])
    reader.vote_blind()
    reader.press("1" * 30)
    assert "all voted on" in reader.text("#browser-progress")
    exported = reader.downloaded("preferences")
    assert not INVISIBLE.search(exported.read_text(encoding="utf-8"))  # escaped: it can be looked at first

    inputs = options_that_pass(tmp_path) | {"preference_dataset": str(exported), "suffix": ""}
    validate(inputs, tmp_path)
    assert written(tmp_path, "quarantine") == []
    read = {
        (made["prompt"], frozenset((made["chosen"], made["rejected"]))) for made in written(tmp_path, "preferences")
    }
    assert read == {(prompts[i], frozenset(texts[i].values())) for i in range(30) if i != 5}
    assert reader.text("#browser-exported").endswith("29 preferences, without 1 row with an empty completion.")
