"""The journal: every request before it is sent and every answer as soon as it is whole, one JSON line each, on disk.

It is what makes a batch resumable after anything, kill -9 and power cuts included, and what the ledger is made from. A
request that was sent and has no answer is known to be lost, not unknown. Each teacher and way of asking has one folder
with one journal; the payloads of all batches share it, so that none is paid for twice.
"""

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from po_assets.errors import UserError
from po_assets.teacher.payloads import Payload

NAME = "journal.jsonl"


@dataclass(frozen=True)
class Sent:
    """A request as it goes out. The reserved tokens are the most that it can cost."""

    id: str
    key: str
    kind: str
    payload: Payload
    at: str
    max_output_tokens: int
    reserved_prompt: int
    reserved_completion: int


@dataclass(frozen=True)
class Done:
    """What came back. `reason` is empty for a whole answer; tokens that no bill says are `estimated`."""

    id: str
    at: str
    seconds: float
    text: str
    finish_reason: str
    refusal: str
    model: str
    reason: str
    detail: str
    cut: bool
    prompt_tokens: int
    completion_tokens: int
    estimated: bool


@dataclass(frozen=True)
class Landing:
    """A file of accepted answers: its name, sha256 (hex) of its bytes, and the requests that brought its rows."""

    file: str
    sha256: str
    ids: tuple[str, ...]


@dataclass
class Attempt:
    """One request and, where it is known, what came of it."""

    sent: Sent
    done: Done | None = None

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and answer tokens; of a request without an end the most that it can have had."""
        if self.done is None:
            return self.sent.reserved_prompt, self.sent.reserved_completion
        return self.done.prompt_tokens, self.done.completion_tokens


@dataclass
class Contents:
    """All that a journal holds, in the order in which it was written."""

    attempts: dict[str, Attempt] = field(default_factory=dict)
    by_key: dict[str, list[Attempt]] = field(default_factory=dict)
    """The attempts for each payload."""
    landings: dict[str, Landing] = field(default_factory=dict)
    landed: set[str] = field(default_factory=set)
    """Names of the landing files that are known to have been published."""
    faults: list[str] = field(default_factory=list)
    """Lines that cannot be read, in words."""

    def add(self, sent: Sent) -> Attempt:
        """Add a request without an answer."""
        attempt = self.attempts[sent.id] = Attempt(sent)
        self.by_key.setdefault(sent.key, []).append(attempt)
        return attempt

    def take(self, line: bytes) -> None:
        """Add one line.

        Raises:
            ValueError, KeyError, TypeError: it is no line of a journal.
        """
        record: dict[str, Any] = orjson.loads(line)
        event = record.pop("event")
        if event == "sent":
            self.add(Sent(**{**record, "payload": Payload(**record["payload"])}))
        elif event == "done":
            done = Done(**record)
            self.attempts[done.id].done = done
        elif event == "landing":
            landing = Landing(record["file"], record["sha256"], tuple(record["ids"]))
            self.landings[landing.file] = landing
        elif event == "landed":
            self.landed.add(record["file"])
        else:
            raise ValueError(f"unknown event {event!r}")


class Journal:
    """An open journal: what it held, and appending to it. Made by `open_journal`."""

    def __init__(self, path: Path, contents: Contents) -> None:
        self.path, self.contents = path, contents
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        # One thread, so that lines are never interleaved and no fsync stops the event loop.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")

    async def sent(self, sent: Sent) -> Attempt:
        """Note a request that is about to be sent. Survives this process; the next answer's sync makes it durable."""
        attempt = self.contents.add(sent)
        await self._append({"event": "sent", **asdict(sent)}, sync=False)
        return attempt

    async def done(self, done: Done) -> Attempt:
        """Keep what came back; it is on disk when this returns."""
        attempt = self.contents.attempts[done.id]
        attempt.done = done
        await self._append({"event": "done", **asdict(done)}, sync=True)
        return attempt

    def landing(self, landing: Landing) -> None:
        """Announce a landing file before it is published."""
        self._write({"event": "landing", **asdict(landing)}, sync=True)
        self.contents.landings[landing.file] = landing

    def landed(self, file: str) -> None:
        """Note that a landing file is published."""
        self._write({"event": "landed", "file": file}, sync=True)
        self.contents.landed.add(file)

    def close(self) -> None:
        """Finish writing and close the file."""
        self._writer.shutdown()
        os.close(self._file)

    async def _append(self, record: dict[str, Any], *, sync: bool) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, lambda: self._write(record, sync=sync))

    def _write(self, record: dict[str, Any], *, sync: bool) -> None:
        line = orjson.dumps(record) + b"\n"
        try:
            written = os.write(self._file, line)
            if written == len(line):
                if sync:
                    os.fsync(self._file)
                return
            # The disk is full; what is there of the line would run into the next one.
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            problem = f"only {written} of {len(line)} bytes fit"
        except OSError as error:
            problem = str(error)
        raise UserError(
            f"The journal {str(self.path)!r} cannot be written ({problem}), and no answer is asked for that could not "
            "be kept. Make room and materialize teacher_batch again; it goes on from what is on disk."
        )


@contextmanager
def open_journal(folder: Path) -> Iterator[Journal]:
    """Open a folder's journal for this process alone, mending a last line that a crash tore.

    Raises:
        UserError: another run uses it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")  # held by the process: whatever ends it frees the lock
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"Another run asks the same teacher right now, with the journal in {str(folder)!r}. Wait until it ends, or "
            "terminate it; then materialize teacher_batch again."
        ) from None
    try:
        path = folder / NAME
        torn = _mend(path)
        contents = read_journal(path)
        if torn:
            contents.faults.append(torn)
        journal = Journal(path, contents)
        try:
            yield journal
        finally:
            journal.close()
    finally:
        lock.release()


def read_journal(path: Path) -> Contents:
    """What a journal holds; a line that cannot be read is named among its `faults` and its answer asked again."""
    contents = Contents()
    if not path.exists():
        return contents
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                contents.take(line)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                contents.faults.append(f"line {number} cannot be read ({type(error).__name__}: {str(error)[:100]})")
    return contents


def _mend(path: Path) -> str:
    """End the file with a whole line; says in words what was cut off."""
    if not path.exists():
        return ""
    with path.open("rb+") as file:
        content = file.read()
        start = content.rfind(b"\n") + 1
        tail = content[start:]
        if not tail:
            return ""
        try:
            orjson.loads(tail)
        except orjson.JSONDecodeError:
            file.truncate(start)
            os.fsync(file.fileno())
            return f"the last line was torn after {len(tail)} bytes and is cut off; what it told is asked again"
        # Only the newline is missing: a JSON object is whole once it is closed, and its answer is paid for.
        file.write(b"\n")
        os.fsync(file.fileno())
        return ""
