"""Rejected lines are corrected in an editor and landed again; what was wrong leaves the file that brought it."""

import json
from pathlib import Path

import pytest
import yaml

from po_assets.errors import UserError
from po_assets.review import rejected
from po_assets.review.rejected import edit_rejected, export_rejected, land_rejected
from po_assets.storage import Layout, read_rows
from po_assets_tests.review.scenes import land, take_in, teacher_rows

BROKEN = "status: [aligned"
GOOD, OTHER, THIRD = [row for row in teacher_rows(9) if "teacher_product_owner_review" in row][:3]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Five landed lines: good, broken YAML, not JSON, good, not UTF-8; and a blank one."""
    broken = OTHER | {"teacher_product_owner_review": BROKEN}
    lines = [json.dumps(GOOD), json.dumps(broken), json.dumps(THIRD)[:-1] + ",}", json.dumps(THIRD | {"tier": "x"}), ""]
    layout = land(tmp_path)
    (layout.incoming / "mixed.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    return take_in(layout)


def edit(layout: Layout, reason: str, **parts: object) -> None:
    path = rejected.rejected_file(layout)
    entries = yaml.safe_load(path.read_text())
    for entry in entries:
        if reason in entry["reason"]:
            entry.update(parts)
    path.write_text(yaml.safe_dump(entries, sort_keys=False))


def test_rejected_lines_stand_in_a_file_with_place_and_reason(layout: Layout) -> None:
    """JSON as YAML without escapes, other lines as text; what nobody can edit is not there."""
    path = export_rejected(layout)
    entries = yaml.safe_load(path.read_text())
    assert [entry["from"] for entry in entries] == ["mixed.jsonl:2", "mixed.jsonl:3"]
    assert entries[0]["reason"].startswith("YAML does not parse: ")
    assert entries[0]["row"]["teacher_product_owner_review"] == BROKEN
    assert "\n    requirements_yaml: |-\n      title: " in path.read_text()
    assert entries[1]["text"].endswith(",}")
    assert "po-assets rejected land" in path.read_text().split("- from")[0]
    assert export_rejected(layout) == path  # untouched: written anew


def test_corrected_lines_land_and_leave_their_file(layout: Layout) -> None:
    """The next normalization rejects only what was left; the old lines are kept in the review file."""
    path, told = export_rejected(layout), list[str]()
    edit(layout, "YAML", row=OTHER)
    assert land_rejected(layout, told.append) == 0
    (landed,) = layout.incoming.glob("corrected-*.jsonl")
    assert told == [
        f"1 corrected line landed in incoming/{landed.name}, and left the files that brought them.",
        "1 line was left unchanged and stays rejected.",
    ]
    assert json.loads(landed.read_text()) == OTHER
    take_in(layout)
    assert [row["reason"] for row in read_rows(layout.rejected)] == ["not JSON", "blank line", "not UTF-8"]
    assert len(list(read_rows(layout.normalized))) == 3
    assert not path.exists()
    assert BROKEN.encode() not in (layout.incoming / "mixed.jsonl").read_bytes()

    export_rejected(layout)
    edit(layout, "not JSON", text=json.dumps(THIRD))
    land_rejected(layout, told.append)
    assert [row["reason"] for row in read_rows(take_in(layout).rejected)] == ["blank line", "not UTF-8"]
    assert len(list(read_rows(layout.normalized))) == 4
    with pytest.raises(UserError, match=r"2 lines are rejected, none of them readable as text"):
        export_rejected(layout)
    assert len(list(layout.review_file.parent.glob("po_rejected_rows.landed-*.yaml"))) == 2


def test_a_line_that_would_be_rejected_again_is_a_fault_and_nothing_lands(layout: Layout) -> None:
    """With all other faults; the landed files stay to the byte."""
    path = export_rejected(layout)
    before = (layout.incoming / "mixed.jsonl").read_bytes()
    edit(layout, "not JSON", text="still no JSON")
    edit(layout, "YAML", row=OTHER | {"teacher_product_vision": "- a list"})
    entries = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump([*entries, entries[0] | {"from": "other.jsonl:1"}], sort_keys=False))
    with pytest.raises(UserError) as error:
        land_rejected(layout, lambda _: None)
    said = str(error.value)
    assert said.startswith(f"3 faults in {str(path)!r}, nothing was landed:")
    assert "mixed.jsonl:2 would be rejected again" in said
    assert "mixed.jsonl:3 would be rejected again (not JSON)" in said
    assert "entry 3 (other.jsonl:1) is not a rejected line of the last normalization." in said
    assert (layout.incoming / "mixed.jsonl").read_bytes() == before
    assert not list(layout.incoming.glob("corrected-*"))


def test_edits_are_not_overwritten(layout: Layout) -> None:
    """Nor notes, at either end; until they are taken, or the file is deleted. What nobody touched is written anew."""
    path = export_rejected(layout)
    written = export_rejected(layout).read_text()
    for edited in (written.replace("not JSON", "JSON"), f"{written}# to do\n", f"# to do\n{written}"):
        path.write_text(edited)
        with pytest.raises(UserError, match="was edited and its corrections were not taken yet"):
            export_rejected(layout)
        assert path.read_text() == edited
    path.unlink()
    export_rejected(layout)


def test_a_linked_file_is_corrected_where_it_lies(layout: Layout) -> None:
    """As a project's rows are; no line is corrected twice."""
    link = Path(str(layout.incoming / "mixed.jsonl"))
    own = link.rename(Path(str(layout.root)) / "ours.jsonl")
    link.symlink_to(own)
    before = own.read_bytes().splitlines()
    path = export_rejected(take_in(layout))
    edit(layout, "YAML", row=OTHER)
    written = path.read_text()
    path.write_text(yaml.safe_dump(yaml.safe_load(written) * 2, sort_keys=False))
    with pytest.raises(UserError, match=r"\(mixed.jsonl:2\) is a second one of that line; keep one"):
        land_rejected(layout, lambda _: None)
    path.write_text(written)
    land_rejected(layout, lambda _: None)
    assert link.is_symlink()
    assert own.read_bytes().splitlines() == [before[0], *before[2:]]


def test_a_file_that_changed_since_is_left_alone_and_named(layout: Layout) -> None:
    """Someone deleted the line already: the correction lands, and that nothing was taken out is said."""
    export_rejected(layout)
    edit(layout, "not JSON", text=json.dumps(THIRD))
    file = layout.incoming / "mixed.jsonl"
    rest = b"".join(file.read_bytes().splitlines(keepends=True)[:2])
    file.write_bytes(rest)
    told: list[str] = []
    land_rejected(layout, told.append)
    assert told[1] == "mixed.jsonl has changed since: 1 line to take out of it not found."
    assert file.read_bytes() == rest


def test_the_command_says_what_comes_next(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal no editor opens; before the first normalization the asset is named."""
    monkeypatch.setenv("EDITOR", "false")
    told: list[str] = []
    assert edit_rejected(layout, told.append) == 0
    assert told[0].endswith(f"Correct them, then run: po-assets rejected land --data {layout.root}")
    layout.rejected.unlink()
    with pytest.raises(UserError, match="Materialize normalized_teacher first"):
        edit_rejected(layout, told.append)
