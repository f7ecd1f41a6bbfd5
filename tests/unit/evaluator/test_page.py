"""The evaluator's page, its summary and what is written side by side."""

import json
import random
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf.evaluator import page
from rlhf.evaluator.compare import Controlled
from rlhf.metrics import win_rate_of
from tests.pages import browsed


def test_texts_are_no_markup_of_the_page(scored):
    scored.after[2]["prediction"] = "<script>alert(1)</script> \u202eevil \x07 \u2028 next"
    scored.before[2]["model"] = "<img src=x onerror=alert(1)>"
    scored.run()
    html = (scored.folder / "report.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in html
    assert "<img" not in html
    assert "\u202e" not in html


def test_of_many_rows_the_browser_has_a_seeded_choice(scored):
    def said(**options: Any) -> str:
        scored.run(**options)
        return scored.report

    assert "5 of 12 prompts, drawn at random (seed 3)" in said(side_by_side_rows=5, seed=3)
    assert "drawn at random" not in said()


def test_rows_are_written_side_by_side(scored):
    scored.rows[1]["reference"] = None
    scored.run()
    rows = [json.loads(line) for line in (scored.folder / "side_by_side.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in scored.rows]
    assert rows[0]["outcomes"] == {"reward model": 1.0}
    assert rows[0]["scores"] == {"reward model": [2.0, 4.0, 4.0]}
    assert rows[1]["scores"]["reward model"][2] is None


def test_the_summary_says_the_verdict_and_cannot_be_broken_by_a_name(scored):
    scored.run()
    text = (scored.folder / "summary.md").read_text(encoding="utf-8")
    assert text.startswith("# Promote\n")
    assert "| reward model | 100\u00a0%" in text


def test_the_page_has_its_sections_in_reading_order(scored):
    scored.log("sft_logs", {"sft/loss": [3.0, 2.0, 1.0]})
    scored.run()
    html = (scored.folder / "report.html").read_text(encoding="utf-8")
    order = [
        html.index(f'<section id="{name}"')
        for name in ("verdict", "numbers", "judges", "training", "rewards", "health", "side-by-side")
    ]
    assert order == sorted(order)
    assert "Promote" in scored.report


def test_of_long_rows_the_browser_has_as_many_as_keep_the_page_small(scored):
    rng = random.Random(0)
    row, before, after = scored.rows[0], scored.before[0], scored.after[0]
    posts = [rng.randbytes(3000).hex() for _ in range(2000)]  # text that hardly compresses
    scored.rows = [{**row, "id": str(i)} for i in range(2000)]
    scored.before = [{**before, "id": str(i), "prompt": post} for i, post in enumerate(posts)]
    scored.after = [{**after, "id": str(i), "prompt": post} for i, post in enumerate(posts)]
    scored.run()
    page = (scored.folder / "report.html").read_text(encoding="utf-8")
    shown = len(browsed(page)["rows"])
    assert f"{shown:,} of 2,000 prompts, drawn at random (seed 0); with more of this length" in page
    assert 3e6 < len(page.encode()) < 5e6


@pytest.mark.parametrize(
    ("outcomes", "controlled", "figure", "said"),
    [
        ([0.5] * 10, (0.5, 0.4, 0.6), "none", "no pair is decided; 10 ties"),
        ([1.0] * 10, (None, None, None), "100 %", "as the lengths are; not known at equal ones; 72 % to 100 %"),
        ([1.0] * 10, (0.9, 0.7, 0.99), "90 %", "at equal lengths; 70 % to 99.0 %"),
    ],
)
def test_the_win_rate_is_none_as_it_is_or_at_equal_lengths(outcomes, controlled, figure, said):
    main = SimpleNamespace(wins=win_rate_of(outcomes), controlled=Controlled(*controlled, None, 10))
    found, what = page._win_rate(main)
    assert found.replace("\u00a0", " ") == figure
    assert what.replace("\u00a0", " ").startswith(said)


@pytest.mark.parametrize(
    ("won", "high", "parted"), [(55, -0.1, False), (85, 0.1, False), (85, -0.1, True), (55, 0.1, False)]
)
def test_judges_part_only_where_each_is_sure(won, high, parted):
    """55 won of 100 may be half, by Wilson's interval; a change of ROUGE-L whose interval has 0 in it may be none."""
    judgement = SimpleNamespace(name="reward model", wins=win_rate_of([1.0] * won + [0.0] * (100 - won)))
    metrics = {"rouge_l_before": 0.5, "rouge_l_after": 0.3, "rouge_l_change_low": -0.3, "rouge_l_change_high": high}
    changes = page._changes(SimpleNamespace(metrics=metrics, judgements=[judgement]))
    assert bool(page.health.disagreements(changes)) is parted
