"""What the UI shows of a step: tables, lists, texts and pictures.

A check's page has room for rows: `records_table`. An asset's page is to be read without scrolling sideways: in a window
of 1,280 pixels its column of values has room for `LINE` characters. Words wrap; what has no blank in it (a path, a
digest) and Dagster's own tables do not, and one that is too long cuts off every other value of the page, too.

Pictures are small PNG files inside markdown. A picture never stops a step: labels are plain text, however a row wrote
them; names are bounded in number and length; and a picture that cannot be drawn is a note in its place. Drawn with
matplotlib's object interface, without its global state: steps of a run may share a process.
"""

import base64
import functools
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec

import dagster as dg
import numpy as np
from upath import UPath

from po_assets.text import markdown_table, printable, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arguments = ParamSpec("Arguments")
Cell = str | int | float | bool | None
SHOWN_ROWS = 20
"""More make a page nobody reads; the sentence above the table says how many there are."""
CELL_CHARACTERS = 200
WORD_CHARACTERS = 60
"""Words do not break: one that is longer would push the rest of its table off the page."""
_SMALL = 0.01
_CAPTION = re.compile(r"\n\nThe table shows \d+ of [\d,]+ rows\.(?=\n\n|$)")
_LONG_WORD = re.compile(rf"\S{{{WORD_CHARACTERS + 1},}}")
_CODE_SPAN = re.compile(r"(`[^`]*`)")
# What markdown acts on. An underscore inside a word (min_score) is none of it.
_MARKUP = re.compile(r"[\\*\[\]<]|~~|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")

LINE = 36
_IN_LINE = 1_000
"""Shorter markdown is shown by the UI where it stands, longer one behind a link."""
_BUTTON = 3

MOST_BARS = 15
"""More cannot be told apart; the rest is one bar."""
LABEL_CHARACTERS = 40
_SIZE_INCHES = (6.4, 3.2)
_DOTS_PER_INCH = 80  # the event log keeps the picture, so it is to stay under about 20 kB
_COLOR = "#4f46e5"
_MARKER_COLOR = "#dc2626"
_NO_LINK = str.maketrans("[]", "()")


def escaped(text: str) -> str:
    """The text as markdown that shows it as it is; landed names and values may stand in it."""
    parts = _CODE_SPAN.split(printable(text))
    return "".join(part if part.startswith("`") else _MARKUP.sub(r"\\\g<0>", part) for part in parts)


def unescaped(description: str) -> str:
    """The description without markdown, and without the caption of a table that is on the page only: for a terminal."""
    plain = _CAPTION.sub("", description).replace("**What to do:**", "What to do:")
    return re.sub(r"\\([\\*\[\]<~_&])", r"\1", plain)


def rounded(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata with its fractions as people read them; anything else as it is."""
    return {key: _readable(value) if isinstance(value, float) else value for key, value in metadata.items()}


def _readable(value: float) -> float:
    """Four decimals, of small numbers four digits: the UI shows as many as there are."""
    if not math.isfinite(value):
        return value
    return float(f"{value:.4g}") if abs(value) < _SMALL else round(value, 4)


def records_table(rows: Sequence[Mapping[str, object]], *, of: int | None = None) -> dg.TableMetadataValue:
    """The first `SHOWN_ROWS` rows as a table; columns in order of first appearance, long texts shortened.

    A last row says how many of how many there are, where more are than shown; `of` where `rows` are a part already.
    """
    columns, cells = table_cells(rows, of=of)
    return dg.MetadataValue.table(
        records=[dg.TableRecord(row) for row in cells],
        schema=dg.TableSchema(columns=[dg.TableColumn(name=column, type="string") for column in columns]),
    )


def table_cells(
    rows: Sequence[Mapping[str, object]], *, of: int | None = None
) -> tuple[list[str], list[dict[str, Cell]]]:
    """The columns, and the rows of `records_table` as they are shown."""
    kept, total = rows[:SHOWN_ROWS], of or len(rows)
    columns = list(dict.fromkeys(key for row in kept for key in row))
    if total > len(kept) and columns:
        kept = [*kept, dict.fromkeys(columns, "") | {columns[0]: f"{len(kept)} of {total:,} rows"}]
    return columns, [{column: _cell(row.get(column)) for column in columns} for row in kept]


def column_schema(columns: Mapping[str, tuple[str, str]]) -> dg.TableSchema:
    """A column schema for `dagster/column_schema` from `{name: (type, description)}`."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(name=name, type=kind, description=description)
            for name, (kind, description) in columns.items()
        ]
    )


def _cell(value: object) -> Cell:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        # NaN (a missing value in pandas) is not valid JSON, and the UI shows no row that holds it.
        return round(value, 4) if math.isfinite(value) else str(value)
    text = printable(str(value))  # also lone surrogates (bytes that are not UTF-8), which the event log cannot store
    text = text if len(text) <= CELL_CHARACTERS else f"{text[: CELL_CHARACTERS - 1]}…"
    return _LONG_WORD.sub(lambda word: f"{word[0][: WORD_CHARACTERS - 1]}…", text)


def page_table(rows: Sequence[Mapping[str, object]], *, of: int | None = None) -> dg.MarkdownMetadataValue:
    """The first rows as a table: on the page if it is narrow enough, else behind a link that opens it.

    `of` where `rows` are a part already; a last row says how many of how many there are.
    """
    columns, cells = table_cells(rows, of=of)
    texts = [columns, *([_text(row[column]) for column in columns] for row in cells)]
    # A column is at least as wide as its longest word, and two characters of space.
    widths = [max(len(word) for line in texts for word in f"{line[n]} -".split()) + 2 for n in range(len(columns))]
    head, *body = ([escaped(shown(text, 400)) for text in line] for line in texts)
    table = markdown_table(head, body)
    return dg.MetadataValue.md(table if sum(widths) <= LINE else table.ljust(_IN_LINE))


def page_list(lines: Iterable[str]) -> dg.MarkdownMetadataValue:
    """Lines of text as a list, of which each wraps; what is between ** is bold."""
    kept = list(lines)
    more = [f"and {len(kept) - SHOWN_ROWS:,} more"] if len(kept) > SHOWN_ROWS else []
    parts = ([escaped(part) for part in line.split("**")] for line in [*kept[:SHOWN_ROWS], *more])
    return dg.MetadataValue.md("\n".join("- " + "**".join(part).replace("\n", " ") for part in parts))


def place(path: UPath | str) -> dg.PathMetadataValue:
    """A path as far as there is room beside its button: the whole of it, folder and name, or the name."""
    parts = str(path).rstrip("/").split("/")
    forms = (str(path), "/".join(parts[-2:]), parts[-1])
    return dg.MetadataValue.path(next((form for form in forms if len(form) <= LINE - _BUTTON), forms[-1]))


def short(text: str) -> str:
    """A name that may be a long path: its end, as far as there is room."""
    return text if len(text) <= LINE else f"…{text[1 - LINE :]}"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else " ".join(str(value).split())


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
