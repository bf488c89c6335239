"""An asset's page in the UI: what stands on it can be read without scrolling sideways.

In a window of 1,280 pixels the column of values has room for `LINE` characters. Words wrap; what has no blank in it (a
path, a digest) and Dagster's own tables do not, and one that is too long cuts off every other value of the page, too.
Checks have pages of their own, with more room: their rows are `verdict.records_table`.
"""

from collections.abc import Iterable, Mapping, Sequence

import dagster as dg
from upath import UPath

from po_assets.dag.verdict import SHOWN_ROWS, escaped, table_cells
from po_assets.text import markdown_table, shown

LINE = 36
_IN_LINE = 1_000
"""Shorter markdown is shown by the UI where it stands, longer one behind a link."""
_BUTTON = 3


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
