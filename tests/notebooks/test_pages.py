"""The notebooks as they are kept, and the pages made of them."""

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from docs import notebooks

NAMES = ["1_explore_data", "2_tune", "3_evaluate"]
MACHINE = re.compile(r"/home/|/root/|/tmp/|/work/|/Users/|[A-Z]:\\\\|site-packages")
SMALL = 1_500_000  # bytes of all pictures: a repository keeps each version


def kept(name: str) -> nbformat.NotebookNode:
    return nbformat.read(notebooks.NOTEBOOKS / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def page(name: str) -> str:
    return (notebooks.PAGES / f"{name}.md").read_text(encoding="utf-8")


def test_these_are_all_notebooks_and_all_pages():
    assert sorted(path.stem for path in notebooks.NOTEBOOKS.glob("*.ipynb")) == NAMES
    assert sorted(path.stem for path in notebooks.PAGES.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_without_what_it_showed(name):
    notebook = kept(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}, "no version of whoever ran it last"
    for cell in notebook.cells:
        assert cell.metadata == {}
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    assert not MACHINE.search((notebooks.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_cells_have_names_that_stay(name):
    """Not those that an editor draws at random, so that a change of one cell is a change of one cell."""
    names = [cell.id for cell in kept(name).cells]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", each) for each in names)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_user_changes_is_the_first_cell_of_code_and_nothing_but_values(name):
    first = next(cell for cell in kept(name).cells if cell.cell_type == "code")
    assert first.id == "change-this"
    lines = first.source.splitlines()
    assert lines[0] == "# Change this cell"
    assert all(re.match(r"[A-Z_]+ = |# ", line) for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_the_cells_of_its_notebook_in_their_order(name):
    text, end = page(name), 0
    for cell in kept(name).cells:
        shown = f"```python\n{cell.source}\n```" if cell.cell_type == "code" else cell.source
        end = text.find(shown, end)
        assert end >= 0, f"{name}.ipynb, {cell.id}: its page has not this cell; run `make notebooks`"
        end += len(shown)
    assert text.count("```python") == sum(cell.cell_type == "code" for cell in kept(name).cells)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_nothing_of_the_machine_or_the_hour(name):
    text = page(name) + "".join(path.read_text() for path in notebooks.IMAGES.glob(f"{name}*.svg"))
    assert not MACHINE.search(text)
    assert not re.search(r"\d s left|finished in \d|rlhf-\d{4}-\d\d", text)


def test_every_picture_is_on_a_page_and_they_are_small():
    shown = {Path(link).name for name in NAMES for link in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page(name))}
    pictures = list(notebooks.IMAGES.iterdir())
    assert {path.name for path in pictures} == shown
    assert sum(path.stat().st_size for path in pictures) < SMALL


def test_every_drawing_is_legible_in_light_and_in_dark():
    for path in notebooks.IMAGES.glob("*.svg"):
        assert "@media (prefers-color-scheme: dark)" in path.read_text(encoding="utf-8"), path.name


def rendered(*outputs, folder: Path = Path("/run/here")) -> str:
    cell = new_code_cell("a = 1\n\n\nb = 2", outputs=list(outputs))
    notebook = new_notebook(cells=[new_markdown_cell("# Title"), cell])
    notebook.metadata["language_info"] = {"name": "python"}
    return notebooks.rendered(notebook, "name", folder)[0]


def test_what_changes_from_run_to_run_is_left_out_of_a_page():
    said = (
        "ppo-trainer: started\n"
        "  [ppo_trainer] update 1/2 (50%) score 0.4, 12 s left\n"
        "  [ppo_trainer] kept\n"
        "ppo-trainer: finished in 12.3 s\n"
        "/run/here/build/run/rlhf-2026-11-22-01-44-35-071914/ppo-trainer\n"
    )
    text = rendered(
        new_output("stream", name="stderr", text="Warning: of a library\n"),
        new_output("stream", name="stdout", text=said),
    )
    block = "ppo-trainer: started\n  [ppo_trainer] kept\nppo-trainer: finished\nbuild/run/rlhf-.../ppo-trainer"
    assert f"```text\n{block}\n```" in text
    assert "Warning" not in text
    assert "```python\na = 1\n\n\nb = 2\n```" in text


def test_a_picture_of_a_page_has_its_words_as_alternative_text():
    data = {"image/svg+xml": "<svg/>", "text/plain": "Loss by step: [falls]"}
    text = rendered(new_output("display_data", data=data))
    assert "![Loss by step: (falls)](../images/notebooks/name_1_0.svg)" in text
