import re
import warnings
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from rlhf.report import figures
from rlhf.report.figures import Estimate
from rlhf.reward_trainer.findings import examine
from rlhf.reward_trainer.page import write_report
from tests.reward_findings import held_out, ranked, training

HOSTILE = "</title></svg><script>alert(1)</script><img src=x onerror=alert(2)> \u202e $x_1$"


@pytest.fixture(autouse=True)
def _nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def page(path, pairs, trained, facts=None) -> str:
    write_report(path / "made" / "report.html", examine(pairs, trained), pairs, trained, facts or {})
    return (path / "made" / "report.html").read_text(encoding="utf-8")


class Parsed(HTMLParser):
    """The tags of a page, its text, and the captions of its figures."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def test_the_verdict_comes_first_with_every_statement(tmp_path):
    pairs, trained = held_out(), training(skipped_steps=2)
    text = Parsed(page(tmp_path, pairs, trained)).text
    findings = examine(pairs, trained)
    places = [
        text.index(said) for said in ("Usable", *(said for _, said in findings.statements()), "Pairs ranked right")
    ]
    assert places == sorted(places)


def test_every_picture_is_drawn_from_what_was_found(tmp_path):
    changed = held_out().changed | {"shuffled": [None] + [-1.0] * 99}
    pairs = held_out(margin=[0.5, 2.0] * 50, changed=changed)
    text = Parsed(page(tmp_path, pairs, training(best_step=60))).text
    for title in (
        "Pairs ranked right",
        "Held-out pairs ranked right, by kind",
        "Scores of held-out responses",
        "Score and length",
        "Prompts exchanged",
        "Responses spoilt",
        "Right, by how sure it is",
        "Score differences, seen and unseen",
        "Loss",
        "Accuracy",
    ):
        assert title in text
    for label in (
        "held-out pairs (100)",
        "with prompts exchanged (100)",
        "pairs it trained on (100)",
        "longer wins (100)",
        "first wins (100)",
        "over 1.5 times as long (50)",
        "1.7 (100)",
        "2 (50)",
        "first candidate chosen (50)",
        "shuffled",
        "another pair's prompt",
        "trained on",
        "selection pairs",
    ):
        assert label in text
    assert "no data" not in text
    assert "The model of step 60 of 100 is kept." in text


def test_what_is_not_known_is_left_out_and_said(tmp_path):
    pairs = held_out(swapped_chosen=None, swapped_rejected=None, changed={}, position=[None] * 100)
    html = page(tmp_path, pairs, training(history={}, seen_chosen=[], seen_rejected=[], seen_prompts=[]))
    text = Parsed(html).text
    assert "All held-out pairs have one prompt, so prompts were not exchanged." in text
    assert not re.search("with prompts exchanged|Responses spoilt|pairs it trained on \\(|Data's margin|By place", text)
    assert "nan" not in text.lower().replace("nanos", "")


@pytest.mark.parametrize("n", [1, 2])
def test_a_model_that_scores_everything_alike_still_gets_its_page(tmp_path, n):
    columns = {name: values[:n] for name, values in vars(held_out()).items() if name != "changed"}
    pairs = held_out(**columns | {"chosen": [0.0] * n, "rejected": [0.0] * n, "changed": {"emptied": [0.0] * n}})
    text = Parsed(page(tmp_path, pairs, training())).text
    assert "Not usable" in text
    assert "Every pair ties, so the model is sure of nothing." in text


def test_texts_of_data_are_shown_and_never_run(tmp_path):
    chosen, rejected = ranked(85)
    pairs = held_out(ids=[f"{i}{HOSTILE}" for i in range(100)], chosen=chosen, rejected=rejected)
    html = page(tmp_path, pairs, training(), {f"base {HOSTILE}": HOSTILE})
    parsed = Parsed(html)
    assert not {"script", "img"} & parsed.tags
    assert not [name for name in parsed.attributes if name.startswith("on")]
    assert parsed.text.count("<script>alert(1)</script>") == 12  # ten pairs, and a fact's name and value
    assert "\u202e" not in html


def test_facts_are_shown_in_the_order_given(tmp_path):
    facts = {"zeta": "LoRA", "alpha": 1e-4, "rows": 12345}
    text = Parsed(page(tmp_path, held_out(), training(), facts)).text
    places = [text.index(fact) for fact in ("zeta", "LoRA", "alpha", "0.0001", "rows", "12,345")]
    assert places == sorted(places)


def test_the_most_wrong_pairs_are_named_worst_first(tmp_path):
    rejected = [-1.0] * 97 + [1.0, 3.0, 2.0]
    pairs = held_out(ids=[f"name-{i}-" for i in range(100)], chosen=[0.0] * 100, rejected=rejected)
    assert re.findall(r"name-(\d+)-", Parsed(page(tmp_path, pairs, training())).text) == ["98", "99", "97"]


ROWS = {"All <b>": [Estimate("model <1>", 0.8, 0.7, 0.9)], "Rules": [Estimate("longer", 0.6, 0.5, 0.7)], "None": []}
POINTS = [(0.55, Estimate("", 0.5, 0.3, 0.7)), (0.9, Estimate("", 1.0, 0.8, 1.0))]
CLOUD = {"chosen": [(float(i), float(i % 7)) for i in range(700)], "rejected": [(1.0, 2.0)]}
DRAWN = {
    "intervals": lambda title="t": figures.intervals(title, ROWS, "share", 0.5, compared="Rules"),
    "reliability": lambda title="t": figures.reliability(title, POINTS, "confidence", "right"),
    "scatter": lambda title="t": figures.scatter(title, CLOUD, "length", "score"),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_new_pictures_keep_to_the_pages_colours_and_fonts_and_are_the_same_every_time(kind):
    svg = DRAWN[kind]()
    assert svg == DRAWN[kind]()
    painted = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
    assert all(colour in ("none", "currentColor") or colour.startswith(("var(", "url(#")) for colour in painted)
    assert set(re.findall(r"font-family: ([^;\"]+)", svg)) == {"var(--sans, sans-serif)"}
    assert ElementTree.fromstring(DRAWN[kind](HOSTILE))[0].text.startswith("</title></svg><script>")


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_intervals_name_and_number_each_share_from_top_to_bottom():
    svg = DRAWN["intervals"]()
    rows = [text for text in texts(svg) if text in ("All <b>", "model <1>", "Rules", "longer", "None")]
    assert rows == ["All <b>", "model <1>", "Rules", "longer"]
    assert {"80\u00a0%", "60\u00a0%"} <= set(texts(svg))
    assert "var(--s1" in svg  # the rules
    assert "var(--s2" in svg


def test_intervals_and_reliability_of_nothing_say_so():
    assert "no data" in figures.reliability("t", [], "x", "y")
    assert "no data" in figures.scatter("t", {}, "x", "y")
    assert "no data" in figures.intervals("t", {"none": []}, "x", 0.5)


def test_a_scatter_draws_no_more_points_than_a_page_can_hold():
    svg = DRAWN["scatter"]()
    points = re.findall(r"<use [^>]*var\(--s1", svg)
    assert 200 <= len(points) <= figures.MOST_POINTS + 1  # one in the legend
