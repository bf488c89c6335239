"""The verdict of a check: passed or not, one sentence, the violating rows, the next step; and rows as tables."""

import heapq
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import dagster as dg

from po_assets.text import printable

Severity = Literal["ERROR", "WARN"]
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


@dataclass(frozen=True)
class Verdict:
    """What a check found; made by plain functions, shown by `to_check_result`."""

    passed: bool
    summary: str
    """One sentence with the numbers, what is against what should be."""
    next_step: str = ""
    """What to do about it; shown when the check did not pass."""
    rows: Sequence[Mapping[str, object]] = ()
    """The violating rows (file, line, reason …)."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Plotted over time by the UI."""
    severity: Severity | None = None
    """Empty: as the check was registered. Set where it depends on what was found."""
    extra: Mapping[str, dg.MetadataValue] = field(default_factory=dict)
    """Further evidence, pictures for example."""
    required: str = ""
    """Of a threshold: what is asked for, in a few characters (`>= 0.82`)."""
    value: str = ""
    """What was found, likewise."""
    of: int | None = None
    """How many rows there are where `rows` holds only the first or worst of them."""


class CannotJudge(Exception):  # noqa: N818 - no fault of the program
    """Why a check cannot look at what it judges, in words, and the next step; the check then fails with both."""

    @property
    def verdict(self) -> Verdict:
        """The check's."""
        return Verdict(False, *self.args)


class Violations:
    """Counts rows and keeps the `SHOWN_ROWS` with the greatest weight, the earliest first among equals."""

    def __init__(self) -> None:
        self.count = 0
        self._heap: list[tuple[float, int, Mapping[str, object]]] = []
        self._order = count(0, -1)

    def add(self, row: Mapping[str, object], weight: float = 0.0) -> None:
        """Count one row; a greater weight is worse."""
        self.count += 1
        entry = (weight, next(self._order), row)
        if len(self._heap) < SHOWN_ROWS:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    @property
    def rows(self) -> list[Mapping[str, object]]:
        """The kept rows, worst first."""
        return [row for _, _, row in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1]))]

    def __bool__(self) -> bool:
        return self.count > 0


def check_description(verdict: Verdict) -> str:
    """The text the UI shows first (markdown, of which only code spans are taken from the verdict's own words)."""
    parts = [escaped(verdict.summary)]
    total, shown = verdict.of or len(verdict.rows), min(SHOWN_ROWS, len(verdict.rows))
    if total > shown > 0:
        parts.append(f"The table shows {shown} of {total:,} rows.")
    if verdict.next_step and not verdict.passed:
        parts.append(f"**What to do:** {escaped(verdict.next_step)}")
    return "\n\n".join(parts)


def escaped(text: str) -> str:
    """The text as markdown that shows it as it is; landed names and values may stand in it."""
    parts = _CODE_SPAN.split(printable(text))
    return "".join(part if part.startswith("`") else _MARKUP.sub(r"\\\g<0>", part) for part in parts)


def unescaped(description: str) -> str:
    """The description without markdown, and without the caption of a table that is on the page only: for a terminal."""
    plain = _CAPTION.sub("", description).replace("**What to do:**", "What to do:")
    return re.sub(r"\\([\\*\[\]<~_&])", r"\1", plain)


def to_check_result(name: str, asset: str, verdict: Verdict) -> dg.AssetCheckResult:
    """The verdict as Dagster's result: sentence inline, rows as a table, numbers as plots."""
    metadata: dict[str, dg.MetadataValue | float | int] = {}
    if verdict.rows:
        metadata["rows"] = records_table(verdict.rows[:SHOWN_ROWS])  # the description says of how many
    metadata |= rounded({key: float(value) for key, value in verdict.numbers.items()})
    metadata |= dict(verdict.extra)
    return dg.AssetCheckResult(
        passed=verdict.passed,
        asset_key=asset,
        check_name=name,
        severity=dg.AssetCheckSeverity(verdict.severity or "ERROR"),
        description=check_description(verdict),
        metadata=metadata,
    )


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
    shown, total = rows[:SHOWN_ROWS], of or len(rows)
    columns = list(dict.fromkeys(key for row in shown for key in row))
    if total > len(shown) and columns:
        shown = [*shown, dict.fromkeys(columns, "") | {columns[0]: f"{len(shown)} of {total:,} rows"}]
    return columns, [{column: _cell(row.get(column)) for column in columns} for row in shown]


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
