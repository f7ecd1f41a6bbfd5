"""What the KFP UI's frame allows, and texts that try to break out."""

import pytest

from tests.browser.conftest import Reader, json_lines, row

HOSTILE = (
    "</script></template></textarea></style><script>window.broken = 1</script><img src=x onerror='window.broken = 2'> "
    "\"'><svg onload=window.broken=3> ]]> --> <!-- {{ 7 * 7 }} {% raw %} ${7 * 7} &lt;b&gt; javascript:window.broken=4 "
    "\x00 \x07\x1b[31m \u202edesrever\u202c \u2066x\u2069 \u200b\ufeff\u2028 \ud800 \U000e0041 <!-- end of sections -->"
)


def hostile_rows() -> list:
    texts = {name: f"{name} {HOSTILE}" for name in ("before", "after", "reference")}
    return [
        row(i, id=f"{i} {HOSTILE}", prompt=HOSTILE, original=HOSTILE, texts=texts, facts=texts, scores={HOSTILE: 1.0})
        for i in range(3)
    ]


def assert_unbroken(reader: Reader) -> None:
    assert reader.run("return window.broken") is None
    assert reader.run("return document.querySelectorAll('script').length") == 2
    assert reader.all("img, svg, #browser style") == []
    assert "49" not in reader.text("main")
    shown = reader.text("main")
    assert "<script>window.broken = 1</script>" in shown
    assert "⟨U+0000⟩" in shown
    assert "⟨U+202E⟩desrever" in shown
    assert not {"\x00", "\u202e", "\u200b", "\ud800"} & set(reader.run("return document.body.textContent"))


def test_texts_that_try_to_break_out_are_shown_and_run_nothing(reader):
    reader.open(hostile_rows(), names=(f"old {HOSTILE}", f"new {HOSTILE}"))
    reader.click("#browser-diff")
    for summary in reader.all("#browser-list summary"):
        summary.click()
    assert_unbroken(reader)
    reader.vote_blind()
    reader.press("1")
    reader.click("#browser-reveal")
    assert_unbroken(reader)
    (line,) = json_lines(reader.downloaded("preferences").read_text())
    assert line["prompt"] == HOSTILE
    assert sorted([line["chosen"], line["rejected"]]) == [f"after {HOSTILE}", f"before {HOSTILE}"]
    assert_unbroken(reader)


def test_the_page_refuses_scripts_and_markup_that_are_not_its_own(reader):
    reader.open([row(0)])
    for way_in in (
        "document.body.innerHTML = '<img src=x onerror=1>'",
        "document.body.setAttribute('onclick', 'window.broken = 1')",
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.broken = 1'}))",
    ):
        with pytest.raises(Exception, match=r"Trusted(HTML|Script)"):
            reader.run(way_in)
    assert reader.run("return window.broken") is None
    assert all("Trusted" in message or "Content Security Policy" in message for message in reader.errors())


def test_in_the_kfp_uis_frame_reading_and_voting_work_and_the_export_is_text(reader):
    reader.open_in_frame([row(i) for i in range(30)], sandbox="allow-scripts")
    reader.wait_until_ready()
    assert len(reader.titles()) == 20
    reader.search("post 7:", "1 of 30 rows")
    reader.vote_blind()
    reader.press("1")
    reader.click("[data-vote=tie]")
    assert reader.text("#browser-progress") == "Row 3 of 30, 2 voted on"
    limits = reader.text("#browser-limits")
    assert "neither keep votes nor download files" in limits
    assert "lost when the frame is closed or loaded again" in limits
    files = set(reader.chromium.downloads.iterdir())
    reader.click("[data-export=preferences]")
    text = reader.one("#browser-text")
    assert text.is_displayed()
    label = reader.run("return arguments[0].labels[0].textContent", text)
    assert label == f"To be copied into a file, preferences-{reader.digest[:12]}.jsonl"
    (line,) = json_lines(text.get_property("value"))
    assert list(line) == ["prompt", "chosen", "rejected"]
    assert reader.text("#browser-exported") == "Below: 1 preference, without 1 tie."
    reader.click("#browser-select")
    assert reader.run("return [arguments[0].selectionStart, arguments[0].selectionEnd]", text) == [
        0,
        len(text.get_property("value")),
    ]
    reader.click("[data-export=votes]")
    assert len(json_lines(text.get_property("value"))) == 2
    reader.click("#browser-ballot [data-vote=A]")
    assert not text.is_displayed()  # it is of the votes before
    assert set(reader.chromium.downloads.iterdir()) == files


def test_a_frame_that_may_keep_and_download_does_both(reader):
    reader.open_in_frame([row(i) for i in range(3)], sandbox="allow-scripts allow-same-origin allow-downloads")
    reader.wait_until_ready()
    reader.vote_blind()
    reader.press("1")
    assert reader.text("#browser-limits") == "Votes stay in this browser, on this machine."
    assert len(json_lines(reader.downloaded("preferences").read_text())) == 1
    assert reader.one("#browser-text").is_displayed()  # for a frame that keeps and does not download
    assert all("can escape its sandboxing" in message for message in reader.errors())


def test_a_browser_that_keeps_nothing_says_that_votes_will_be_lost(reader):
    forbid = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('forbidden') } })"
    added = reader.chromium.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": forbid})
    try:
        reader.open([row(i) for i in range(3)])
        reader.vote_blind()
        reader.press("1")
        assert reader.text("#browser-progress") == "Row 2 of 3, 1 voted on"
        assert "votes are lost when it is closed or loaded again" in reader.text("#browser-limits")
        assert len(json_lines(reader.downloaded("preferences").read_text())) == 1
    finally:
        reader.chromium.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
