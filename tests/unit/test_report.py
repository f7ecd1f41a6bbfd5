import itertools
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from rlhf.errors import DataError
from rlhf.report import figures
from rlhf.report.page import (
    Comparison,
    Page,
    Section,
    append_section,
    comparisons,
    figure,
    figures_row,
    fold,
    note,
    paragraph,
    table,
    text_block,
    tiles,
    verdict,
    visible,
    write_page,
)

HOSTILE = (
    "</title></style></svg><script>alert(1)</script><!-- \"><img src=x onerror=alert(1)> ' onmouseover='alert(2) "
    "{{ 7*7 }} {% raw %} &lt;b&gt; $\\frac{1}{2}$ \x00\x07\x1b[31m\r\x7f\x85 \u202edesrever\u202c \u2066x\u2069 "
    "\u200b\ufeff\u2028 \ud800 \U000e0041 <!-- end of sections -->"
)
VOID = {"meta", "img", "br", "hr", "input", "link", "base", "source"}


class Document(HTMLParser):
    """Elements and text as a browser's parser sees them; fails on tags that do not nest."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.comments: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> repeats an attribute"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        self.comments.append(data)


def page_of(text: str) -> Page:
    """A page that has `text` in every place that takes one."""
    curve = figures.lines(text, {text: [(0, 1), (1, 2)], "b" + text: [(0, 2), (1, 1)]}, text, text, limit=1.5)
    bars = figures.histogram(text, {text: [1.0, 2.0, 2.0], "b" + text: [3.0]}, text, text)
    body = [
        verdict(text, text, [(True, text), (False, text), (None, text)], good=True),
        paragraph(text),
        note(text),
        tiles([(text, text, text)]),
        table([text, "n"], [[text, 1.5], [None, 2]], caption=text),
        figures_row([figure(curve, alt=text, caption=text), figure(bars, alt=text, caption=text)]),
        fold(text, text_block(text)),
        comparisons([Comparison(text, text, text, None, text, [(text, text, text), ("After", "", text)])]),
    ]
    sections = [Section(f"{i} {text}", part, f"part-{i}") for i, part in enumerate(body)]
    return Page(text, text, sections)


def test_no_text_breaks_out_of_the_page():
    plain, hostile = Document(page_of("harmless").render()), Document(page_of(HOSTILE).render())

    # The very same elements with the very same attribute names, whatever the texts are.
    assert [(tag, list(attrs)) for tag, attrs in hostile.elements] == [(t, list(a)) for t, a in plain.elements]
    assert "script" not in {tag for tag, _ in hostile.elements}
    assert not [name for _, attrs in hostile.elements for name in attrs if name.startswith("on")]
    assert hostile.comments == plain.comments
    assert "<script>alert(1)</script>" in hostile.text
    assert "{{ 7*7 }}" in hostile.text


def test_control_and_direction_characters_are_shown_and_never_sent():
    html = page_of(HOSTILE).render()
    assert re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b\ufeff\ud800-\udfff]", html) == []
    assert visible("a\x00b\u202ec") == "a⟨U+0000⟩b⟨U+202E⟩c"
    html.encode("utf-8")


def test_layout_and_real_scripts_survive():
    text = "line\n\ttab, שלום, سلام, 👩\u200d🚀, می\u200cخواهم"
    assert visible(text) == text
    assert text in text_block(text)


def test_a_page_needs_nothing_from_outside():
    document = Document(page_of("x").render())
    assert not {"script", "link", "iframe", "img", "object", "base"} & {tag for tag, _ in document.elements}
    references = [
        value
        for _, attrs in document.elements
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href")
    ]
    # Only from within a drawing to its own parts: a link to an anchor would leave the KFP UI's frame.
    assert all(value.startswith("#") for value in references)
    assert "a" not in {tag for tag, _ in document.elements}
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", page_of("x").render())


def test_a_page_is_accessible():
    elements = Document(page_of("x").render()).elements
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert ("html", {"lang": "en"}) in elements
    levels = [int(tag[1]) for tag, _ in elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    labelled = {attrs["aria-labelledby"] for tag, attrs in elements if tag == "section"}
    assert labelled <= set(ids)
    assert all(attrs.get("aria-label") for _, attrs in elements if attrs.get("role") in ("img", "region"))
    assert all(attrs.get("scope") == "col" for tag, attrs in elements if tag == "th")


def luminance(colour: str) -> float:
    """WCAG 2.2 relative luminance."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_curves_have_enough_contrast(scheme):
    html = page_of("x").render()
    palettes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", html, re.S)
    ]
    palette = palettes[0] if scheme == "light" else palettes[1]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(palette[one]), luminance(palette[other])))
        return (high + 0.05) / (low + 0.05)

    for ink in ("ink", "muted", "link"):  # WCAG 2.2, 1.4.3
        assert contrast(ink, "paper") >= 4.5
        assert contrast(ink, "card") >= 4.5
    for tone in ("good", "bad"):
        assert contrast(tone, f"{tone}-wash") >= 4.5
        assert contrast("ink", f"{tone}-wash") >= 4.5
    for series in ("s1", "s2", "s3", "s4", "s5"):  # 1.4.11
        assert contrast(series, "card") >= 3


def test_a_section_can_be_added_at_the_end():
    html = Page("Title", "Subtitle", [Section("First", paragraph("one"), "first")]).render()
    html = append_section(html, Section("Gold <score>", paragraph(HOSTILE), "gold"))
    html = append_section(html, Section("Last", paragraph("three"), "last"))
    assert [attrs["id"] for tag, attrs in Document(html).elements if tag == "section"] == ["first", "gold", "last"]
    assert "Gold &lt;score&gt;" in html


def test_a_section_is_not_added_to_what_is_no_page():
    with pytest.raises(DataError, match="not a page"):
        append_section("<html></html>", Section("S", paragraph("x"), "s"))


def test_a_page_is_written_as_utf8_with_its_folders(tmp_path):
    write_page(tmp_path / "a" / "report.html", Page("Größe", "−", []))
    assert '<h1 dir="auto">Größe</h1>' in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")


def test_numbers_are_aligned_and_rounded_and_nothing_is_a_dash():
    html = table(["name", "value", "text"], [["a", 1234.5678, "12.5 %"], ["b", -0.00012345, None]])
    cells = re.findall(r"<td (.*?)>(.*?)</td>", html)
    assert cells[1] == ('class="num"', "1,235")
    assert cells[4] == ('class="num"', "−0.0001234")
    assert cells[2][0] == 'class="num"'
    assert cells[5][1] == "–"
    assert cells[0][0] == 'dir="auto"'


SERIES = {"before": [(0, 1.0), (1, float("nan")), (2, 3.0)], "after": [(0, 2.0), (2, 1.0)]}


def test_figures_are_the_same_bytes_every_time():
    assert figures.lines("t", SERIES, "x", "y") == figures.lines("t", SERIES, "x", "y")
    values = {"a": [1.0, 2.0, float("inf")], "b": [0.0]}
    assert figures.histogram("t", values, "x") == figures.histogram("t", values, "x")


def test_figures_take_every_colour_and_font_from_the_page():
    svg = figures.lines("t", SERIES, "x", "y", limit=2) + figures.histogram("t", {"a": [1.0, 2.0], "b": [3.0]}, "x")
    assert "currentColor" in svg
    assert re.sub(r"var\([^)]*\)", "", svg).count("#0") == 0
    painted = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
    assert all(colour in ("none", "currentColor") or colour.startswith(("var(", "url(#")) for colour in painted)
    assert set(re.findall(r"font-family: ([^;\"]+)", svg)) == {"var(--sans, sans-serif)"}
    assert "<style" not in svg  # it would apply to the whole page


def test_two_figures_on_a_page_do_not_share_ids():
    one, other = figures.lines("one", SERIES, "x", "y"), figures.lines("other", SERIES, "x", "y")

    def ids(svg: str) -> set[str]:
        return {e.get("id") for e in ElementTree.fromstring(svg).iter() if e.get("id")}

    assert ids(one)
    assert not ids(one) & ids(other)
    assert set(re.findall(r"(?:url\(|href=\")#([\w-]+)", one)) == ids(one)


def test_figures_have_a_title_and_their_labels_as_text():
    svg = ElementTree.fromstring(figures.lines("Loss <1>", SERIES, "step, in $x_1$", "nats"))
    texts = "".join(svg.itertext())
    assert svg[0].text == svg.get("aria-label") == "Loss <1>"
    assert all(label in texts for label in ("before", "after", "step, in $x_1$", "nats"))


def test_a_long_noisy_curve_is_faint_under_its_running_mean():
    long = {"loss": [(i, float(i % 2)) for i in range(figures.NOISY)]}
    short = {"loss": long["loss"][:-1]}
    assert "opacity: 0.3" in figures.lines("t", long, "x", "y")
    assert "opacity: 0.3" not in figures.lines("t", short, "x", "y")


def test_a_trail_darkens_towards_its_end():
    svg = figures.trail("t", [(0.0, 1.0), (1.0, float("nan")), (2.0, 2.0)], "KL", "score")
    assert re.findall(r"<use [^>]*fill-opacity: ([\d.]+)", svg) == ["0.6"]  # two points; the last is opaque


def test_a_limit_is_drawn_only_once_the_curve_comes_near_it():
    near, far = ({"kl": [(0, 0.0), (1, top)]} for top in (11.0, 2.0))
    assert "limit 20" in figures.lines("KL", near, "x", "y", limit=20)
    assert "limit 20" not in figures.lines("KL", far, "x", "y", limit=20)


@pytest.mark.parametrize("values", [{}, {"a": []}, {"a": [float("nan")]}, {"a": [1.0]}, {"a": [2.0, 2.0, 2.0]}])
def test_a_histogram_copes_with_few_equal_and_missing_values(values):
    svg = figures.histogram("t", values, "x")
    assert ("no data" in svg) == (not any(v == v for row in values.values() for v in row))


def test_a_histogram_of_values_that_agree_but_for_rounding_is_one_bar():
    drawn = figures.histogram("t", {"a": [0.4 - 0.3, 0.3 - 0.2, 0.1]}, "x")
    assert drawn == figures.histogram("t", {"a": [0.4 - 0.3] * 3}, "x")
