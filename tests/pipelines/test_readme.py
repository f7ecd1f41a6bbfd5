"""What the documents say is so."""

import json
import re
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from docs import data, parameters, platforms
from examples.demo import __main__ as demo
from pipelines import params, rlhf
from pipelines.placement.local import place
from rlhf.data.formats import Shape
from rlhf.report.page import Page, write_page

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "containers/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def names(document: Path) -> str:
    return str(document.relative_to(ROOT))


def anchors(document: Path) -> set[str]:
    """Headings as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_every_link_and_picture_leads_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = document.parent / path if path else document
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_every_picture_says_in_words_what_it_shows(document):
    assert all(words.strip() for words in re.findall(r"!\[([^\]]*)\]", document.read_text(encoding="utf-8")))


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_every_make_command_is_a_target_with_variables_that_the_makefile_reads(document):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z]+) [?:]?=|[a-z]=([A-Z]+)", makefile, re.MULTILINE))
    variables = {name for either in variables for name in either}
    text = document.read_text(encoding="utf-8")
    for target, rest in re.findall(r"(?:^|`)make ([a-z-]+)((?: [A-Z]+=[^\s`]+)*)", text, re.MULTILINE):
        assert target in targets, target
        assert set(re.findall(r"([A-Z]+)=", rest)) <= variables, (target, rest)


def test_the_two_commands_stand_in_the_first_block():
    first = re.search(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]


def test_every_parameter_file_shown_is_one_the_pipeline_takes(tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        path = tmp_path / "my.yaml"
        path.write_text(block, encoding="utf-8")
        arguments, warnings = params.check(params.read(path), rlhf.build(place))
        assert not warnings
        for struct, config in parameters.STRUCTS.items():
            if struct in arguments and struct != "data_validation":
                config.parse(arguments[struct], struct)


def test_every_key_of_the_summary_is_explained_and_no_other(tmp_path, monkeypatch):
    section = README.read_text(encoding="utf-8").split("### What comes out")[1].split("\n## ")[0]
    keys = "".join(re.findall(r"^\|([^|]*)\|", section, re.MULTILINE))
    documented = set(re.findall(r"`([a-z_.<>]+)`", keys))

    written = set()
    for name, value in summary_of_a_run(tmp_path, monkeypatch).items():
        written |= {f"{name}.{key}" for key in value} if isinstance(value, dict) else {name}
    assert documented == written


def summary_of_a_run(folder: Path, monkeypatch) -> dict:
    """The summary that the demo writes of a run whose every figure is 0, stages' seconds under one key."""
    report = folder / "report.html"
    write_page(report, Page("title", "subtitle", []))
    outputs = {
        name: SimpleNamespace(path=str(report), metadata=defaultdict(float, seconds=0.0, peak_rss_gb=0.0))
        for name in rlhf.Outputs._fields
    }
    rate = SimpleNamespace(rate=0.0, low=0.0, high=0.0, ties=0)
    gold = SimpleNamespace(
        clean=rate,
        clean_swapped=rate,
        best_possible=0.0,
        one_fact=dict.fromkeys(demo.posts.FACTS, rate),
        wins=rate,
        before=0.0,
        after=0.0,
        over_optimised=False,
    )
    monkeypatch.setattr(demo, "ROOT", folder)
    monkeypatch.setattr(demo.posts, "load_gold", lambda folder: {})
    monkeypatch.setattr(demo.gold_scores, "measure", lambda *args, **kwargs: gold)
    monkeypatch.setattr(demo.gold_scores, "section", lambda *args: None)
    monkeypatch.setattr("rlhf.report.page.append_section", lambda page, section: page)
    demo.conclude(outputs, 0.0, 0.0, 0.0)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    stages = {name.removesuffix("_metrics") for name in outputs if name.endswith("_metrics")}
    summary["seconds"] = {"<stage>" if name in stages else name: 0 for name in summary["seconds"]}
    return summary


def test_every_shape_of_data_is_in_the_table():
    told = re.findall(r"^\| ([^|`]+) \| [^|]*`", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert {shape.value for shape in Shape} <= set(told)


def test_the_reference_of_parameters_is_fresh():
    assert (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8") == parameters.render(), "run `make docs`"


def test_the_reference_of_data_is_fresh():
    assert (ROOT / "docs" / "data.md").read_text(encoding="utf-8") == data.render(), "run `make docs`"


def test_the_page_on_platforms_is_fresh():
    assert (ROOT / "docs" / "platforms.md").read_text(encoding="utf-8") == platforms.render(), "run `make docs`"
