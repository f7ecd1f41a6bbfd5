"""Searching, sorting and filtering rows in Chromium; how the page looks and what it says to assistive technology."""

import itertools
import random
import re

import pytest

from rlhf.report.page import write_page
from tests.browser.conftest import page_of, prose, row, until
from tests.unit.test_report import luminance

ROWS = [row(i) for i in range(45)]


def test_the_first_rows_are_there_and_more_come_on_request(reader):
    reader.open(ROWS)
    assert len(reader.titles()) == 20
    assert reader.text("#browser-status") == "45 rows, 20 shown."
    reader.click("#browser-more")
    assert reader.text("#browser-more") == "Show 5 more"
    reader.click("#browser-more")
    assert len(set(reader.titles())) == 45
    assert not reader.one("#browser-more").is_displayed()
    # The focus goes on where the reader does.
    assert (
        reader.run("return document.activeElement.closest('article').querySelector('.id').textContent")
        == (reader.titles()[40])
    )


def test_a_row_shows_its_texts_facts_and_outcome_and_folds_its_prompt(reader):
    reader.open([row(2)])
    shown = reader.text("#browser-list")
    for text in ("Prompt 1", "row-2", "boss sold guitar 2", "my boss sold my guitar 2", "guitar sold, 2", "5 tokens"):
        assert text in shown
    assert "tie, 0.00" in shown
    assert "Post 2" not in shown
    reader.click("#browser-list summary")
    assert "Post 2: my boss sold my guitar.\nTL;DR:" in reader.text("#browser-list")


def test_search_reads_prompts_texts_and_ids(reader):
    reader.open(ROWS)
    reader.search("POST 31:", "1 of 45 rows")
    assert reader.titles() == ["row-31"]
    reader.search("row-4", "6 of 45 rows")
    assert set(reader.titles()) == {"row-4", *(f"row-4{i}" for i in range(5))}
    reader.search("guitar sold, 17", "1 of 45 rows")
    assert reader.titles() == ["row-17"]
    reader.search("no such thing", "No row of 45 fits.")
    assert reader.titles() == []
    assert not reader.one("#browser-more").is_displayed()


def test_rows_are_sorted_by_margin_by_each_score_and_by_how_typical_they_are(reader):
    rows = [row(i, margin=m, scores={"reward": m, "ROUGE-L": -i}) for i, m in enumerate([1.0, -3.0, 0.5, None, 4.0])]
    reader.open(rows)
    order = {
        "Most typical margin first": [0, 2, 4, 1, 3],  # the median is 0.75
        "Margin: most for After": [4, 0, 2, 1, 3],
        "Margin: most for Before": [1, 2, 0, 4, 3],
        "reward: most for After": [4, 0, 2, 1, 3],
        "ROUGE-L: most for Before": [4, 3, 2, 1, 0],
        "Order of the data": [0, 1, 2, 3, 4],
    }
    for label, numbers in order.items():
        reader.sort_by(label)
        assert reader.titles() == [f"row-{number}" for number in numbers], label


def test_filters_leave_outcomes_together_and_the_rest_at_once(reader):
    rows = [row(i, margin=m, outcome=o, cut=c) for i, (m, o, c) in enumerate(
        [(1, "win", True), (-1, "loss", True), (0, "tie", False), (2, "win", False), (None, None, True)]
    )]  # fmt: skip
    reader.open(rows)
    reader.sort_by("Order of the data")
    reader.click("[data-filter=win]")
    assert reader.titles() == ["row-0", "row-3"]
    reader.click("[data-filter=loss]")
    assert reader.titles() == ["row-0", "row-1", "row-3"]
    reader.click("[data-filter=cut]")
    assert reader.titles() == ["row-0", "row-1"]
    assert reader.one("[data-filter=cut]").get_dom_attribute("aria-pressed") == "true"
    assert "2 of 5 rows" in reader.text("#browser-status")
    for key in ("win", "loss"):
        reader.click(f"[data-filter={key}]")
    assert reader.titles() == ["row-0", "row-1", "row-4"]
    counts = {b.get_dom_attribute("data-filter"): int(b.text.split()[-1]) for b in reader.all("[data-filter]")}
    assert counts == {"win": 2, "loss": 1, "tie": 1, "none": 1, "cut": 3}  # the others would leave all or none


def test_filters_know_empty_equal_and_verbatim_texts(reader):
    texts = [("a", "b", "b"), ("a", "a ", "c"), ("a", " ", "c"), ("a", "b", None)]
    names = ("before", "after", "reference")
    reader.open([row(i, texts=dict(zip(names, t, strict=True))) for i, t in enumerate(texts)])
    reader.sort_by("Order of the data")
    for key, numbers in {"same": [1], "empty": [2], "differs": [1, 2]}.items():
        reader.click(f"[data-filter={key}]")
        assert reader.titles() == [f"row-{number}" for number in numbers], key
        assert str(len(numbers)) in reader.text(f"[data-filter={key}]")
        reader.click(f"[data-filter={key}]")
    assert "(empty)" in reader.text("#browser-list")


def test_words_that_differ_are_marked_on_request(reader):
    texts = {"before": "🎸 they sold my guitar, today", "after": "🎸 they stole my guitar yesterday"}
    reader.open([row(0, texts=texts)])
    assert reader.all("mark") == []
    reader.click("#browser-diff")
    assert [(m.text, m.get_dom_attribute("class")) for m in reader.all("mark")] == [
        ("sold", "old"),
        (", today", "old"),
        ("stole", "new"),
        ("yesterday", "new"),
    ]
    assert [t.text for t in reader.all("#browser-list .column .text")] == list(texts.values())
    assert "Marked: words of Before" in reader.text("#browser-status")


def test_two_thousand_rows_of_long_prompts_open(reader):
    rng = random.Random(0)
    rows = [row(i, prompt=prose(rng, 512)) for i in range(2_000)]
    reader.open(rows)
    assert reader.text("#browser-status") == "2,000 rows, 20 shown."
    reader.search(" ".join(rows[1_234].prompt.split()[100:110]), "1 of 2,000 rows")
    assert reader.titles() == ["row-1234"]


@pytest.mark.parametrize("count", [0, 1])
def test_a_page_of_hardly_any_rows_says_so(reader, count):
    reader.open([row(0, texts={"before": "a", "after": "b"})] * count)
    assert reader.text("#browser-status") == ("1 row, 1 shown." if count else "No row of 0 fits.")
    reader.vote_blind()
    assert reader.one("#browser-ballot").is_displayed() == bool(count)


def test_without_scripts_the_page_says_what_is_missing(reader):
    reader.chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        write_page(reader.folder / "page.html", page_of([row(0)]))
        reader.load("page.html")
        tree = reader.chromium.execute_cdp_cmd("DOMSnapshot.captureSnapshot", {"computedStyles": []})
    finally:
        reader.chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    texts = [tree["strings"][i] for document in tree["documents"] for i in document["layout"]["text"] if i >= 0]
    assert any("Without them this part of the page cannot show its 1 rows" in text for text in texts)
    assert not any("Vote blind" in text for text in texts)


def test_every_control_has_a_name_and_headings_follow_one_another(reader):
    reader.open(ROWS)
    for mode in ("read", "vote"):
        reader.click(f"[data-mode={mode}]")
        controls = [e for e in reader.all("button, input, select, textarea, summary, progress") if e.is_displayed()]
        assert len(controls) > 8
        for control in controls:
            assert control.accessible_name.strip(), control.get_attribute("outerHTML")
        levels = [int(e.tag_name[1]) for e in reader.all("h1, h2, h3, h4") if e.is_displayed()]
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert reader.one("#browser-ballot").aria_role == "region"
    assert reader.one("#browser-ballot").accessible_name == "Which completion is better?"
    assert reader.one("#browser-progress").aria_role == "status"
    assert [e.accessible_name for e in reader.all("[role=group]") if e.is_displayed()] == ["What to do", "Your vote"]
    reader.click("[data-mode=read]")
    assert reader.one("#browser-search").aria_role == "searchbox"
    assert reader.one("#browser-sort").aria_role == "combobox"
    assert reader.one("#browser-status").aria_role == "status"


def test_the_tab_key_goes_through_the_page_in_reading_order(reader):
    reader.open(ROWS[:2])
    order = []
    for _ in range(4 + len(reader.all("[data-filter]")) + 3):
        reader.press("\ue004")  # Tab
        order.append(reader.run("const e = document.activeElement; return e.id || e.textContent.trim()"))
    assert order[:4] == ["Read side by side", "Vote blind", "browser-search", "browser-sort"]
    assert order[-3:] == ["browser-diff", "Show the prompt", "Show the prompt"]


COLOURS = """
const colour = (element, name) => getComputedStyle(element)[name];
const behind = (element) => {
  while (/rgba\\(.*, 0\\)|transparent/.test(colour(element, "backgroundColor"))) element = element.parentElement;
  return colour(element, "backgroundColor");
};
return [...document.querySelectorAll("#browser *")]
  .filter((e) => e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
  .map((e) => [e.textContent.slice(0, 40), colour(e, "color"), behind(e), colour(e, "opacity")]);
"""


def rgb(colour: str) -> list[float]:
    return [float(value) for value in re.findall(r"[\d.]+", colour)[:3]]


def contrast(front: str, back: str, opacity: float) -> float:
    """WCAG 2.2, of colours as browsers compute them."""
    mixed = [opacity * f + (1 - opacity) * b for f, b in zip(rgb(front), rgb(back), strict=True)]
    colours = ("#" + "".join(f"{round(value):02x}" for value in found) for found in (mixed, rgb(back)))
    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(reader, scheme):
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    reader.chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        reader.open([row(i) for i in range(5)])
        paper = reader.run("return getComputedStyle(document.documentElement).backgroundColor")
        assert (sum(rgb(paper)) < 200) == (scheme == "dark")
        reader.click("#browser-diff")
        reader.click("[data-filter=win]")
        found = reader.run(COLOURS)
        reader.vote_blind()
        reader.click("[data-vote=A]")
        reader.click("#browser-reveal")
        found += reader.run(COLOURS)
    finally:
        reader.chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(found) > 40
    for text, front, back, opacity in found:
        assert contrast(front, back, float(opacity)) >= 4.5, (text, front, back, opacity)


def test_nothing_runs_off_a_small_screen(reader):
    size = {"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    reader.chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        reader.open([row(0, texts={"before": "a" * 300, "after": "b"}, id="c" * 100), *ROWS[1:5]])
        for mode in ("read", "vote"):
            reader.click(f"[data-mode={mode}]")
            assert reader.run("return document.documentElement.scrollWidth") == 320
    finally:
        reader.chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_browser_that_cannot_unpack_the_rows_says_so(reader):
    old = {"source": "delete window.DecompressionStream"}
    added = reader.chromium.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", old)
    try:
        write_page(reader.folder / "page.html", page_of([row(0)]))
        reader.load("page.html")
        until(lambda: "cannot unpack" in reader.text("#browser-opening"), lambda: reader.text("#browser-opening"))
    finally:
        reader.chromium.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
