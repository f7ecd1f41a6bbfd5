"""What is packed into the page, without a browser."""

import random
import re

import pytest

from rlhf.report.browser import SCRIPT, word_diff
from rlhf.report.page import Page, Section, paragraph, visible
from tests.browser.conftest import page_of, prose, row
from tests.pages import browsed


def own_words(text: str, runs: list[int]) -> list[str]:
    """The pieces that `word_diff` says only this text has."""
    units, pieces, start = text.encode("utf-16-le"), [], 0
    for number, length in enumerate(runs):
        pieces += [units[2 * start : 2 * (start + length)].decode("utf-16-le")] if number % 2 else []
        start += length
    return pieces


@pytest.mark.parametrize(
    ("before", "after", "own_before", "own_after"),
    [
        ("my boss sold it", "my boss stole it", ["sold"], ["stole"]),
        ("the cat sat", "the cat, sat", [], [","]),
        ("a b c d", "a x  y d", ["b c"], ["x  y"]),
        ("same", "same", [], []),
        ("", "new words", [], ["new words"]),
        ("🎸 sold 🎸🎸 today", "🎸 sold today", ["🎸🎸"], []),
        ("नमस्ते जी", "नमस्ते", ["जी"], []),
    ],
)
def test_the_diff_marks_the_words_that_one_text_has_alone(before, after, own_before, own_after):
    runs = word_diff(before, after)
    assert own_words(before, runs[0]) == own_before
    assert own_words(after, runs[1]) == own_after


def test_rows_come_back_as_they_were():
    rows = [row(i) for i in range(4)]
    data = browsed(page_of(rows, "some digest").render())
    assert [r["id"] for r in data["rows"]] == [r.id for r in rows]
    assert data["rows"][3]["texts"] == [rows[3].texts[name] for name in ("before", "after", "reference")]
    assert data["rows"][3]["scores"] == [rows[3].scores["reward"], 0.03]
    assert (data["digest"], data["names"]) == ("some digest", ["Before", "After", "Reference"])


def test_what_hides_is_shown_and_the_exact_text_is_kept_for_export():
    text = "a\x00b\u202ec\ud800"
    packed = browsed(page_of([row(0, original=text, prompt=text, texts={"before": text, "after": "x"})]).render())
    (made,) = packed["rows"]
    assert made["prompt"] == made["texts"][0] == visible(text) != text
    assert made["original"] == text
    assert made["exact"] == [text, "x"]
    assert made["texts"][2] is None


def test_scores_that_are_no_numbers_are_null():
    rows = [row(0, margin=float("nan"), outcome=None, scores={"reward": float("inf"), "ROUGE-L": None})]
    html = page_of(rows).render()
    (made,) = browsed(html)["rows"]
    assert (made["margin"], made["outcome"], made["scores"]) == (None, None, [None, None])
    assert ">Not judged <" in html


def test_sides_and_order_are_drawn_by_the_seed_alone():
    rows = [row(i) for i in range(200)]
    one, again, other = (browsed(page_of(rows, seed=seed).render()) for seed in (0, 0, 1))
    assert one == again
    assert one["ballots"] != other["ballots"] != sorted(other["ballots"])
    left = [sum(r["afterIsA"] for r in data["rows"]) for data in (one, other)]
    assert all(70 < count < 130 for count in left)
    assert [r["afterIsA"] for r in one["rows"]] != [r["afterIsA"] for r in other["rows"]]


def test_rows_in_which_both_wrote_the_same_are_not_voted_on():
    rows = [row(0), row(1, texts={"before": "same", "after": " same\n"}), row(2)]
    assert sorted(browsed(page_of(rows).render())["ballots"]) == [0, 2]


def test_two_thousand_rows_of_long_prompts_stay_under_5_mb():
    rng = random.Random(0)
    rows = []
    for number in range(2_000):
        prompt = prose(rng, tokens=512)
        texts = {name: prose(rng, tokens=64) for name in ("before", "after", "reference")}
        rows.append(row(number, prompt=f"Sum up.\n{prompt}\nTL;DR:", original=prompt, texts=texts))
    assert 3_000_000 < len(page_of(rows).render().encode()) < 5_000_000


def policy(html: str) -> dict[str, str]:
    (content,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)
    return dict(part.strip().partition(" ")[::2] for part in content.split(";"))


def test_a_page_allows_no_script_but_its_sections_own_by_its_hash():
    html = page_of([row(0)]).render()
    rules = policy(html)
    assert rules["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", rules["script-src"])
    assert rules["require-trusted-types-for"] == "'script'"
    assert re.findall(r"<script(.*?)>", html) == [' type="application/octet-stream" id="browser-data"', ""]
    assert f"<script>{SCRIPT}</script>" in html
    assert "runs no script" not in html


def test_a_page_without_a_script_allows_none():
    html = Page("t", "s", [Section("Only text", paragraph("x"), "text")]).render()
    assert policy(html) == {"default-src": "'none'", "style-src": "'unsafe-inline'", "img-src": "data:"}
    assert "<script" not in html
    assert "runs no script" in html


def test_the_script_cannot_end_itself_early():
    assert not re.search(r"</script|<!--|\]\]>", SCRIPT, re.IGNORECASE)


def test_a_page_without_rows_can_be_made():
    assert browsed(page_of([]).render())["rows"] == []
