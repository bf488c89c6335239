"""What holds on an S3 server: crashes leave readers the old artifact, whole."""

import signal
import subprocess
import sys
import uuid

import pytest
from upath import UPath

from po_assets.dag import read_frame
from po_assets.storage import (
    Manifest,
    artifact_root,
    atomic_directory,
    atomic_file,
    local_copy,
    open_buffered,
    published_directory,
    read_manifest,
    stage_lines,
    write_manifest,
)


@pytest.fixture
def root(bucket: str) -> UPath:
    return artifact_root(f"{bucket}/{uuid.uuid4().hex}")


def publish(folder: UPath, text: str) -> None:
    with atomic_directory(folder) as staging:
        (staging / "weights").write_text(text)
        (staging / "settings").write_text(text)
        write_manifest(staging, Manifest(sha256=text))


KILLED = """
import os, signal, sys
from po_assets.storage import atomic_directory, stage_lines
from po_assets.storage import artifact_root
root, method, calls = artifact_root(sys.argv[1]), sys.argv[2], int(sys.argv[3])
original = getattr(root.fs, method)
def dying(*args, **options):
    global calls
    calls -= 1
    if calls == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **options)
setattr(root.fs, method, dying)
stage_lines(root / "table.jsonl", [b'{"n": 2}', b'{"n": 3}']).publish()
with atomic_directory(root / "model") as staging:
    for name in ("settings", "weights"):
        (staging / name).write_text("new")
"""


@pytest.mark.parametrize(
    ("method", "calls", "rows"),
    [("cp_file", 1, 1), ("put_file", 1, 2), ("put_file", 2, 2), ("pipe_file", 1, 2)],
    ids=["before the table", "before the folder", "amid the folder", "before the pointer"],
)
def test_killed_while_publishing_the_old_artifact_stays(root: UPath, method: str, calls: int, rows: int) -> None:
    """SIGKILL between writing and publishing: the table whole as before, or whole as after; the folder as before."""
    stage_lines(root / "table.jsonl", [b'{"n": 1}']).publish()
    publish(root / "model", "old")
    command = [sys.executable, "-c", KILLED, str(root), method, str(calls)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(read_frame(root / "table.jsonl")) == rows
    with local_copy(root / "model") as copy:
        assert {path.name: path.read_text() for path in copy.iterdir() if path.name != "manifest.json"} == {
            "settings": "old",
            "weights": "old",
        }
    publish(root / "model", "next")
    assert read_manifest(root / "model") == Manifest(sha256="next")


def test_a_reader_in_the_middle_stays_with_its_version(root: UPath) -> None:
    """Files read through one look at the pointer belong together, whatever is published meanwhile."""
    publish(root / "model", "first")
    folder = published_directory(root / "model")
    assert (folder / "weights").read_text() == "first"
    publish(root / "model", "second")
    assert (folder / "settings").read_text() == "first"
    assert (published_directory(root / "model") / "settings").read_text() == "second"


def test_old_versions_are_removed(root: UPath) -> None:
    """Three stay: the current one, and those that a reader may be in the middle of."""
    for number in range(5):
        publish(root / "model", str(number))
    versions = sorted(path for path in (root / "model").iterdir() if path.is_dir())
    assert [(path / "weights").read_text() for path in versions] == ["2", "3", "4"]


def test_a_folder_that_was_copied_there_is_read_as_it_is(root: UPath) -> None:
    """`aws s3 sync` of an artifact root on disk knows no pointers."""
    (root / "model" / "weights").write_bytes(b"x")
    write_manifest(root / "model", Manifest(sha256="x"))
    assert published_directory(root / "model") == root / "model"
    assert read_manifest(root / "model") == Manifest(sha256="x")
    with local_copy(root / "model") as copy:
        assert (copy / "weights").read_bytes() == b"x"


def test_what_others_write_is_seen(root: UPath) -> None:
    """Listings are not kept; a sensor that lives for weeks must see what lands."""
    (root / "incoming" / "a.jsonl").write_bytes(b"{}")
    assert [path.name for path in (root / "incoming").iterdir()] == ["a.jsonl"]
    code = "import sys; from upath import UPath; UPath(sys.argv[1]).write_bytes(b'{}')"
    subprocess.run([sys.executable, "-c", code, str(root / "incoming" / "b.jsonl")], check=True)
    assert [path.name for path in (root / "incoming").iterdir()] == ["a.jsonl", "b.jsonl"]


def test_files_are_read_line_by_line_with_a_limit(root: UPath) -> None:
    """As on disk; fsspec's own files know no limit."""
    with atomic_file(root / "f") as file:
        file.write(b"one\n" + b"x" * 3_000_000 + b"\nend")
    with open_buffered(root / "f") as file:
        assert (file.readline(), len(file.readline(10)), len(file.readline())) == (b"one\n", 10, 2_999_991)
        assert list(file) == [b"end"]


def test_a_misspelt_bucket_is_not_made(bucket: str) -> None:
    """Publishing into it fails."""
    with pytest.raises(FileNotFoundError), atomic_file(artifact_root("s3://no-such-bucket/x/f")) as file:
        file.write(b"x")
