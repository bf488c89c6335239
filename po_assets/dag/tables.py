"""Rows as tables in Dagster's metadata, which the UI shows without unfolding anything."""

import math
from collections.abc import Mapping, Sequence

import dagster as dg

from po_assets.text import printable

SHOWN_ROWS = 20
"""More make a page nobody reads; the sentence above the table says how many there are."""
CELL_CHARACTERS = 200


def records_table(rows: Sequence[Mapping[str, object]], limit: int = SHOWN_ROWS) -> dg.TableMetadataValue:
    """The first `limit` rows as a table; columns in order of first appearance, long texts shortened."""
    shown = rows[:limit]
    columns = list(dict.fromkeys(key for row in shown for key in row))
    return dg.MetadataValue.table(
        records=[dg.TableRecord({column: _cell(row.get(column)) for column in columns}) for row in shown],
        schema=dg.TableSchema(columns=[dg.TableColumn(name=column, type="string") for column in columns]),
    )


def column_schema(columns: Mapping[str, tuple[str, str]]) -> dg.TableSchema:
    """A column schema for `dagster/column_schema` from `{name: (type, description)}`."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(name=name, type=kind, description=description)
            for name, (kind, description) in columns.items()
        ]
    )


def _cell(value: object) -> str | int | float | bool | None:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        # What is no number (a missing value in pandas) is no JSON either, and the UI shows no row that holds it.
        return round(value, 4) if math.isfinite(value) else str(value)
    text = printable(str(value))  # also lone surrogates (bytes that are not UTF-8), which the event log cannot store
    return text if len(text) <= CELL_CHARACTERS else f"{text[: CELL_CHARACTERS - 1]}…"
