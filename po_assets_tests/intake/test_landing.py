"""The landing folder and its snapshot."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from po_assets.automation.landing import listing
from po_assets.errors import UserError
from po_assets.intake import landing
from po_assets.intake.landing import Source, list_landing, skipped_record, snapshot, snapshot_lines
from po_assets.storage import Layout, artifact_root
from po_assets_tests.intake.landed_rows import land
from po_assets_tests.storage.s3_server import s3_server


def taken(layout: Layout) -> list[Source]:
    """Snapshot the landing folder and publish it."""
    staged, sources = snapshot(list_landing(layout.incoming).files, layout.raw)
    staged.publish()
    return sources


def test_lines_are_copied_verbatim_in_name_order(tmp_path: Path) -> None:
    """Nothing is changed but a missing newline at a file's end, which would glue two rows together."""
    layout = land(tmp_path, b=b"\xef\xbb\xbf{2}\r\n\n\xff\x00", a=b"{1}\n")
    sources = taken(layout)
    assert layout.raw.read_bytes() == b"{1}\n\xef\xbb\xbf{2}\r\n\n\xff\x00\n"
    assert [(source.file, source.rows) for source in sources] == [("a.jsonl", 1), ("b.jsonl", 3)]
    assert sources[0].sha256 == hashlib.sha256(b"{1}\n").hexdigest()


def test_the_ending_is_taken_in_any_case_and_as_the_sensor_takes_it(tmp_path: Path) -> None:
    """Programs on Windows write .JSONL; what the sensor does not see must not land, nor the other way round."""
    layout = land(tmp_path, a=b"x\n")
    for name in ("B.JSONL", "c.Jsonl", ".d.JSONL", "e.json"):
        (tmp_path / "incoming" / name).write_bytes(b"y\n")
    assert [file.name for file in list_landing(layout.incoming).files] == ["B.JSONL", "a.jsonl", "c.Jsonl"]
    assert list(listing(layout.incoming)) == ["B.JSONL", "a.jsonl", "c.Jsonl"]


def odd_entries(incoming: Path) -> None:
    """Put something of every kind into a landing folder that is no file of rows, and one link to such a file."""
    (incoming / ".hidden.jsonl").write_bytes(b"y\n")
    (incoming / "second.json").write_bytes(b"z\n")
    (incoming / "third.jsonl.gz").write_bytes(b"z")
    (incoming / "old").mkdir()
    (incoming / "x.jsonl").mkdir()
    (incoming / "gone.jsonl").symlink_to(incoming / "nowhere")
    (incoming / "linked.jsonl").symlink_to(incoming / "a.jsonl")
    (incoming / "locked.jsonl").write_bytes(b"z\n")
    os.mkfifo(incoming / "pipe.jsonl")
    Path(os.fsdecode(os.fsencode(incoming) + b"/caf\xe9.jsonl")).write_bytes(b"z\n")


def lock(patch: pytest.MonkeyPatch) -> None:
    """Let no file with "locked" in its name be read, whoever runs the tests (permissions do not stop root)."""
    may = os.access
    patch.setattr(landing.os, "access", lambda path, mode: "locked" not in str(path) and may(path, mode))


def test_of_many_entries_that_are_not_taken_in_twenty_are_named(tmp_path: Path) -> None:
    """And all are counted."""
    layout = land(tmp_path, a=b"x\n")
    for number in range(30):
        (tmp_path / "incoming" / f"{number:02}.txt").touch()
    record = skipped_record(list_landing(layout.incoming))
    assert (record["count"], len(record["first"]), record["first"][-1]["file"]) == (30, 20, "19.txt")


def test_a_folder_of_nothing_but_other_files_says_which(tmp_path: Path) -> None:
    """The rows are there, under another name."""
    layout = land(tmp_path)
    (tmp_path / "incoming" / "rows.json").write_bytes(b"{}\n")
    with pytest.raises(UserError) as raised:
        list_landing(layout.incoming)
    assert str(raised.value).endswith(
        "holds no *.jsonl file. Put teacher rows into it. It holds 1 other name: 'rows.json' does not end in .jsonl; if it "
        "holds teacher rows, unpack it or rename it."
    )


def test_a_file_that_cannot_be_read_after_all_is_named(tmp_path: Path) -> None:
    """Here it vanished after the folder was listed; what was copied before is not left behind."""
    layout = land(tmp_path, a=b"x\n", b=b"y\n")
    files = list_landing(layout.incoming).files
    (tmp_path / "incoming" / "b.jsonl").unlink()
    with pytest.raises(UserError) as raised:
        snapshot(files, layout.raw)
    assert str(raised.value) == (
        "The landed file 'b.jsonl' cannot be read: No such file or directory. Make it readable or take it out of the "
        "landing folder, and materialize raw_teacher again."
    )
    assert not list(layout.raw.parent.iterdir())


def test_an_object_store_is_listed_alike() -> None:
    """Sub-folders, other endings and the folder's own marker object."""
    with s3_server() as bucket:
        incoming = artifact_root(f"{bucket}/team/po") / "incoming"
        with pytest.raises(UserError, match="does not exist"):
            list_landing(incoming)
        for name in ("a.jsonl", "B.JSONL", "c.json", "old/d.jsonl"):
            (incoming / name).write_bytes(b"x\n")
        incoming.fs.call_s3("put_object", Bucket=bucket.removeprefix("s3://"), Key="team/po/incoming/")
        folder = list_landing(incoming)
        assert [file.read_bytes() for file in folder.files] == [b"x\n", b"x\n"]
        assert list(folder.taken) == ["B.JSONL", "a.jsonl"]
        assert {name: reason.split(";")[0] for name, reason in folder.skipped.items()} == {
            "c.json": "does not end in .jsonl",
            "old": "is a folder",
        }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "does not exist. Create it and put teacher rows into it as *.jsonl, or point PO_ARTIFACTS_ROOT"),
        ({}, "holds no *.jsonl file. Put teacher rows into it."),
        ({"a": b"", "b": b""}, "holds 2 *.jsonl files and all are empty."),
    ],
)
def test_nothing_to_take_in_is_one_clear_error_and_damages_nothing(
    tmp_path: Path, files: dict[str, bytes] | None, message: str
) -> None:
    """The folder is quoted, the way out is named, an older snapshot stays."""
    layout = Layout(UPath(tmp_path)) if files is None else land(tmp_path, **files)
    layout.raw.parent.mkdir(parents=True)
    layout.raw.write_bytes(b"older\n")
    with pytest.raises(UserError) as raised:
        snapshot(list_landing(layout.incoming).files, layout.raw)
    assert message in str(raised.value)
    assert repr(str(layout.incoming)) in str(raised.value)
    assert [path.name for path in layout.raw.parent.iterdir()] == [layout.raw.name]
    assert layout.raw.read_bytes() == b"older\n"


def test_a_huge_line_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its beginning and its length are enough to reject it; the next line is found."""
    monkeypatch.setattr(landing, "MAX_LINE_BYTES", 10)
    layout = land(tmp_path, a=b"x" * 100 + b"\nshort\n" + b"y" * 10 + b"\n" + b"z" * 50)
    lines = list(snapshot_lines(layout.raw, taken(layout)))
    assert [(line.data, line.length) for line in lines] == [
        (b"x" * 10, 100),
        (b"short", 5),
        (b"y" * 10, 10),
        (b"z" * 10, 50),
    ]


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=4))
def test_every_line_of_every_file_is_in_the_snapshot(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]
) -> None:
    """Whatever the bytes: as many lines as the files have, with their content."""
    names = "abcd"
    layout = land(tmp_path_factory.mktemp("any"), **dict(zip(names, contents, strict=False)))
    expected = [
        (f"{name}.jsonl", number, line)
        for name, content in zip(names, contents, strict=False)
        for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else [], start=1)
    ]
    if not expected:
        with pytest.raises(UserError):
            taken(layout)
        return
    lines = snapshot_lines(layout.raw, taken(layout))
    assert [(line.file, line.number, line.data) for line in lines] == expected
