"""Publication in one step, on disk and in object stores (fsspec's in-memory one, and an S3 server)."""

import uuid
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from upath import UPath

from po_assets.storage import (
    artifact_root,
    atomic_directory,
    atomic_file,
    directory_digest,
    file_digest,
    files,
    published_directory,
    remove_stale_staging,
    staging_path,
)


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    name = uuid.uuid4().hex
    match request.param:
        case "local":
            return UPath(tmp_path)
        case "memory":
            return UPath(f"memory://{name}")
        case _:
            return artifact_root(f"{request.getfixturevalue('bucket')}/{name}")


def test_a_file_is_replaced_as_a_whole(folder: UPath) -> None:
    """Nothing is left beside it."""
    for text in (b"old", b"new"):
        with atomic_file(folder / "a.txt") as file:
            file.write(text)
    assert (folder / "a.txt").read_bytes() == b"new"
    assert [path.name for path in folder.iterdir()] == ["a.txt"]


def test_a_failed_write_leaves_the_old_file(folder: UPath) -> None:
    """The half that was written vanishes."""
    with atomic_file(folder / "a.txt") as file:
        file.write(b"old")
    with pytest.raises(OSError, match="disk full"), atomic_file(folder / "a.txt") as file:
        file.write(b"ha")
        raise OSError("disk full")
    assert (folder / "a.txt").read_bytes() == b"old"
    assert [path.name for path in folder.iterdir()] == ["a.txt"]


def test_a_directory_is_replaced_as_a_whole(folder: UPath) -> None:
    """Files that the new folder does not have are gone."""
    for name in ("one", "two"):
        with atomic_directory(folder / "model") as staging:
            (staging / "sub").mkdir()
            (staging / "sub" / name).write_text(name)
    assert sorted(path.name for path in (published_directory(folder / "model") / "sub").iterdir()) == ["two"]
    assert [path.name for path in folder.iterdir()] == ["model"]


def test_a_clock_set_back_takes_no_version_from_its_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an object store, whose versions are named by their time: the current one and the one before stay."""
    model = UPath("memory://clock/model")
    for year in (2030, 2031, 2032, 2025, 2024):  # set back after the third
        monkeypatch.setattr(
            files, "datetime", SimpleNamespace(now=lambda zone, year=year: datetime(year, 1, 1, tzinfo=zone))
        )
        before = published_directory(model)
        with atomic_directory(model) as staging:
            (staging / "weights").write_text(str(year))
        assert (published_directory(model) / "weights").read_text() == str(year)
        assert year == 2030 or (before / "weights").exists()
    assert sum(path.is_dir() for path in model.iterdir()) == 3


def test_a_failed_directory_leaves_the_old_one(folder: UPath) -> None:
    """An exception while it is filled changes nothing."""
    with atomic_directory(folder / "model") as staging:
        (staging / "weights").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(folder / "model") as staging:
        (staging / "weights").write_text("half")
        raise RuntimeError
    assert (published_directory(folder / "model") / "weights").read_text() == "old"
    assert [path.name for path in folder.iterdir()] == ["model"]


def test_what_a_killed_writer_left_is_removed_once_it_is_old(folder: UPath) -> None:
    """A fresh one may belong to a writer that lives."""
    left = staging_path(folder / "a.txt")
    left.write_bytes(b"half")
    (folder / "b.txt").write_bytes(b"whole")
    assert remove_stale_staging(folder) == []
    assert remove_stale_staging(folder, timedelta(0)) == [left]
    assert [path.name for path in folder.iterdir()] == ["b.txt"]
    assert remove_stale_staging(folder / "none") == []


def test_a_half_written_folder_is_removed_but_not_a_retired_one(tmp_path: Path) -> None:
    """A retired folder may be the only whole copy."""
    for name in (".staging-model-1a2b", ".staging-retired-model-1a2b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").touch()
    remove_stale_staging(UPath(tmp_path), timedelta(0))
    assert [path.name for path in tmp_path.iterdir()] == [".staging-retired-model-1a2b"]


def test_digests_see_content_and_names_only(tmp_path: Path) -> None:
    """The same files elsewhere have the same digest; another byte or name has another."""
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(content)
    digests = [directory_digest(tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
    (tmp_path / "b" / "file").rename(tmp_path / "b" / "other")
    assert directory_digest(tmp_path / "b") != digests[0]
    assert file_digest(tmp_path / "a" / "file") == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


def test_a_file_url_is_a_folder_of_this_machine(tmp_path: Path) -> None:
    """As pandas and Spark write it; everything that works on a folder works there."""
    assert artifact_root(f"file://{tmp_path}") == UPath(tmp_path)
    with atomic_file(artifact_root(f"file://{tmp_path}") / "a.txt") as file:
        file.write(b"new")
    assert (tmp_path / "a.txt").read_bytes() == b"new"
