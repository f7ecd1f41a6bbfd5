"""Run the notebooks, and write them with what they show as pages of the documents: `make notebooks`. Needs chromium.

What would change from run to run without a reason (paths of this machine, times, progress) is left out.
"""

import base64
import re
import shutil
import sys
import tempfile
from html import unescape
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbformat import NotebookNode
from traitlets.config import Config

from docs.screenshots import shoot

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
PAGES = ROOT / "docs" / "notebooks"
IMAGES = ROOT / "docs" / "images" / "notebooks"
_CLIENT = {"timeout": 1800, "coalesce_streams": True}  # seconds of a cell; what is printed line by line is one text

# Every block says what language it is in, and every picture what it shows.
TEMPLATE = """
{%- extends 'markdown/index.md.j2' -%}
{% block stream %}
```text
{{ output.text.rstrip() }}
```
{% endblock stream %}
{% block data_text %}
```text
{{ output.data['text/plain'].rstrip() }}
```
{% endblock data_text %}
{% block data_svg %}
![{{ alt(output) }}]({{ output.metadata.filenames['image/svg+xml'] | path2url }})
{% endblock data_svg %}
{% block data_png %}
![{{ alt(output) }}]({{ output.metadata.filenames['image/png'] | path2url }})
{% endblock data_png %}
"""
HEAD = """<!-- Made from notebooks/{name}.ipynb by `make notebooks`; do not edit. -->

"""
FOOT = """
---

This page is the notebook [notebooks/{name}.ipynb](../../notebooks/{name}.ipynb) with what it showed.
"""

_PROGRESS = re.compile(r"^ *\[\w+\] .*\d s left\n", re.MULTILINE)
_TOOK = re.compile(r"(finished) in [\d.]+ s$", re.MULTILINE)
_RUN = re.compile(r"(?<=/)rlhf(-\d+){7}\b")
_BLANK = re.compile(r"(^```.*?^```$)|\n{3,}", re.DOTALL | re.MULTILINE)  # outside of blocks
_FRAME = re.compile(r'<iframe [^>]*height="(\d+)"[^>]*srcdoc="([^"]*)"')


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run a notebook with `folder` as its working directory, by this environment's Python.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed; the message ends in its traceback.
    """
    folder.mkdir(parents=True, exist_ok=True)
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, kernel_name="python3", resources=resources, **_CLIENT).execute()


def rendered(notebook: NotebookNode, name: str, folder: Path) -> tuple[str, dict[str, bytes]]:
    """An executed notebook as a page, and its pictures by their names.

    Args:
        name: Of the notebook's file, without its ending.
        folder: In which it ran; a path of it is shown from there.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # Warnings of libraries, about where they run.
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
            for output in cell.outputs:
                _tidy(output, folder)
    exporter = MarkdownExporter(
        raw_template=TEMPLATE,
        config=Config(
            ExtractOutputPreprocessor={
                "output_filename_template": f"../images/notebooks/{name}_{{cell_index}}_{{index}}{{extension}}"
            }
        ),
    )
    exporter.environment.globals["alt"] = _alt
    text, resources = exporter.from_notebook_node(notebook)
    pictures = {Path(path).name: data for path, data in resources["outputs"].items()}
    text = _BLANK.sub(lambda match: match[1] or "\n\n", text.strip())
    return HEAD.format(name=name) + text + "\n" + FOOT.format(name=name), pictures


def _tidy(output: NotebookNode, folder: Path) -> None:
    if output.output_type == "stream":
        output.text = _same_everywhere(output.text, folder)
        return
    data = output.data
    if "text/html" in data:
        ((height, page),) = _FRAME.findall(data.pop("text/html"))
        data["image/png"] = base64.b64encode(_picture(unescape(page), int(height))).decode()
    for kind in ("text/plain", "text/markdown"):
        if kind in data:
            data[kind] = _same_everywhere(data[kind], folder)


def _same_everywhere(text: str, folder: Path) -> str:
    for path in (folder, ROOT):
        text = text.replace(f"{path}/", "")
    return _RUN.sub("rlhf-...", _TOOK.sub(r"\1", _PROGRESS.sub("", text)))


def _picture(page: str, height: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "frame.png")
        shoot(page, "footer", path, height)
        return path.read_bytes()


def _alt(output: NotebookNode) -> str:
    return " ".join(output.data["text/plain"].split()).replace("[", "(").replace("]", ")")


def main() -> int:
    """Run all notebooks in order, in `build/notebooks`, and write their pages and pictures.

    Returns:
        Exit status: 0.
    """
    folder = ROOT / "build" / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(IMAGES, ignore_errors=True)
    for place in (PAGES, IMAGES):
        place.mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        print(f"{path.name}: started", flush=True)
        notebook = execute(nbformat.read(path, as_version=4), folder)
        page, pictures = rendered(notebook, path.stem, folder)
        (PAGES / f"{path.stem}.md").write_text(page, encoding="utf-8")
        for name, data in pictures.items():
            (IMAGES / name).write_bytes(data)
        print(PAGES / f"{path.stem}.md", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
