"""The landing folder and its snapshot."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from po_assets.storage import Layout
from po_assets.teacher import landing
from po_assets.teacher.landing import LandingError, Source, landed_files, snapshot, snapshot_lines
from po_assets_tests.teacher.landed_rows import land


def taken(layout: Layout) -> list[Source]:
    """Snapshot the landing folder and publish it."""
    staged, sources = snapshot(landed_files(layout.incoming), layout.raw)
    staged.publish()
    return sources


def test_lines_are_copied_verbatim_in_name_order(tmp_path: Path) -> None:
    """Nothing is changed but a missing newline at a file's end, which would glue two rows together."""
    layout = land(tmp_path, b=b"\xef\xbb\xbf{2}\r\n\n\xff\x00", a=b"{1}\n")
    sources = taken(layout)
    assert layout.raw.read_bytes() == b"{1}\n\xef\xbb\xbf{2}\r\n\n\xff\x00\n"
    assert [(source.file, source.rows) for source in sources] == [("a.jsonl", 1), ("b.jsonl", 3)]
    assert sources[0].sha256 == hashlib.sha256(b"{1}\n").hexdigest()


def test_lines_are_found_again_under_file_and_number(tmp_path: Path) -> None:
    """The snapshot keeps where each line came from."""
    layout = land(tmp_path, a=b"x\ny", b=b"\nz\r\n")
    lines = list(snapshot_lines(layout.raw, taken(layout)))
    assert [(line.file, line.number, line.data) for line in lines] == [
        ("a.jsonl", 1, b"x"),
        ("a.jsonl", 2, b"y"),
        ("b.jsonl", 1, b""),
        ("b.jsonl", 2, b"z\r"),
    ]


def test_other_files_do_not_land(tmp_path: Path) -> None:
    """Hidden files are still being written, other endings are something else."""
    layout = land(tmp_path, a=b"x\n")
    (tmp_path / "incoming" / ".b.jsonl").write_bytes(b"y\n")
    (tmp_path / "incoming" / "c.json").write_bytes(b"z\n")
    (tmp_path / "incoming" / "old").mkdir()
    assert [file.name for file in landed_files(layout.incoming)] == ["a.jsonl"]


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
    with pytest.raises(LandingError) as raised:
        snapshot(landed_files(layout.incoming), layout.raw)
    assert message in str(raised.value)
    assert repr(str(layout.incoming)) in str(raised.value)
    assert [path.name for path in layout.raw.parent.iterdir()] == [layout.raw.name]
    assert layout.raw.read_bytes() == b"older\n"


def test_a_snapshot_that_is_not_its_manifests_is_noticed(tmp_path: Path) -> None:
    """Fewer or more lines than the manifest says."""
    layout = land(tmp_path, a=b"x\ny\n")
    (source,) = taken(layout)
    for rows in (1, 3):
        with pytest.raises(LandingError, match="Materialize raw_teacher again"):
            list(snapshot_lines(layout.raw, [Source(source.file, source.sha256, rows)]))


def test_a_huge_line_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its beginning and its length are enough to reject it; the next line is found."""
    monkeypatch.setattr(landing, "MAX_LINE_BYTES", 10)
    layout = land(tmp_path, a=b"x" * 100 + b"\nshort\n" + b"y" * 10 + b"\n" + b"z" * 50)
    lines = list(snapshot_lines(layout.raw, taken(layout)))
    assert [(line.data, line.length, line.is_whole) for line in lines] == [
        (b"x" * 10, 100, False),
        (b"short", 5, True),
        (b"y" * 10, 10, True),
        (b"z" * 10, 50, False),
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
        with pytest.raises(LandingError):
            taken(layout)
        return
    lines = snapshot_lines(layout.raw, taken(layout))
    assert [(line.file, line.number, line.data) for line in lines] == expected
