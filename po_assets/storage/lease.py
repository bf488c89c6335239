"""One holder at a time: a lock on a file system, a lease across machines in S3.

A lock on a file system is let go by the kernel when its process ends; an object store has nobody who would. There the
holder renews an object every `RENEW_SECONDS`, and another takes it over when it saw no renewal for `EXPIRE_SECONDS`, by
its own watch: clocks of different machines are not compared. Taking and renewing are conditional writes (If-None-Match,
If-Match), of which the store lets one through; AWS S3 and MinIO have them. Where a server ignores the conditions, the
lease still tells a person who starts a second run, but two that start in the same moment both go on.

What a lease cannot do: stop a holder that was suspended past its expiry and wakes up. Publication is in one step, so
the artifacts stay whole even then, and the later one wins.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from filelock import FileLock, Timeout
from upath import UPath

from po_assets.storage.atomic import is_local

RENEW_SECONDS = 10.0
EXPIRE_SECONDS = 60.0


class HeldError(RuntimeError):
    """Somebody else holds it. The message says who."""


@contextlib.contextmanager
def held(
    place: UPath, report: Callable[[str], None], *, renew: float = RENEW_SECONDS, expire: float = EXPIRE_SECONDS
) -> Iterator[None]:
    """Hold `place` while the block runs.

    `report` is told when a holder that may be gone is waited for, and when the lease was lost. Stores other than S3
    have neither; there a Dagster instance's run queue and pools keep writers apart.

    Raises:
        HeldError: another process holds it.
    """
    if is_local(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(str(place), timeout=0):
                yield
        except Timeout as error:
            raise HeldError("a process on this machine") from error
    elif place.protocol in {"s3", "s3a"}:
        with _leased(place, report, renew, expire):
            yield
    else:
        yield


@contextlib.contextmanager
def _leased(place: UPath, report: Callable[[str], None], renew: float, expire: float) -> Iterator[None]:
    mine = _Lease(place)
    mine.take(report, renew, expire)
    done = threading.Event()
    renewing = threading.Thread(target=mine.keep, args=(done, report, renew), daemon=True, name="lease")
    renewing.start()
    try:
        yield
    finally:
        done.set()
        renewing.join()
        mine.release()


class _Lease:
    """This process's side of a lease."""

    def __init__(self, place: UPath) -> None:
        self._fs, self._path = place.fs, place.path
        self._me = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S %Z')}"
        self._token = uuid.uuid4().hex
        self._renewals = 0
        self._etag: str | None = None

    def take(self, report: Callable[[str], None], renew: float, expire: float) -> None:
        """Take the lease where it is free or expired."""
        if self._put(IfNoneMatch="*"):
            return
        began, first, told = time.monotonic(), self._tag(), False
        while (seen := self._tag()) is not None:
            if seen != first:
                raise HeldError(self._holder())
            waited = time.monotonic() - began
            if waited >= expire:
                gone = self._holder()
                if not self._put(IfMatch=seen):
                    raise HeldError(self._holder())
                report(f"Took over from {gone}, which gave no sign of life for {expire:.0f} seconds.")
                return
            if waited > 2 * renew and not told:
                report(f"Waiting up to {expire:.0f} seconds to see whether {self._holder()} is still there.")
                told = True
            time.sleep(renew / 4)
        if not self._put(IfNoneMatch="*"):  # it was let go, and somebody was faster
            raise HeldError(self._holder())

    def keep(self, done: threading.Event, report: Callable[[str], None], renew: float) -> None:
        """Renew until `done`; what the network loses is tried again, a lost lease is reported and not taken back."""
        while self._etag and not done.wait(renew):
            with contextlib.suppress(OSError):
                if not self._put(IfMatch=self._etag):
                    self._etag = None
                    report(f"The lease {self._path} was lost, since this process did not renew it in time.")

    def release(self) -> None:
        """Remove the object if it is still this process's."""
        if self._etag and self._tag() == self._etag:
            self._fs.rm_file(self._path)

    def _put(self, **condition: str) -> bool:
        self._renewals += 1  # other bytes have another entity tag, which is how others see a renewal
        content = json.dumps({"holder": self._me, "token": self._token, "renewals": self._renewals})
        try:
            answer: dict[str, Any] = self._fs.pipe_file(self._path, content.encode(), **condition)
        except OSError as error:
            # Under If-Match a missing object is a refusal; else it is the bucket that is missing.
            if _is_refused(error) or ("IfMatch" in condition and isinstance(error, FileNotFoundError)):
                return False
            raise
        self._etag = answer["ETag"]
        return True

    def _tag(self) -> str | None:
        """The object's entity tag, None where there is no object."""
        try:
            return str(self._fs.info(self._path, refresh=True)["ETag"])
        except FileNotFoundError:
            return None

    def _holder(self) -> str:
        try:
            return str(json.loads(self._fs.cat_file(self._path))["holder"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return "another process"


def _is_refused(error: OSError) -> bool:
    """Whether a conditional write found another state than it asked for (S3: 412 or 409)."""
    code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
    return isinstance(error, FileExistsError) or code in {"PreconditionFailed", "ConditionalRequestConflict"}
