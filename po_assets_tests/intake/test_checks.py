"""The checks of raw_teacher and normalized_teacher: passing on good data, and what they say on bad data.

The graph is run where it is promised that it stops or goes on; what a check says is asked of the check.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import orjson
import pytest
from upath import UPath

from po_assets.errors import UserError
from po_assets.intake.assets import IntakeSettings, normalized_teacher, raw_teacher
from po_assets.intake.checks import teacher_checks
from po_assets.product_owner import score_product_owner
from po_assets.storage import Layout, read_manifest, read_rows
from po_assets_tests.intake.landed_rows import judged, land, materialize, take_in, teacher_row
from po_assets_tests.intake.test_landing import lock, odd_entries
from po_assets_tests.product_owner.documents_text import REQUIREMENTS, REVIEW, VISION

METRIC = score_product_owner(REQUIREMENTS, VISION, REVIEW).total
GOOD = teacher_row(score=METRIC)


def run(layout: Layout, selection: Any = None, **policy: Any) -> dg.ExecuteInProcessResult:
    """Materialize both assets with their checks, or only what is selected."""
    made = [raw_teacher, normalized_teacher, *teacher_checks]
    return materialize(layout, made, selection, {"selection": IntakeSettings(**policy)})


def evaluations(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    """Evaluations by check name."""
    return {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}


def table(evaluation: dg.AssetCheckEvaluation) -> list[Mapping[str, Any]]:
    """The offending rows that a check shows."""
    value = evaluation.metadata["rows"]
    assert isinstance(value, dg.TableMetadataValue)
    return [record.data for record in value.records]


def failure_message(result: dg.ExecuteInProcessResult, step: str) -> str:
    """What a failed step says."""
    (event,) = (event for event in result.get_step_failure_events() if event.step_key == step)
    return event.step_failure_data.error.message


def taken_in(root: Path, **files: Any) -> Layout:
    """The tables made of these files, as the graph makes them."""
    layout = land(root, **files)
    take_in(layout)
    return layout


def lines_of(path: UPath) -> list[bytes]:
    """The lines of a file, with their ends."""
    return path.read_bytes().splitlines(keepends=True)


def test_good_rows_pass_every_check(tmp_path: Path) -> None:
    """And the sentences give the numbers."""
    result = run(land(tmp_path, a=[GOOD, GOOD], b=[GOOD]))
    assert result.success
    assert {name: (found.passed, found.description) for name, found in evaluations(result).items()} == {
        "has_records": (True, "There are 3 records in 2 landed files."),
        "schema": (True, "3 of 3 rows have the 20 columns with sound values."),
        "ledger_balances": (True, "3 landed lines = 3 kept."),
        "rejected_share": (True, "None of 3 landed rows was rejected."),
        "declared_scores_match_metric": (True, "3 of 3 declared scores agree with the metric to within 0.005."),
    }


def test_the_assets_say_what_came_out(tmp_path: Path) -> None:
    """Row counts, landed files, outcomes with an example, and pictures."""
    result = run(land(tmp_path, a=[GOOD, {"a": 1}], b=[{"b": 1}]), max_rejected_share=1)
    (raw,) = result.asset_materializations_for_node("raw_teacher")
    (normalized,) = result.asset_materializations_for_node("normalized_teacher")
    assert raw.metadata["dagster/row_count"].value == 3
    assert normalized.metadata["dagster/row_count"].value == 1
    assert normalized.metadata["rejected"].value == 2
    assert str(normalized.metadata["outcomes"].value).splitlines() == [
        "- **rejected**, unknown format: 2 rows (66.7%)",
        "- **kept**: 1 row (33.3%)",
    ]
    examples = str(normalized.metadata["examples"].value)
    assert "| a.jsonl:2 the row has a; known formats are teacher" in examples
    assert "batch (see docs/formats.md) | b.jsonl:1 |" in examples
    for picture in ("formats", "statuses", "tiers", "scores"):
        assert "data:image/png;base64," in str(normalized.metadata[picture].value)


def test_manifests_tie_the_tables_together_and_the_same_again_has_the_same_versions(tmp_path: Path) -> None:
    """Each names the digest of what it was made from; everything downstream stays fresh."""
    layout = land(tmp_path, a=[GOOD])
    versions = [
        {
            event.asset_key: event.step_materialization_data.materialization.tags["dagster/data_version"]
            for event in run(layout).get_asset_materialization_events()
        }
        for _ in range(2)
    ]
    assert versions[0] == versions[1]
    assert len(versions[0]) == 2
    raw, normalized, ledger = (read_manifest(path) for path in (layout.raw, layout.normalized, layout.ledger))
    assert normalized.inputs == {"raw_teacher": raw.sha256}
    assert ledger.inputs == {"raw_teacher": raw.sha256, "normalized_teacher": normalized.sha256}
    assert raw.extra["sources"][0]["rows"] == 1


def test_has_records_fails_when_every_line_is_blank(tmp_path: Path) -> None:
    """And stops the graph."""
    result = run(land(tmp_path, a=b"\n\n", b=b"  \r\n"))
    found = evaluations(result)["has_records"]
    assert not found.passed
    assert "There is no teacher row: 2 landed files hold nothing but 3 blank lines." in found.description
    assert "Put teacher rows into the landing folder" in found.description
    assert [(row["file"], row["lines"]) for row in table(found)] == [("a.jsonl", 2), ("b.jsonl", 1)]
    assert not result.asset_materializations_for_node("normalized_teacher")


def test_has_records_names_files_without_records(tmp_path: Path) -> None:
    """A file of blank lines beside a good one is worth a word."""
    found = judged(taken_in(tmp_path, a=[GOOD], b=b"\n"), "has_records")
    assert found.passed
    assert found.description == "There is 1 record in 2 landed files. 1 of the files holds none."
    assert table(found)[0]["file"] == "b.jsonl"


def test_has_records_warns_of_what_was_not_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that are there go on; the others are named with the reason, but for hidden ones, still being written."""
    layout = land(tmp_path, a=[GOOD])
    odd_entries(tmp_path / "incoming")
    lock(monkeypatch)
    result = run(layout)
    assert result.success
    found = evaluations(result)["has_records"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert (
        "There are 2 records in 2 landed files. 8 other names in the landing folder were not taken in: "
        "'caf\\\\xe9.jsonl', 'gone.jsonl', 'locked.jsonl', 'old', 'pipe.jsonl', 'second.json', 'third.jsonl.gz', "
        "'x.jsonl'." in found.description
    )
    assert "readable and named \\*.jsonl; move the rest elsewhere" in found.description
    shown = {row["file"]: row["reason"] for row in table(found)}
    ending = "does not end in .jsonl; if it holds teacher rows, unpack it or rename it"
    folder = "is a folder; put its *.jsonl files directly into the landing folder"
    assert shown == {
        "caf\\xe9.jsonl": "has a name that is not UTF-8; rename it",
        "gone.jsonl": "is a link to nothing; put the file itself there, or remove it",
        "locked.jsonl": "may not be read by this user; change its permissions (chmod a+r)",
        "old": folder,
        "pipe.jsonl": "is not a regular file; put the file itself there, or remove it",
        "second.json": ending,
        "third.jsonl.gz": ending,
        "x.jsonl": folder,
    }
    (raw,) = result.asset_materializations_for_node("raw_teacher")
    assert raw.metadata["skipped"].value == 8
    listed = str(raw.metadata["skipped_files"].value)
    assert all(f"| {name} | " in listed.replace("\\", "") for name in (one.replace("\\", "") for one in shown))


def test_has_records_fails_on_a_snapshot_that_was_changed(tmp_path: Path) -> None:
    """The manifest says how many lines there were."""
    layout = taken_in(tmp_path, a=[GOOD, GOOD])
    line = lines_of(layout.raw)[0]
    for content, said in ((line, "ends before line 2 of a.jsonl"), (line * 3, "has more lines than its manifest says")):
        layout.raw.write_bytes(content)
        found = judged(layout, "has_records")
        assert (found.passed, said in found.description) == (False, True), found.description


def test_rejected_share_fails_above_the_limit_and_stops_the_graph(tmp_path: Path) -> None:
    """It counts the reasons, shows rows with their lines, and says where to correct them."""
    result = run(land(tmp_path, a=[GOOD] * 8 + [{"a": 1}], b=b"{\n"))
    found = evaluations(result)["rejected_share"]
    assert not found.passed
    assert found.severity == dg.AssetCheckSeverity.ERROR
    assert "2 of 10 landed rows (20.0%) were rejected, at most 5.0% may be" in found.description
    assert "1 unknown format, 1 not JSON" in found.description
    assert "po_teacher_rejected.jsonl" in found.description
    assert [(row["file"], row["line"], row["reason"]) for row in table(found)] == [
        ("a.jsonl", 9, "unknown format"),
        ("b.jsonl", 1, "not JSON"),
    ]
    lines = Path(str(found.metadata["rejected_file"].value)).read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["unknown format", "not JSON"]
    assert not result.success


def test_rejected_share_says_how_many_more_there_are(tmp_path: Path) -> None:
    """The table has a few of each reason; the row of an unknown format names every known one."""
    found = judged(taken_in(tmp_path, a=[GOOD, *[{"a": 1}] * 40]), "rejected_share")
    assert "The table shows 3 of 40 rows." in found.description
    assert str(table(found)[0]["detail"]).endswith("alpaca, batch (see docs/formats.md)")


def test_a_difference_within_the_tolerance_is_none(tmp_path: Path) -> None:
    """The tolerance is a setting."""
    layout = taken_in(tmp_path, a=[teacher_row(score=METRIC - 0.02)])
    assert not judged(layout, "declared_scores_match_metric").passed
    assert judged(layout, "declared_scores_match_metric", score_tolerance=0.03).passed


def test_ledger_balances_fails_when_a_landed_line_has_no_row(tmp_path: Path) -> None:
    """The lines of the files are counted. Every row after a gap stands wrongly; 20 are shown, and two counts differ."""
    layout = taken_in(tmp_path, a=[GOOD] * 50)
    first, _, *others = lines_of(layout.ledger)
    layout.ledger.write_bytes(b"".join([first, *others]))
    found = judged(layout, "ledger_balances")
    assert not found.passed
    assert "50 lines landed, the ledger says 49 kept; 51 disagreements found." in found.description
    assert "The table shows 20 of 51 rows." in found.description
    assert table(found)[0]["fault"] == "the ledger's row 2 should be a.jsonl, line 2"


def test_schema_names_each_fault_of_each_row(tmp_path: Path) -> None:
    """A row that was changed by hand, or that a format converts wrongly."""
    layout = taken_in(tmp_path, a=[GOOD, GOOD, GOOD])
    rows = list(read_rows(layout.normalized))
    rows[0] |= {"status": "fine", "score": 2, "valid": "yes"}
    del rows[1]["concept"]
    layout.normalized.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    found = judged(layout, "schema")
    assert not found.passed
    assert "2 of 3 normalized rows break the schema." in found.description
    faults = {row["line"]: row["fault"] for row in table(found)}
    assert "unknown status 'fine'; score is 2; score is not the declared score" in faults[1]
    assert faults[2] == "no column concept"


def test_schema_fails_on_rows_out_of_landing_order(tmp_path: Path) -> None:
    """The ledger is matched to the table by order."""
    layout = taken_in(tmp_path, a=[GOOD, GOOD])
    first, second = lines_of(layout.normalized)
    layout.normalized.write_bytes(second + first)
    found = judged(layout, "schema")
    assert "it stands twice or out of landing order" in str(table(found)[0]["fault"])


def test_schema_fails_when_every_row_was_rejected(tmp_path: Path) -> None:
    """A table without rows is no success."""
    found = judged(taken_in(tmp_path, a=b"{\n"), "schema")
    assert not found.passed
    assert "There is no normalized row: every landed line was rejected." in found.description


def test_a_run_without_the_snapshot_says_what_to_do(tmp_path: Path) -> None:
    """normalized_teacher alone, on a fresh root."""
    result = run(land(tmp_path, a=[GOOD]), selection=[normalized_teacher])
    assert "Materialize raw_teacher again." in failure_message(result, "normalized_teacher")


def test_the_aliases_of_statuses_are_a_setting(tmp_path: Path) -> None:
    """By default the agent's word is read; without it, it is refused; another data version says that it changed."""
    layout = land(tmp_path, a=[teacher_row({"review": REVIEW.replace("needs_adjustment", "misaligned")})])
    assert run(layout).asset_materializations_for_node("normalized_teacher")[0].metadata["rejected"].value == 0
    before = read_manifest(layout.normalized)
    result = run(layout, status_aliases={"off": "aligned"}, max_rejected_share=1)
    assert result.asset_materializations_for_node("normalized_teacher")[0].metadata["rejected"].value == 1
    after = read_manifest(layout.normalized)
    assert before.config != after.config
    with pytest.raises(UserError, match="'fine' must be one of aligned, needs_adjustment, conflicts"):
        IntakeSettings(status_aliases={"ok": "fine"})
