"""One writer at a time into an artifact root on a file system; the kernel lets the lock go when its process ends.

An object store has no such lock: there a shared Dagster instance's run queue (`max_concurrent_runs`) keeps writers
apart. Publication is in one step, so that artifacts stay whole even where nothing does.
"""

import contextlib
from collections.abc import Iterator

from filelock import FileLock, Timeout
from upath import UPath

from po_assets.storage.files import is_local


class LockedError(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def lock(place: UPath) -> Iterator[None]:
    """Hold `place` while the block runs; does nothing in an object store.

    Raises:
        LockedError: another process on this machine holds it.
    """
    if not is_local(place):
        yield
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(str(place), timeout=0):
            yield
    except Timeout as error:
        raise LockedError("a process on this machine holds the lock") from error
