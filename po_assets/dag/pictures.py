"""Pictures in Dagster's metadata: small PNG files inside markdown, which the UI draws.

Drawn with matplotlib's object interface, without its global state: steps of a run may share a process.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE_INCHES = (6.4, 3.2)
_DOTS_PER_INCH = 80  # the event log keeps the picture, so it is to stay under about 20 kB
_COLOR = "#4f46e5"
_MARKER_COLOR = "#dc2626"


def histogram(
    values: Sequence[float], title: str, xlabel: str, markers: Mapping[str, float] | None = None, bins: int = 20
) -> dg.MarkdownMetadataValue:
    """How many values lie where; `markers` are labelled vertical lines, thresholds for example."""
    figure, axes = _axes(title, xlabel, "rows")
    axes.hist(np.asarray(values), bins=bins, color=_COLOR)
    for label, position in (markers or {}).items():
        axes.axvline(position, color=_MARKER_COLOR, linestyle="--", label=f"{label} {position:g}")
    if markers:
        axes.legend(frameon=False)
    return figure_picture(figure, title)


def bar_chart(counts: Mapping[str, int], title: str) -> dg.MarkdownMetadataValue:
    """One horizontal bar per name, with its count and share."""
    figure, axes = _axes(title, "rows", "")
    total = sum(counts.values()) or 1
    names = list(counts)[::-1]
    bars = axes.barh(names, [counts[name] for name in names], color=_COLOR)
    axes.bar_label(bars, [f"{counts[name]:,} ({counts[name] / total:.1%})" for name in names], padding=4)
    axes.margins(x=0.2)
    return figure_picture(figure, title)


def line_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, xlabel: str, ylabel: str
) -> dg.MarkdownMetadataValue:
    """One line per name, as `(x values, y values)`."""
    figure, axes = _axes(title, xlabel, ylabel)
    for name, (x_values, y_values) in series.items():
        axes.plot(list(x_values), list(y_values), label=name, linewidth=1.5)
    if len(series) > 1:
        axes.legend(frameon=False)
    return figure_picture(figure, title)


def figure_picture(figure: "Figure", alt: str) -> dg.MarkdownMetadataValue:
    """A matplotlib figure as markdown with the picture inside."""
    buffer = io.BytesIO()
    # Without the software's name and the date, equal figures give equal bytes.
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, bbox_inches="tight", metadata={"Software": None})
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})")


def _axes(title: str, xlabel: str, ylabel: str) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure  # takes half a second; most steps draw nothing

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
