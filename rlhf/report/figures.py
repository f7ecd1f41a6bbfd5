"""Plots as inline SVG, in the page's own colours and fonts, so that they follow light and dark mode.

Matplotlib knows no CSS variables: it draws in placeholder colours, which are then replaced by variables of the
page's style sheet. The same data give the same bytes.
"""

import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any
from xml.etree import ElementTree

from rlhf.report.page import visible

LONGEST_LABEL = 60
NOISY = 30

_SVG = "{http://www.w3.org/2000/svg}"
ElementTree.register_namespace("", _SVG[1:-1])
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
_REFERENCE = re.compile(r"^(?:url\()?#([\w-]+)\)?$")

_INK, _FAINT = "#010101", "#020202"
_SERIES = ["#030301", "#030302", "#030303", "#030304", "#030305"]
_COLOURS = {  # fallbacks serve an SVG taken out of the page
    _INK: "currentColor",
    _FAINT: "var(--line, #8884)",
    _SERIES[0]: "var(--s1, #6b7280)",
    _SERIES[1]: "var(--s2, #1f6fb2)",
    _SERIES[2]: "var(--s3, #b45f06)",
    _SERIES[3]: "var(--s4, #2e7d4f)",
    _SERIES[4]: "var(--s5, #8a4fa3)",
}
_DASHES = ["-", "-", "--", "-.", ":"]

_STYLE = {
    "svg.fonttype": "none",  # text stays text: readable, searchable, in the page's font
    "svg.hashsalt": "rlhf",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}


def lines(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    limit: float | None = None,
) -> str:
    """Curves over steps.

    Args:
        title: Short, shown above the plot and given to screen readers.
        series: {label: [(x, y), ...]}, at most five. Points that are not finite leave a gap. From `NOISY` points on, a
            curve is faint under its running mean over a tenth of them.
        x_label, y_label: With their units.
        limit: A bound on y, drawn across once the curves come near it (above half of it).

    Returns:
        An `<svg>` element.
    """
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        drawing, axes = _axes(title, x_label, y_label)
        for index, (label, points) in enumerate(series.items()):
            x, y = [x for x, _ in points], [y if math.isfinite(y) else math.nan for _, y in points]
            colour = _series_colour(index, len(series))
            if len(y) >= NOISY:
                axes.plot(x, y, color=colour, alpha=0.3, linewidth=1)
                y = _running_mean(y, len(y) // 10)
            marker = "o" if len(y) < 3 else None
            axes.plot(x, y, color=colour, linestyle=_DASHES[index], marker=marker, label=_label(label))
        if limit is not None and axes.dataLim.ymax > limit / 2:
            axes.axhline(limit, color=_INK, linewidth=1, linestyle=(0, (2, 3)))
            axes.annotate(
                f"limit {limit:g}", (1, limit), (0, 3), ("axes fraction", "data"), "offset points", ha="right"
            )
        return _finish(drawing, axes, title, legend=len(series) > 1)


def trail(title: str, points: Sequence[tuple[float, float]], x_label: str, y_label: str) -> str:
    """Where something went: points in order, the later the darker.

    Args:
        title: Short, shown above the plot and given to screen readers.
        points: [(x, y), ...]; those that are not finite are left out.

    Returns:
        An `<svg>` element.
    """
    import matplotlib as mpl

    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    with mpl.rc_context(_STYLE):
        drawing, axes = _axes(title, x_label, y_label)
        for left, (x, y) in zip(range(len(points) - 1, -1, -1), points, strict=True):
            axes.plot([x], [y], "o", color=_SERIES[1], markersize=5, alpha=1 - 0.8 * left / len(points))
        return _finish(drawing, axes, title, legend=False)


def histogram(
    title: str, series: Mapping[str, Sequence[float]], x_label: str, y_label: str = "share of rows", bins: int = 30
) -> str:
    """Distributions over common bins, each with its mean as a dotted line.

    Args:
        title: Short, shown above the plot and given to screen readers.
        series: {label: values}, at most five. Values that are not finite are left out; each series sums to 1.

    Returns:
        An `<svg>` element.
    """
    import matplotlib as mpl
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    values = {label: np.asarray([v for v in row if math.isfinite(v)], dtype=float) for label, row in series.items()}
    values = {label: row for label, row in values.items() if row.size}
    with mpl.rc_context(_STYLE):
        drawing, axes = _axes(title, x_label, y_label)
        if values:
            edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins=bins)
        for index, (label, row) in enumerate(values.items()):
            colour = _series_colour(index, len(values))
            shares = np.histogram(row, bins=edges)[0] / row.size
            axes.stairs(shares, edges, color=colour, alpha=0.16, fill=True)
            axes.stairs(shares, edges, color=colour, linewidth=1.6, linestyle=_DASHES[index], label=_label(label))
            axes.axvline(row.mean(), color=colour, linewidth=1.2, linestyle=":")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
        axes.set_ylim(bottom=0)
        return _finish(drawing, axes, title, legend=len(values) > 1)


def _running_mean(values: list[float], width: int) -> list[float]:
    """Mean over about `width` values around each, fewer towards the ends, without those that are not finite."""
    means = []
    for i in range(len(values)):
        half = min(width // 2, i, len(values) - 1 - i)
        finite = [v for v in values[i - half : i + half + 1] if math.isfinite(v)]
        means.append(fmean(finite) if finite else math.nan)
    return means


def _series_colour(index: int, count: int) -> str:
    return _SERIES[1] if count == 1 else _SERIES[index]


def _label(text: str) -> str:
    """One line that leaves room for the plot."""
    line = " ".join(visible(text).split())
    return line if len(line) <= LONGEST_LABEL else line[: LONGEST_LABEL - 1] + "…"


def _axes(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(5.4, 3.1), layout="constrained")
    axes = drawing.add_subplot()
    axes.set_title(_label(title), loc="left", fontsize=11.5, fontweight="bold", pad=22)
    axes.annotate(_label(y_label), (0, 1), (0, 7), xycoords="axes fraction", textcoords="offset points", fontsize=9)
    axes.set_xlabel(_label(x_label), fontsize=9)
    return drawing, axes


def _finish(drawing: Any, axes: Any, title: str, legend: bool) -> str:
    if not axes.has_data():
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center")
    if legend:
        drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=3)
    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = ElementTree.fromstring(buffer.getvalue())
    _to_page_style(svg)
    _own_ids(svg, hashlib.sha256(buffer.getvalue().encode()).hexdigest()[:8])
    svg.set("role", "img")
    svg.set("aria-label", visible(title))
    heading = ElementTree.Element(f"{_SVG}title")
    heading.text = visible(title)
    svg.insert(0, heading)
    return ElementTree.tostring(svg, encoding="unicode")


def _to_page_style(svg: ElementTree.Element) -> None:
    """Give the drawing the page's colours and font, and take away what would apply to the page around it."""
    for element in svg.iter():
        for child in [c for c in element if c.tag == f"{_SVG}metadata" or c.find(f"{_SVG}style") is not None]:
            element.remove(child)
        style = element.get("style")
        if style:
            style = re.sub(r"font-family: [^;]*;? ?", "", style)
            style = re.sub(r"#\w{6}", lambda match: _COLOURS.get(match.group(), match.group()), style)
            element.set("style", style)
    svg.set("style", "font-family: var(--sans, sans-serif); stroke-linejoin: round; stroke-linecap: butt")


def _own_ids(svg: ElementTree.Element, prefix: str) -> None:
    """Drop ids that nothing refers to and make the others unique to this drawing: several share one page."""
    references = [
        (element, name) for element in svg.iter() for name, value in element.items() if _REFERENCE.search(value)
    ]
    used = {_REFERENCE.search(element.get(name))[1] for element, name in references}
    for element, name in references:
        element.set(name, _REFERENCE.sub(lambda match: match[0].replace("#", f"#{prefix}-"), element.get(name)))
    for element in svg.iter():
        if element.get("id") in used:
            element.set("id", f"{prefix}-{element.get('id')}")
        else:
            element.attrib.pop("id", None)
