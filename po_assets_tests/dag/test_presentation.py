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
    page_list,
    page_table,
    place,
    records_table,
    short,
    to_check_result,
)
from po_assets.dag.pages import _bounded, unescaped
from po_assets.text import fenced, shown

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
    assert table.records[0].data["reason"] == "x" * 59 + "…"  # it is one word
    (row,) = records_table([{"reason": "word " * 60, "file": f"{'y' * 60}.jsonl is empty"}]).records
    assert row.data == {"reason": ("word " * 60)[:199] + "…", "file": "y" * 59 + "… is empty"}


def test_a_table_that_shows_a_part_says_of_how_many() -> None:
    """In its last row: an asset's page has no other place beside it."""
    for given, of, said in ((ROWS, None, "20 of 25 rows"), (ROWS[:2], 40, "2 of 40 rows")):
        last = records_table(given, of=of).records[-1].data
        assert last == {"file": said, "line": "", "reason": ""}
    assert len(records_table(ROWS[:20]).records) == 20


def test_tables_take_any_value() -> None:
    """Missing keys, lists and bytes that are no text included; of a row with NaN, no JSON, the UI would show nothing."""
    records = records_table([{"a": 1.23456, "b": True}, {"c": ["\udc80"]}, {"a": float("nan")}]).records
    assert [record.data for record in records] == [
        {"a": 1.2346, "b": True, "c": None},
        {"a": None, "b": None, "c": "['\\udc80']"},
        {"a": "nan", "b": None, "c": None},
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


def test_an_assets_page_has_narrow_tables_in_line_and_wide_ones_behind_a_link() -> None:
    """The UI shows markdown of less than 1,000 characters where it stands; a wide table would cut off all values."""
    narrow = page_table([{"what": "macro-F1 of all", "ok": True}, {"what": "none"}]).value
    assert narrow == "| what | ok |\n| --- | --- |\n| macro-F1 of all | yes |\n| none |  |"
    for wide in (page_table(ROWS), page_table([{"file": "x" * 40}]), page_table([dict.fromkeys("abcdefg", "12345")])):
        assert len(wide.value) >= 1_000
    assert page_table(ROWS[:2], of=40).value.rstrip().endswith("| 2 of 40 rows |  |  |")


@pytest.mark.parametrize(
    "text", [*HOSTILE, "a | b", "`code | x`", "[x](javascript:alert(1))", "&lt;b&gt;", "**", "- x"]
)
def test_no_text_of_a_row_leaves_its_cell(text: str) -> None:
    """It is shown as it is, and its row has as many cells as the others."""
    table, line = page_table([{"text": text, "n": 1}]).value, page_list([f"kept, {shown(text)}: 1 row"]).value
    for row in table.rstrip().splitlines():
        assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert len(table.rstrip().splitlines()) == 3
    assert len(line.splitlines()) == 1
    for shown_text in (table, line):
        assert not re.search(r"(?<!\\)[\[<]", shown_text)
        assert not any(ord(char) < 32 and char != "\n" for char in shown_text)


def test_a_list_of_many_lines_says_how_many_more() -> None:
    """As tables do."""
    lines = page_list(f"**{number}** rows" for number in range(30)).value.splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("- **0** rows", "- and 10 more", 21)


def test_long_paths_and_names_are_shown_as_far_as_there_is_room() -> None:
    """A path below the root, or its name; of another name the end."""
    assert place("/root/artifacts/evaluation/po_eval_report.html").value == "evaluation/po_eval_report.html"
    assert place("/root/artifacts/distillation/po_teacher_normalized.jsonl").value == "po_teacher_normalized.jsonl"
    assert place("s3://bucket/x").value == "s3://bucket/x"
    assert short("/home/anna/models/" + "long/" * 20 + "tiny").endswith("/tiny")
    assert len(short("x" * 500)) == 36


def test_a_text_that_holds_fences_stays_in_its_block() -> None:
    """A landed prompt on the page of `training_is_sane`, or a team's prompt in a card."""
    block = fenced("~~~~\n![i](http://x)\n~~~~~~\n\x1b[31m")
    first, *inside, last = block.splitlines()
    assert first == last == "~~~~~~~"
    assert inside == ["~~~~", "![i](http://x)", "~~~~~~", "\\x1b[31m"]
