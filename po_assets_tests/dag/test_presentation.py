"""What a check's page and an asset's metadata say."""

import base64
import re

import dagster as dg
import pytest

from po_assets.dag import (
    Verdict,
    bar_chart,
    check_description,
    column_schema,
    histogram,
    line_chart,
    records_table,
    to_check_result,
)
from po_assets.dag.pictures import _bounded
from po_assets.dag.verdict import unescaped
from po_assets.text import shown

HOSTILE = (
    "$\\frac{$",
    "$x",
    "\x1b[31mred",
    "a\x00b",
    "\u202eevil",
    "\udc80",
    "x" * 5_000,
    "line\nbreak",
    "<b>",
    "![i](http://x)",
    "漢字 🧑‍💻",
)

ROWS = [{"file": "a.jsonl", "line": number, "reason": "x" * 300} for number in range(1, 26)]


def test_a_failed_verdict_says_what_where_and_what_to_do() -> None:
    """In the description, which the UI shows without unfolding."""
    verdict = Verdict(False, "25 of 30 rows were rejected.", "Fix them and land them again.", ROWS)
    assert check_description(verdict) == (
        "25 of 30 rows were rejected.\n\nThe table shows 20 of 25 rows.\n\n"
        "**What to do:** Fix them and land them again."
    )


def test_a_terminal_hears_nothing_of_a_table_that_it_does_not_show() -> None:
    """How many rows the page's table holds is said on the page alone; the next step names the table as the check's."""
    said = check_description(Verdict(False, "25 of 30 rows were rejected.", "The check's table says why.", ROWS))
    assert unescaped(said) == "25 of 30 rows were rejected.\n\nWhat to do: The check's table says why."
    assert unescaped(check_description(Verdict(True, "All is well.", rows=ROWS, of=1_040))) == "All is well."


def test_a_passed_verdict_gives_no_orders() -> None:
    """Nothing is to be done; a table that shows a part says so here, too."""
    assert check_description(Verdict(True, "All is well.", "Fix it.", ROWS[:20])) == "All is well."
    assert check_description(Verdict(True, "All is well.", rows=ROWS, of=40)).endswith("The table shows 20 of 40 rows.")


def test_a_verdict_becomes_dagsters_result() -> None:
    """Rows as a table of 20, numbers as floats that are plotted, severity as given."""
    result = to_check_result("schema", "raw", Verdict(False, "Bad.", rows=ROWS, numbers={"share": 1}, severity="WARN"))
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert result.metadata["share"] == dg.FloatMetadataValue(1.0)
    table = result.metadata["rows"]
    assert isinstance(table, dg.TableMetadataValue)
    assert len(table.records) == 20
    assert table.records[0].data["reason"] == "x" * 199 + "…"


def test_a_table_that_shows_a_part_says_of_how_many() -> None:
    """In its last row: an asset's page has no other place beside it."""
    for given, of, said in ((ROWS, None, "20 of 25 rows"), (ROWS[:2], 40, "2 of 40 rows")):
        last = records_table(given, of=of).records[-1].data
        assert last == {"file": said, "line": "", "reason": ""}
    assert len(records_table(ROWS[:20]).records) == 20


def test_tables_take_any_value() -> None:
    """Missing keys, lists and bytes that are no text included."""
    records = records_table([{"a": 1.23456, "b": True}, {"c": ["\udc80"]}]).records
    assert [record.data for record in records] == [
        {"a": 1.2346, "b": True, "c": None},
        {"a": None, "b": None, "c": "['\\udc80']"},
    ]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: histogram([0.8, 0.9, 0.95], "Scores", "score", {"minimum": 0.82}),
        lambda: bar_chart({"aligned": 240, "conflicts": 10}, "Status"),
        lambda: line_chart({"loss": ([1, 2], [3.0, 2.0]), "other": ([1, 2], [1.0, 1.0])}, "Loss", "step", "loss"),
        lambda: bar_chart({}, "Nothing"),
    ],
)
def test_pictures_are_small_png_files_and_repeatable(draw: object) -> None:
    """They go into the event log, and equal data must give equal metadata."""
    first, second = draw(), draw()  # type: ignore[operator]
    assert first == second
    prefix, data = first.value.rstrip(")").split(";base64,")
    assert prefix.endswith("(data:image/png")
    picture = base64.b64decode(data)
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 30_000


def test_a_column_schema_has_types_and_descriptions() -> None:
    """As Dagster's catalogue shows them."""
    (column,) = column_schema({"line": ("integer", "Line number.")}).columns
    assert (column.name, column.type, column.description) == ("line", "integer", "Line number.")


def test_no_number_on_a_page_is_longer_than_people_read() -> None:
    """Four decimals; of small numbers four digits; counts whole."""
    numbers = {"mean": 0.9166666666, "rate": 0.000123456, "tokens": 67023, "nothing": 0}
    metadata = to_check_result("schema", "raw", Verdict(True, "Fine.", numbers=numbers)).metadata
    assert {name: metadata[name].value for name in numbers} == {
        "mean": 0.9167,
        "rate": 0.0001235,
        "tokens": 67023.0,
        "nothing": 0.0,
    }


def test_a_missing_number_does_not_hide_its_row() -> None:
    """NaN is no JSON: the UI shows "Could not parse record" for a row that holds it."""
    (record,) = records_table([{"case": "EVAL-01", "status": float("nan")}]).records
    assert record.data == {"case": "EVAL-01", "status": "nan"}


@pytest.mark.parametrize("text", HOSTILE)
def test_no_label_of_a_row_keeps_a_picture_from_being_drawn(text: str) -> None:
    """Whatever stands in a landed tier or status: it is text, not a formula."""
    for drawn in (
        bar_chart({text: 3, "simple": 1}, "Tiers"),
        histogram([0.5, 0.6], text, text, {text: 0.5}),
        line_chart({text: ([1], [1.0]), "b": ([1], [2.0])}, "Loss", "step", "loss"),
    ):
        assert ";base64," in drawn.value, drawn.value


def test_thousands_of_names_are_a_picture_that_people_can_read() -> None:
    """The most frequent ones, and how many others there are, in a moment."""
    counts = {f"tier {number}": 1 for number in range(1, 2_000)} | {"simple": 50}
    assert bar_chart(counts, "Tiers").value.startswith("![Tiers](data:image/png")
    assert _bounded(counts)[0] == ("simple", 50)
    assert _bounded(counts)[-1] == ("and 1,986 others", 1_986)


def test_a_picture_that_cannot_be_drawn_is_a_note() -> None:
    """The step that wanted it goes on."""
    assert histogram([float("inf")], "Scores", "score").value.startswith("The picture could not be drawn: `")


@pytest.mark.parametrize("text", HOSTILE)
def test_landed_text_in_a_verdict_is_shown_and_not_acted_on(text: str) -> None:
    """Neither by the page's markdown nor by a terminal; what is read is what was written."""
    verdict = Verdict(False, f"The file {shown(text)} is empty.", "Look at `min_score` and min_score.")
    description = check_description(verdict)
    assert "\x1b" not in description
    assert not re.search(r"(?<!\\)(\]\(|<)", description)
    assert unescaped(description).startswith(f"The file {shown(text)} is empty.")
    assert "`min_score` and min_score." in description
