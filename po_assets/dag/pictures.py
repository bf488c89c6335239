"""Pictures in Dagster's metadata: small PNG files inside markdown, which the UI draws.

A picture never stops a step: labels are plain text, however a row wrote them; names are bounded in number and length;
and a picture that cannot be drawn is a note in its place. Drawn with matplotlib's object interface, without its global
state: steps of a run may share a process.
"""

import base64
import functools
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ParamSpec

import dagster as dg
import numpy as np

from po_assets.text import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arguments = ParamSpec("Arguments")

MOST_BARS = 15
"""More cannot be told apart; the rest is one bar."""
LABEL_CHARACTERS = 40
_SIZE_INCHES = (6.4, 3.2)
_DOTS_PER_INCH = 80  # the event log keeps the picture, so it is to stay under about 20 kB
_COLOR = "#4f46e5"
_MARKER_COLOR = "#dc2626"
_NO_LINK = str.maketrans("[]", "()")


def picture(draw: Callable[Arguments, "Figure"]) -> Callable[Arguments, dg.MarkdownMetadataValue]:
    """A function that draws a figure as one that gives Dagster's markdown, or a note where drawing failed."""

    @functools.wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> dg.MarkdownMetadataValue:
        try:
            return _markdown(draw(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - whatever a drawing library makes of a text, the step goes on
            return dg.MetadataValue.md(f"The picture could not be drawn: `{shown(repr(error), 200)}`")

    return drawn


@picture
def histogram(values: Sequence[float], title: str, xlabel: str, markers: Mapping[str, float] | None = None) -> "Figure":
    """How many values lie where; `markers` are labelled vertical lines, thresholds for example."""
    figure, axes = _axes(title, xlabel, "rows")
    axes.hist(np.asarray(values), bins=20, color=_COLOR)
    for label, position in (markers or {}).items():
        axes.axvline(position, color=_MARKER_COLOR, linestyle="--", label=f"{label} {position:g}")
    if markers:
        axes.legend(frameon=False)
    return figure


@picture
def bar_chart(counts: Mapping[str, int], title: str) -> "Figure":
    """One horizontal bar per name with its count and share, the most frequent first; at most `MOST_BARS` names."""
    figure, axes = _axes(title, "rows", "")
    total = sum(counts.values()) or 1
    bars = _bounded(counts)
    drawn = axes.barh(range(len(bars)), [count for _, count in bars], color=_COLOR)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.bar_label(drawn, [f"{count:,} ({count / total:.1%})" for _, count in bars], padding=4)
    axes.margins(x=0.2)
    axes.invert_yaxis()
    return figure


@picture
def line_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, xlabel: str, ylabel: str
) -> "Figure":
    """One line per name, as `(x values, y values)`."""
    figure, axes = _axes(title, xlabel, ylabel)
    for name, (x_values, y_values) in series.items():
        axes.plot(list(x_values), list(y_values), label=shown(name, LABEL_CHARACTERS), linewidth=1.5)
    if len(series) > 1:
        axes.legend(frameon=False)
    return figure


@picture
def figure_picture(figure: "Figure", alt: str) -> "Figure":
    """A matplotlib figure as it is; `alt` is its title for those who do not see it."""
    figure.set_label(alt)
    return figure


def _bounded(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Names as short plain texts; the least frequent together, where there are too many."""
    bars = [(shown(name, LABEL_CHARACTERS), count) for name, count in counts.items()]
    if len(bars) <= MOST_BARS:
        return bars
    ranked = sorted(bars, key=lambda bar: -bar[1])
    rest = ranked[MOST_BARS - 1 :]
    return [*ranked[: MOST_BARS - 1], (f"and {len(rest):,} others", sum(count for _, count in rest))]


def data_uri(figure: "Figure", dots_per_inch: int = _DOTS_PER_INCH) -> str:
    """The figure as a PNG inside a data URI; its labels are plain text, whoever wrote them."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a dollar sign in a label is a dollar sign
        text.set_text(shown(text.get_text(), LABEL_CHARACTERS * 2))
    buffer = io.BytesIO()
    # Without the software's name and the date, equal figures give equal bytes.
    with warnings.catch_warnings(action="ignore"):  # of letters that the font lacks, and of labels that leave no room
        figure.savefig(buffer, format="png", dpi=dots_per_inch, bbox_inches="tight", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _markdown(figure: "Figure") -> dg.MarkdownMetadataValue:
    alt = shown(figure.get_label()).translate(_NO_LINK)
    return dg.MetadataValue.md(f"![{alt}]({data_uri(figure)})")


def _axes(title: str, xlabel: str, ylabel: str) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure  # takes half a second; most steps draw nothing

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    figure.set_label(title)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
