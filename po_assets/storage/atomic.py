"""Publication in one step: a reader sees the old artifact or the new one, never half of one.

On a file system: write beside, fsync, rename, fsync the folder. In an object store an upload becomes visible as a whole
when it completes, which gives single files the same promise; a folder there is complete when its manifest, uploaded
last, is.
"""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from upath import UPath

_STAGING = ".staging-"


@contextlib.contextmanager
def atomic_file(path: UPath | Path) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` when the block ends well, and vanishes when it raises."""
    staging = staging_path(path)
    try:
        with staging.open("wb") as file:
            yield file
            file.flush()
            if is_local(path):
                os.fsync(file.fileno())
        publish_file(staging, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            staging.unlink()


@contextlib.contextmanager
def atomic_directory(path: UPath | Path) -> Iterator[Path]:
    """A local folder to fill; it replaces the folder `path` when the block ends well and vanishes when it raises."""
    if is_local(path):
        target = Path(str(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f"{_STAGING}{target.name}-", dir=target.parent))
    else:
        staging = Path(tempfile.mkdtemp(prefix=_STAGING))
    try:
        yield staging
        if is_local(path):
            _sync_tree(staging)
            staging.chmod(0o755)  # mkdtemp makes a private folder
            _swap_directory(staging, Path(str(path)))
        else:
            _upload(staging, UPath(path))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def staging_path(path: UPath | Path) -> UPath:
    """A fresh name beside `path`, whose folder exists afterwards."""
    path = UPath(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f"{_STAGING}{path.name}-{uuid.uuid4().hex[:8]}"


def publish_file(staging: UPath, path: UPath | Path) -> None:
    """Rename a written and synced file over `path`."""
    if is_local(path):
        Path(str(staging)).replace(str(path))
        _sync_folder(Path(str(path)).parent)
    else:
        # An object store has no rename: the copy becomes visible as a whole when it completes.
        staging.fs.cp_file(staging.path, UPath(path).path)
        staging.unlink()


def is_local(path: UPath | Path) -> bool:
    """Whether the path is on this machine's file system."""
    return getattr(path, "protocol", "") in ("", "file", "local")


def _swap_directory(staging: Path, target: Path) -> None:
    retired = target.parent / f"{_STAGING}retired-{target.name}-{uuid.uuid4().hex[:8]}"
    if target.exists():
        # Two renames: a crash between them leaves the old folder under its retired name, complete.
        target.rename(retired)
    staging.rename(target)
    _sync_folder(target.parent)
    shutil.rmtree(retired, ignore_errors=True)


def _upload(staging: Path, target: UPath) -> None:
    if target.exists():
        target.rmdir(recursive=True)
    files = sorted(file for file in staging.rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file.name == "manifest.json"):
        remote = target / file.relative_to(staging).as_posix()
        remote.write_bytes(file.read_bytes())


def _sync_tree(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
