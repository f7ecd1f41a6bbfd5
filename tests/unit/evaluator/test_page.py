"""The evaluator's page, its summary and what is written side by side."""

import json
import random
from typing import Any

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
