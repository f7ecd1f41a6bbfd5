"""The site of the documents is whole, and needs no net."""

import re
import shutil
from pathlib import Path

import pytest

from docs import site

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    assert site.build(folder / "pages", folder / "site") == []
    return folder / "site"


def test_every_document_has_a_page(built):
    for path in (ROOT / "docs").rglob("*.md"):
        assert (built / path.relative_to(ROOT / "docs")).with_suffix(".html").is_file()
    for place in site.PLACES.values():
        assert (built / place).with_suffix(".html").is_file()


def test_nothing_is_fetched_from_the_net(built):
    """Scripts, styles, fonts and pictures are all in the folder; a link that a reader may follow is no fetch."""
    for page in built.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source)\b[^>]*?\ssrc=\"?([^\"\s>]+)", text)
        fetched += re.findall(r"<link\b[^>]*?\shref=\"?([^\"\s>]+)", text)
        assert fetched
        assert not [each for each in fetched if re.match(r"(https?:)?//", each)], page
    for style in built.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_lists_are_lists_and_tables_are_tables(built):
    """GitHub's Markdown and MkDocs' differ in what needs a blank line."""
    for page in built.rglob("*.html"):
        if "source" in page.relative_to(built).parts:
            continue
        text = re.sub(r"<pre.*?</pre>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for paragraph in re.findall(r"<p>(.*?)</p>", text, re.DOTALL):
            assert not re.search(r"^(- |\d+\. |\| |```)", paragraph, re.MULTILINE), (page, paragraph)


def test_a_source_file_that_a_document_links_to_is_shown_as_it_is(built):
    assert "reward_scaling" in (built / "source/examples/demo/t5.yaml.html").read_text(encoding="utf-8")


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Path:
    """The documents, to be broken."""
    root = tmp_path / "repository"
    root.mkdir()
    for name in ("docs", "components", "benchmarks", "containers"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("*.pyc", "*.py", "locks"))
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "mkdocs.yml"):
        shutil.copy(ROOT / name, root)
    monkeypatch.setattr(site, "ROOT", root)
    return root


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("[gone](concepts/nowhere.md)", "concepts/nowhere.md"),
        ("[gone](data.md#no-such-heading)", "no-such-heading"),
        ("![gone](images/none.png)", "images/none.png"),
    ],
    ids=["page", "anchor", "picture"],
)
def test_what_leads_nowhere_fails_the_build(copy, tmp_path, added, said):
    page = copy / "docs" / "quickstart.md"
    page.write_text(page.read_text(encoding="utf-8") + f"\n{added}\n", encoding="utf-8")
    warnings = site.build(tmp_path / "pages", tmp_path / "site")
    assert [warning for warning in warnings if said in warning and "quickstart.md" in warning]


def test_a_page_without_a_place_in_the_navigation_fails_the_build(copy, tmp_path):
    (copy / "docs" / "lost.md").write_text("# Lost\n", encoding="utf-8")
    assert any("lost.md" in warning for warning in site.build(tmp_path / "pages", tmp_path / "site"))
