"""Plots as inline SVG, in the page's own colours and fonts, so that they follow light and dark mode.

Matplotlib knows no CSS variables: it draws in placeholder colours, which are then replaced by variables of the
page's style sheet. The same data give the same bytes.
"""

import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any
from xml.etree import ElementTree

from rlhf.report.page import visible
from rlhf.words import percent

LONGEST_LABEL = 60
NOISY = 30
MOST_POINTS = 300

_SVG = "{http://www.w3.org/2000/svg}"
ElementTree.register_namespace("", _SVG[1:-1])
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
_REFERENCE = re.compile(r"^(?:url\()?#([\w-]+)\)?$")

_INK, _FAINT, _MARK = "#010101", "#020202", "#040404"
_SERIES = ["#030301", "#030302", "#030303", "#030304", "#030305"]
_COLOURS = {  # fallbacks serve an SVG taken out of the page
    _INK: "currentColor",
    _FAINT: "var(--line, #8884)",
    _MARK: "var(--bad, #a23b3b)",
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
    marks: Mapping[float, str] | None = None,
) -> str:
    """Curves over steps.

    Args:
        title: Short, shown above the plot and given to screen readers.
        series: {label: [(x, y), ...]}, at most five. Points that are not finite leave a gap. From `NOISY` points on, a
            curve is faint under its running mean over a tenth of them.
        x_label, y_label: With their units.
        limit: A bound on y, drawn across once the curves come near it (above half of it).
        marks: {x: what happened there}, drawn from top to bottom.

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
        _mark(axes, marks or {})
        return _finish(drawing, axes, title, legend=len(series) > 1)


def trail(
    title: str,
    points: Sequence[tuple[float, float]],
    x_label: str,
    y_label: str,
    marks: Mapping[tuple[float, float], str] | None = None,
) -> str:
    """Where something went: points in order, the later the darker.

    Args:
        title: Short, shown above the plot and given to screen readers.
        points: [(x, y), ...]; those that are not finite are left out.
        marks: {point: what happened there}, ringed.

    Returns:
        An `<svg>` element.
    """
    import matplotlib as mpl

    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    with mpl.rc_context(_STYLE):
        drawing, axes = _axes(title, x_label, y_label)
        for left, (x, y) in zip(range(len(points) - 1, -1, -1), points, strict=True):
            axes.plot([x], [y], "o", color=_SERIES[1], markersize=5, alpha=1 - 0.8 * left / len(points))
        for (x, y), what in (marks or {}).items():
            axes.plot([x], [y], "o", color=_MARK, markersize=11, markerfacecolor="none", markeredgewidth=1.6)
            axes.annotate(
                _label(what), (x, y), (9, -9), textcoords="offset points", va="top", fontsize=8.5, color=_MARK
            )
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
            together = np.concatenate(list(values.values()))
            low, high = together.min(), together.max()
            if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):  # what rounding leaves of equal values
                low, high = low - 0.5, high + 0.5
            edges = np.linspace(low, high, bins + 1)
        for index, (label, row) in enumerate(values.items()):
            colour = _series_colour(index, len(values))
            shares = np.histogram(row, bins=edges)[0] / row.size
            axes.stairs(shares, edges, color=colour, alpha=0.16, fill=True)
            axes.stairs(shares, edges, color=colour, linewidth=1.6, linestyle=_DASHES[index], label=_label(label))
            axes.axvline(row.mean(), color=colour, linewidth=1.2, linestyle=":")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(lambda share, _: _per_cent(share))
        axes.set_ylim(bottom=0)
        return _finish(drawing, axes, title, legend=len(values) > 1)


@dataclass(frozen=True)
class Estimate:
    """A share with its interval, as a point and a bar."""

    label: str
    value: float
    low: float
    high: float


def intervals(
    title: str, groups: Mapping[str, Sequence[Estimate]], x_label: str, reference: float, compared: str = ""
) -> str:
    """Shares with their intervals, one below the other under headings.

    Args:
        title: Short, shown above the plot and given to screen readers.
        groups: {heading: estimates}, top to bottom. Groups without any are left out.
        reference: A share, drawn from top to bottom.
        compared: Heading of what the others are compared with, drawn in grey.

    Returns:
        An `<svg>` element.
    """
    import matplotlib as mpl
    from matplotlib.ticker import MaxNLocator

    groups = {heading: rows for heading, rows in groups.items() if rows}
    count = sum(1 + len(rows) for rows in groups.values())
    with mpl.rc_context(_STYLE | {"axes.grid.axis": "x"}):
        drawing, axes = _axes(title, x_label, "", height=1 + 0.23 * max(count, 3))
        axes.set_title("", loc="left")  # labels take half the width: a title above the axes alone would be cut off
        drawing.suptitle(_label(title), x=0.01, ha="left", fontsize=11.5, fontweight="bold")
        names: list[tuple[str, str]] = []  # from top to bottom: what, font weight
        for heading, estimates in groups.items():
            names.append((heading, "bold"))
            colour = _SERIES[0] if heading == compared else _SERIES[1]
            for estimate in estimates:
                row = len(names)
                names.append((estimate.label, "normal"))
                _bar(axes, (estimate.value, row), (estimate.low, estimate.high), colour, across=True)
                axes.annotate(
                    percent(estimate.value), (1, row), (6, 0), ("axes fraction", "data"), "offset points", va="center"
                )
        if groups:
            axes.axvline(reference, color=_INK, linewidth=1, linestyle=(0, (2, 3)))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(lambda share, _: _per_cent(share))
        axes.set_yticks(range(count), [_label(name) for name, _ in names])
        for label, (_, weight) in zip(axes.get_yticklabels(), names, strict=True):
            label.set_fontweight(weight)
        axes.set_ylim(count - 0.5, -0.7)
        return _finish(drawing, axes, title, legend=False)


def reliability(title: str, points: Sequence[tuple[float, Estimate]], x_label: str, y_label: str) -> str:
    """How often something is right by how sure it was; on the diagonal the two agree.

    Args:
        title: Short, shown above the plot and given to screen readers.
        points: [(confidence, share right), ...], both in [0, 1]; the labels are not drawn.

    Returns:
        An `<svg>` element.
    """
    import matplotlib as mpl

    with mpl.rc_context(_STYLE | {"axes.grid.axis": "both"}):
        drawing, axes = _axes(title, x_label, y_label)
        for x, estimate in points:
            _bar(axes, (x, estimate.value), (estimate.low, estimate.high), _SERIES[1], across=False)
        if points:
            axes.plot([0.5, 1], [0.5, 1], color=_INK, linewidth=1, linestyle=(0, (2, 3)))
            axes.plot([x for x, _ in points], [e.value for _, e in points], color=_SERIES[1], linewidth=1)
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(-0.03, 1.03)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda share, _: _per_cent(share))
        return _finish(drawing, axes, title, legend=False)


def scatter(title: str, series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """One thing against another, of at most `MOST_POINTS` points a series, taken evenly from its order.

    Args:
        title: Short, shown above the plot and given to screen readers.
        series: {label: [(x, y), ...]}, at most five.

    Returns:
        An `<svg>` element.
    """
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        drawing, axes = _axes(title, x_label, y_label)
        for index, (label, points) in enumerate(series.items()):
            shown = points[:: math.ceil(len(points) / MOST_POINTS) or 1]
            axes.plot(
                *zip(*shown, strict=True),
                "o",
                color=_series_colour(index, len(series)),
                markersize=3.5,
                markeredgewidth=0,
                alpha=0.5,
                label=_label(label),
            )
        return _finish(drawing, axes, title, legend=len(series) > 1)


def _mark(axes: Any, marks: Mapping[float, str]) -> None:
    """Lines from top to bottom; what they say stands beside them, one below the other, above the curves."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.08 * len(marks) * (high - low))
    middle = sum(axes.get_xlim()) / 2
    for row, (x, what) in enumerate(sorted(marks.items())):
        axes.axvline(x, color=_MARK, linewidth=1.2, linestyle=(0, (4, 2)))
        side = -1 if x > middle else 1  # the one with room
        axes.annotate(
            _label(what),
            (x, 1),
            (4 * side, -1 - 11 * row),
            ("data", "axes fraction"),
            "offset points",
            ha="right" if side < 0 else "left",
            va="top",
            fontsize=8.5,
            color=_MARK,
        )


def _bar(axes: Any, point: tuple[float, float], ends: tuple[float, float], colour: str, across: bool) -> None:
    """A point and its interval; `across` is along x."""
    x, y = point
    axes.plot(*((ends, (y, y)) if across else ((x, x), ends)), color=colour, linewidth=1.6, solid_capstyle="butt")
    axes.plot([x], [y], "o", color=colour, markersize=5)


def _per_cent(share: float) -> str:
    return f"{100 * share:.3g} %"


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


def _axes(title: str, x_label: str, y_label: str, height: float = 3.1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(5.4, height), layout="constrained")
    axes = drawing.add_subplot()
    axes.set_title(_label(title), loc="left", fontsize=11.5, fontweight="bold", pad=22 if y_label else 8)
    axes.annotate(_label(y_label), (0, 1), (0, 7), xycoords="axes fraction", textcoords="offset points", fontsize=9)
    axes.set_xlabel(_label(x_label), fontsize=9)
    return drawing, axes


def _finish(drawing: Any, axes: Any, title: str, legend: bool) -> str:
    if not axes.has_data():
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center")
    if legend:
        drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=3, markerscale=1.6)
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
