"""A page of made-up rows in headless Chromium."""

import html
import itertools
import json
import random
import time
from functools import cache
from pathlib import Path

import pytest

from rlhf.report.browser import SCRIPT, Row, browser
from rlhf.report.page import Page, Section, write_page
from tests import chromium as browsers


def row(number: int, **changes) -> Row:
    """A row whose texts, outcome and scores all tell its number."""
    margin = (number * 7 % 10 - 4) / 2
    values = {
        "id": f"row-{number}",
        "prompt": f"Post {number}: my boss sold my guitar.\nTL;DR:",
        "original": f"Post {number}: my boss sold my guitar.\nTL;DR:",
        "texts": {
            "before": f"boss sold guitar {number}",
            "after": f"my boss sold my guitar {number}",
            "reference": f"guitar sold, {number}",
        },
        "facts": {"before": "3 tokens", "after": "5 tokens", "reference": "human"},
        "margin": margin,
        "outcome": "win" if margin > 0 else "loss" if margin < 0 else "tie",
        "cut": number % 5 == 0,
        "scores": {"reward": margin, "ROUGE-L": number / 100},
    }
    return Row(**(values | changes))


def page_of(rows: list[Row], digest: str = "d", **options) -> Page:
    section = Section("Side by side", browser(rows, digest=digest, **options), "side-by-side", script=SCRIPT)
    return Page("Did it get better?", "Made-up rows.", [section])


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """A driver of Debian's Chromium; `downloads` is where its downloads go."""
    with browsers.chromium(tmp_path_factory.mktemp("downloads")) as driver:
        yield driver


_digests = itertools.count()


class Reader:
    """Somebody who reads a page and votes."""

    def __init__(self, chromium, folder: Path):
        self.chromium = chromium
        self.folder = folder
        self.digest = f"digest-{next(_digests)}"

    def open(self, rows: list[Row], **options) -> None:
        write_page(self.folder / "page.html", page_of(rows, self.digest, **options))
        self.load("page.html")
        self.wait_until_ready()

    def open_in_frame(self, rows: list[Row], sandbox: str) -> None:
        """As the KFP UI's HTMLViewer shows a report."""
        page = html.escape(page_of(rows, self.digest).render())
        frame = f'<!doctype html><iframe width="1100" height="800" sandbox="{sandbox}" srcdoc="{page}"></iframe>'
        (self.folder / "ui.html").write_text(frame, encoding="utf-8")
        self.load("ui.html")
        self.chromium.switch_to.frame(0)

    def load(self, name: str) -> None:
        self.chromium.get((self.folder / name).as_uri())

    def wait_until_ready(self) -> None:
        until(lambda: self.all("#browser[data-ready]"), self.errors)

    def all(self, selector: str) -> list:
        return self.chromium.find_elements("css selector", selector)

    def one(self, selector: str):
        (element,) = self.all(selector)
        return element

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def click(self, selector: str) -> None:
        self.one(selector).click()

    def press(self, keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.chromium).send_keys(keys).perform()

    def run(self, script: str, *arguments):
        return self.chromium.execute_script(script, *arguments)

    def titles(self) -> list[str]:
        """Ids of the rows shown."""
        return [element.text for element in self.all("#browser-list .id")]

    def sort_by(self, label: str) -> None:
        from selenium.webdriver.support.select import Select

        Select(self.one("#browser-sort")).select_by_visible_text(label)

    def search(self, phrase: str, status: str) -> None:
        self.one("#browser-search").clear()
        self.one("#browser-search").send_keys(phrase)
        until(lambda: status in self.text("#browser-status"), lambda: self.text("#browser-status"))

    def vote_blind(self) -> None:
        self.click("[data-mode=vote]")

    def sides(self) -> list[str]:
        return [element.text for element in self.all("#browser-sides .text")]

    def pressed(self) -> list[str]:
        """The vote that is shown as given."""
        return [element.get_dom_attribute("data-vote") for element in self.all("[data-vote][aria-pressed=true]")]

    def downloaded(self, what: str) -> Path:
        """The file that the button for `what` gives."""
        path = self.chromium.downloads / f"{what}-{self.digest[:12]}.jsonl"
        path.unlink(missing_ok=True)
        self.click(f"[data-export={what}]")
        until(path.exists, lambda: f"no {path.name}")
        return path

    def errors(self) -> list[str]:
        """What the browser has complained about since the last call."""
        return [entry["message"] for entry in self.chromium.get_log("browser")]


@pytest.fixture
def reader(chromium, tmp_path):
    reader = Reader(chromium, tmp_path)
    reader.errors()
    yield reader
    chromium.switch_to.default_content()
    assert reader.errors() == []


def until(true, otherwise, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.05)


def json_lines(text: str) -> list[dict]:
    # Not splitlines: it would also split at characters that JSON leaves in texts.
    return [json.loads(line) for line in text.split("\n") if line]


@cache
def _vocabulary() -> tuple[list[str], list[float]]:
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbgk", k=rng.randint(2, 9))) for _ in range(20_000)]
    return words, list(itertools.accumulate(1 / (rank + 1) for rank in range(len(words))))


def prose(rng: random.Random, tokens: int) -> str:
    """Words as frequent as English ones (Zipf 1935), but in no order, which packs worse than what people write."""
    words, weights = _vocabulary()
    return " ".join(rng.choices(words, cum_weights=weights, k=round(tokens * 0.75)))
