"""What a notebook is given to show."""

import re
from xml.etree import ElementTree

import pytest

from rlhf.curves import pictures, read_runs
from rlhf.report import figures
from rlhf.report.notebook import Frame, Picture, Table, Text, standalone
from tests.events import write_events

PLOT = figures.lines("Loss", {"one": [(0, 1.0), (1, 0.5)], "two": [(0, 2.0), (1, 1.0)]}, "step", "nats")


def bundle(shown) -> dict[str, str]:
    return shown._repr_mimebundle_()


def test_a_picture_is_an_svg_with_paper_and_both_sets_of_colours():
    svg = bundle(Picture(PLOT, "falls"))["image/svg+xml"]
    root = ElementTree.fromstring(svg)
    style, paper = root[1], root[2]
    assert [element.tag.rpartition("}")[2] for element in root[:3]] == ["title", "style", "rect"]
    light, dark = style.text.split("@media (prefers-color-scheme: dark)")
    used = set(re.findall(r"var\(--(\w+)", svg)) - {"sans"}
    assert {"card", "s1", "s2", "line"} <= used
    for name in used:
        colours = [re.search(rf"--{name}: (#\w+)", half)[1] for half in (light, dark)]
        assert colours[0] != colours[1], name
    assert paper.get("width") == paper.get("height") == "100%"
    assert root.get("class") == "standalone", "its colours are not those of the page around it"


def test_a_picture_says_in_words_what_it_shows():
    assert bundle(Picture(PLOT, "Loss falls from 1 to 0.5."))["text/plain"] == "Loss falls from 1 to 0.5."


def test_a_drawing_with_colours_of_its_own_stays_as_it_is():
    assert standalone("<svg><style>a {}</style></svg>") == "<svg><style>a {}</style></svg>"


def test_what_texts_hold_neither_ends_a_cell_nor_is_markup():
    text = bundle(Table(["a", "b"], [["x | y\nz", "<script>`*[](t)_e_"], [None, 0.123456], [True, 12345]]))[
        "text/markdown"
    ]
    assert text.splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| x &#124; y z | &#60;script&#62;&#96;&#42;&#91;&#93;(t)&#95;e&#95; |",
        "| – | 0.1235 |",
        "| yes | 12,345 |",
    ]


def test_a_name_with_an_underscore_stays_readable():
    assert "| prompt_dataset |" in bundle(Table(["a"], [["prompt_dataset"]]))["text/markdown"]


def test_headings_of_a_text_go_below_the_notebook_s():
    assert bundle(Text("# Hold\n\n## Key numbers\n"))["text/markdown"] == "### Hold\n\n#### Key numbers\n"


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "report.html"
    path.write_text('<html><head></head><body><section id="one">"quoted" &amp; so on</section></body></html>')
    return path


def test_a_page_in_a_frame_cannot_reach_out(page):
    frame = bundle(Frame.of(page, 'says "hello"', height=300))["text/html"]
    element = ElementTree.fromstring(frame)
    assert element.get("sandbox") == "allow-scripts allow-downloads", "no allow-same-origin, no allow-top-navigation"
    assert element.get("srcdoc") == page.read_text()
    assert (element.get("title"), element.get("height")) == ('says "hello"', "300")


def test_a_section_alone_hides_the_others(page):
    element = ElementTree.fromstring(bundle(Frame.of(page, "alt", section="one"))["text/html"])
    assert "section:not(#one) { display: none }" in element.get("srcdoc")


def test_curves_come_in_the_order_asked_for_by_the_names_given(tmp_path):
    write_events(tmp_path / "new", {"reward": [(1, 0.0), (2, 1.0)], "rank_loss": [(1, 0.7), (2, 0.3)]})
    write_events(tmp_path / "old", {"reward": [(1, 2.0), (2, 3.0)]}, as_tensors=True)
    curves = read_runs([str(tmp_path / "new"), str(tmp_path / "old")], names=["this run", "the old pipeline's"])
    drawn = pictures(curves, ["reward", "no such tag", "rank_loss"])
    assert [picture.alt.partition(" by ")[0] for picture in drawn] == ["Reward", "Ranking loss"]
    assert "this run from 0 to 1; the old pipeline's from 2 to 3" in drawn[0].alt
