"""Publication in one step (a reader sees the old artifact or the new one, never half of one), and the lock of a root.

On a file system: write beside, fsync, rename, fsync the folder. A folder changes places with the one it replaces.

An object store has no rename and no folders. What it has is an upload that becomes visible as a whole when it
completes, however many parts it was sent in (S3: PutObject, CompleteMultipartUpload). So

- a file is uploaded under a staging name and copied over its name inside the store; the copy is such an upload;
- a folder `models/po_student_v2` is uploaded to a prefix of its own, `models/po_student_v2/<version>/`, which nothing
  points to yet; then one small object, `models/po_student_v2/CURRENT`, is replaced by the version's name. Readers go
  through `published_directory`. A crash before that leaves them the old version; it and the one before stay for readers
  that are in the middle of it, and older ones are removed with the next publication.

An object store has no lock either: there a shared Dagster instance's run queue (`max_concurrent_runs`) keeps writers
apart. On a file system the kernel lets a lock go when its process ends.
"""

import contextlib
import ctypes
import errno
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, cast

from filelock import FileLock, Timeout
from upath import UPath

POINTER = "CURRENT"
"""The object that names the current version of a folder in an object store."""

_STAGING = ".staging-"
_RETIRED = f"{_STAGING}retired-"
# From Linux's fcntl.h and fs.h; Python's standard library has no call for it.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_BUFFER = 1 << 20
_KEPT_VERSIONS = 3
"""Versions of a folder in an object store: the current one, and those a reader may still be in the middle of."""


@contextlib.contextmanager
def atomic_file(path: UPath | Path) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` when the block ends well, and vanishes when it raises."""
    staging = staging_path(path)
    try:
        with full_disk_named(path, staging), staging.open("wb") as file:
            yield file
            file.flush()
            if is_local(path):
                os.fsync(file.fileno())
        publish_file(staging, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            staging.unlink()


def replace_file(path: UPath | Path, content: bytes) -> None:
    """Write a small file in one step; what stood there before is replaced."""
    with atomic_file(path) as file:
        file.write(content)


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
        with full_disk_named(path, staging):
            yield staging
            if is_local(path):
                _sync_tree(staging)
        if is_local(path):
            staging.chmod(0o755)  # mkdtemp makes a private folder
            _swap_directory(staging, Path(str(path)))
        else:
            _upload(staging, UPath(path))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def published_directory(path: UPath | Path) -> UPath:
    """Where the files of the folder `path` are: `path` itself, or in an object store the version that is current.

    Read all files of a folder through one result of this, and they belong together. A folder without a pointer, as
    `aws s3 sync` makes it, is taken as it is; whether anything is there is the reader's to find out.
    """
    path = UPath(path)
    if is_local(path):
        return path
    try:
        return path / path.joinpath(POINTER).read_text().strip()
    except FileNotFoundError:
        return path


def staging_path(path: UPath | Path) -> UPath:
    """A fresh name beside `path`, whose folder exists afterwards."""
    path = UPath(path)
    if is_local(path):  # elsewhere there are no folders to make, and a misspelt bucket must not be made
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


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for want of space or quota.

    Libraries in Rust (safetensors, tokenizers) and `shutil.copytree` tell of it in the text of an error of their own.
    """
    full = (errno.ENOSPC, errno.EDQUOT)
    if getattr(error, "errno", None) in full:
        return True
    told = [f"os error {number})" for number in full]
    told += [f"[Errno {number}]" for number in full] if isinstance(error, shutil.Error) else []
    return any(text in str(error.args) for text in told)


@contextlib.contextmanager
def full_disk_named(path: UPath | Path, staging: UPath | Path, *, wanted: int = 0) -> Iterator[None]:
    """Give what is missing to an error that a full disk raises in the block: which path, how many bytes are wanted.

    The system tells of a write without either. Where `wanted` is not known before, what had been written beside `path`
    is still there in `staging`.
    """
    try:
        yield
    except Exception as error:
        if is_disk_full(error) and not hasattr(error, "wanted"):  # the innermost block knows best
            # What goes to an object store is made here first.
            error.filename = str(path) if is_local(path) else None  # type: ignore[attr-defined]
            error.wanted = wanted or max(_size(staging), _size(path))  # type: ignore[attr-defined]
        raise


def _size(path: UPath | Path) -> int:
    """Bytes of a file or of all files of a folder on this machine; 0 where there is none."""
    here = Path(str(path))
    return sum(file.stat().st_size for file in (here, *here.rglob("*")) if is_local(path) and file.is_file())


def _in_words(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def disk_fault(error: Exception) -> str | None:
    """What a person does about a disk or a right that refused: path, reason and way out; None for any other error."""
    full, number, named = is_disk_full(error), getattr(error, "errno", None), getattr(error, "filename", None)
    refused = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
    if not full and not (isinstance(error, OSError) and named and number in refused):
        return None
    path = Path(os.fsdecode(named) if isinstance(named, str | bytes) else tempfile.gettempdir()).absolute()
    there = next((folder for folder in (path, *path.parents) if os.path.lexists(folder)), path)
    kept = "What was published before is still in place, and nothing half-written was left."
    variable = "PO_ARTIFACTS_ROOT" if named else "TMPDIR"
    way_out = f"set {variable} to a folder on another disk, then start this again"
    if full:
        free, wanted = shutil.disk_usage(there).free, getattr(error, "wanted", 0)
        # A library that took its half-written file away again leaves nothing to measure.
        needed = f", more than {_in_words(wanted)} needed" if wanted > free * 0.9 else ", and more is needed"
        return f"The disk of '{path}' is full ({_in_words(free)} free{needed}). Make room there, or {way_out}. {kept}"
    if number == errno.ENOTDIR:
        return f"'{path}' cannot be there, since '{there}' is no folder. Give another path, then start this again."
    if number == errno.EROFS:
        return f"'{path}' is on a disk that can only be read. Mount it for writing, or {way_out}. {kept}"
    return (
        f"'{path}' is closed to user {os.geteuid()} ({os.strerror(number or 0)}); '{there}' belongs to user "
        f"{there.lstat().st_uid}. Get the right to it (chown or chmod), run as that user, or {way_out}. {kept}"
    )


def remove_stale_staging(folder: UPath, older_than: timedelta = timedelta(days=1)) -> list[UPath]:
    """Remove what killed writers left half written in a folder, and return it.

    What is younger than `older_than` may be a living writer's. A retired folder stays (see `_swap_directory`): it is
    whole, and the only copy if a crash came between the two renames.
    """
    if not folder.is_dir():
        return []
    before = datetime.now(UTC) - older_than
    staged = [path for path in folder.iterdir() if path.name.startswith(_STAGING) and _RETIRED not in path.name]
    old = [path for path in staged if path.fs.modified(path.path) <= before]
    for path in old:
        path.fs.rm(path.path, recursive=True)
    return old


def is_local(path: UPath | Path) -> bool:
    """Whether the path is on this machine's file system."""
    return getattr(path, "protocol", "") in ("", "file", "local")


def open_buffered(path: UPath | Path) -> BinaryIO:
    """A binary file to read line by line.

    fsspec's own remote files find line ends in Python, slowly, and their `readline` takes no limit; hence the buffer.
    """
    file = UPath(path).open("rb")
    return cast("BinaryIO", file if isinstance(file, io.BufferedIOBase) else io.BufferedReader(file, _BUFFER))


@contextlib.contextmanager
def local_copy(folder: UPath | Path) -> Iterator[Path]:
    """A published folder as a path on this machine: itself where it is here, else a copy that vanishes afterwards.

    Raises:
        FileNotFoundError: an object store holds nothing there.
    """
    if is_local(folder):
        yield Path(str(folder))
        return
    with tempfile.TemporaryDirectory() as temporary:
        source = published_directory(folder)
        source.fs.get(f"{source.path.rstrip('/')}/", f"{temporary}/", recursive=True)
        yield Path(temporary)


def _swap_directory(staging: Path, target: Path) -> None:
    retired = staging
    if not target.exists():
        staging.rename(target)
    elif not _exchanged(staging, target):
        # Two renames: a crash between them leaves the old folder under its retired name, complete.
        retired = target.parent / f"{_RETIRED}{target.name}-{uuid.uuid4().hex[:8]}"
        target.rename(retired)
        staging.rename(target)
    _sync_folder(target.parent)
    shutil.rmtree(retired, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether two folders changed places in one step, which Linux can do on most file systems (renameat2(2))."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_AT_FDCWD, bytes(one), _AT_FDCWD, bytes(other), _RENAME_EXCHANGE) == 0


def _upload(staging: Path, target: UPath) -> None:
    version = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}-{uuid.uuid4().hex[:8]}"
    for file in sorted(file for file in staging.rglob("*") if file.is_file()):
        target.fs.put_file(str(file), (target / version / file.relative_to(staging).as_posix()).path)
    before = published_directory(target).name
    _point(target, version)
    # The one before is named, not found by its time: a clock that was set back makes it older than it is.
    versions = sorted(path.name for path in target.iterdir() if path.is_dir() and path.name not in {version, before})
    for old in versions[: -(_KEPT_VERSIONS - 2)]:
        target.fs.rm((target / old).path, recursive=True)


def _point(target: UPath, version: str) -> None:
    target.fs.pipe_file((target / POINTER).path, f"{version}\n".encode())


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


class LockedError(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def lock(place: UPath, *, wait: bool = False) -> Iterator[None]:
    """Hold `place` while the block runs; does nothing in an object store.

    Raises:
        LockedError: another process on this machine holds it, and this one is not to wait.
    """
    if not is_local(place):
        yield
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(str(place), timeout=-1 if wait else 0):
            yield
    except Timeout as error:
        raise LockedError("a process on this machine holds the lock") from error
