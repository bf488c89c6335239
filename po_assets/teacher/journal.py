"""The journal: every request before it is sent and every answer as soon as it is whole, in one SQLite file.

It is what makes a batch resumable after anything, kill -9 and power cuts included: each step is a transaction, and an
answer is on disk before anything else happens. A request that was sent and has no answer is known to be lost, not
unknown. Each teacher and way of asking has one folder with one journal; the payloads of all batches share it, so that
none is paid for twice. What an attempt is worth belongs to `outcomes`.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from upath import UPath

from po_assets.errors import UserError
from po_assets.storage import LockedError, lock
from po_assets.teacher.payloads import Payload

NAME = "journal.sqlite"


@dataclass(frozen=True)
class Attempt:
    """One request and, once `answered_at` is set, what came back; a row of the table `requests`.

    `fault` is empty for a whole answer. Tokens that no bill says are `estimated`: until an answer is there, they are
    the most that the request can have.
    """

    id: str
    key: str
    kind: str
    concept: str
    requirements_yaml: str
    tier: str | None
    concept_id: str | None
    sent_at: str
    max_output_tokens: int
    prompt_tokens: int
    completion_tokens: int
    estimated: bool = True
    answered_at: str | None = None
    seconds: float | None = None
    text: str = ""
    finish_reason: str = ""
    refusal: str = ""
    model: str = ""
    fault: str = ""
    detail: str = ""
    cut: bool = False
    hosted: bool = False
    """Asked in a batch of the provider, at its price."""
    landed_in: str | None = None
    """The file in incoming/ that holds its row, from the moment at which the file is announced."""

    @property
    def payload(self) -> Payload:
        """What was asked about."""
        return Payload(self.concept, self.requirements_yaml, self.tier, self.concept_id)

    @property
    def tokens(self) -> tuple[int, int]:
        """Of prompt and answer."""
        return self.prompt_tokens, self.completion_tokens


_COLUMNS = [field.name for field in fields(Attempt)]
_TABLES = (
    f"CREATE TABLE IF NOT EXISTS requests (number INTEGER PRIMARY KEY, {', '.join(_COLUMNS)}, UNIQUE (id))",
    "CREATE TABLE IF NOT EXISTS landings (file TEXT PRIMARY KEY, content BLOB)",
    "CREATE TABLE IF NOT EXISTS rounds (name TEXT PRIMARY KEY, content BLOB, batch TEXT)",
)
# A landing's `content` holds the announced file's bytes until it is published; then it is NULL. A round is what the
# provider is handed as one batch: the file's bytes, and once it has accepted them its name for the batch.
_KEEP = (
    f"INSERT INTO requests ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "  # noqa: S608 - field names
    f"ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS)}"
)


class Journal:
    """An open journal, beside whichever run may be writing it: `open_journal` makes one that keeps other runs away."""

    def __init__(self, path: Path) -> None:
        """Open it, to be closed. Raises `UserError` if it is not a journal, or it is damaged."""
        self.path = path
        # One thread at a time uses it: the writer while a batch runs, so that no fsync stops the event loop.
        with _said(path):
            self._database = sqlite3.connect(path, check_same_thread=False)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._turn = asyncio.Lock()
        self._unkept: list[tuple[Any, ...]] = []
        self._broken: UserError | None = None
        self._do("PRAGMA journal_mode = WAL")  # readable by people while a batch writes
        self._do("PRAGMA synchronous = FULL")  # a transaction that is done survives a power cut
        for table in _TABLES:
            self._do(table)

    async def keep(self, attempt: Attempt) -> None:
        """Keep a request that is about to be sent, or what came back for it: then it is on disk when this returns.

        What is to be kept at the same time shares a transaction: a sync takes a disk 10 ms.
        """
        self._unkept.append(astuple(attempt))
        async with self._turn:
            if self._broken:
                raise self._broken
            rows, self._unkept = self._unkept, []
            if not rows:  # an earlier turn took this one's along
                return
            try:
                await self._write(_KEEP, rows)
            except UserError as error:
                self._broken = error  # for all whose rows these were
                raise

    def attempts(self) -> list[Attempt]:
        """All requests, in the order in which they were sent."""
        rows = self._do(f"SELECT {', '.join(_COLUMNS)} FROM requests ORDER BY number")  # noqa: S608 - names of fields
        attempts = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
        flags = ("cut", "estimated", "hosted")  # SQLite knows no booleans
        return [Attempt(**values | {name: bool(values[name]) for name in flags}) for values in attempts]

    async def keep_round(self, name: str, content: bytes, batch: str | None = None) -> None:
        """Note what is about to be handed to the provider as one batch, or which `batch` it became there."""
        await self._write("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?)", [(name, content, batch)])

    def rounds(self) -> list[tuple[str, bytes, str | None]]:
        """What was handed to the provider, or was about to be: name, content and the provider's name for the batch."""
        return self._do("SELECT * FROM rounds ORDER BY rowid")

    def announce(self, file: str, content: bytes, ids: Sequence[str]) -> None:
        """Note a file of accepted answers before it is published: its bytes, and whose rows it holds."""
        with _said(self.path), self._database as database:
            database.execute("INSERT INTO landings VALUES (?, ?)", (file, content))
            database.executemany("UPDATE requests SET landed_in = ? WHERE id = ?", ((file, name) for name in ids))

    def published(self, file: str) -> None:
        """Note that an announced file is in its place."""
        self._do("UPDATE landings SET content = NULL WHERE file = ?", file)

    def unpublished(self) -> dict[str, bytes]:
        """The announced files that nobody has seen published: name and bytes."""
        return dict(self._do("SELECT file, content FROM landings WHERE content IS NOT NULL ORDER BY rowid"))

    def close(self) -> None:
        """Finish writing and close the file."""
        self._writer.shutdown()
        self._database.close()

    def _do(self, statement: str, *values: object) -> list[Any]:
        """One transaction, on disk when this returns."""
        with _said(self.path), self._database as database:
            return database.execute(statement, values).fetchall()

    async def _write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        """The same beside the event loop, for many rows."""

        def write() -> None:
            with _said(self.path), self._database as database:
                database.executemany(statement, rows)

        await asyncio.get_running_loop().run_in_executor(self._writer, write)


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    """What SQLite refuses, in words."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise UserError(
            f"The journal {str(path)!r} cannot be written ({error}), and no answer is asked for that could not be "
            "kept. Make room and materialize teacher_batch again; it goes on from what is on disk."
        ) from error
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:  # the subclasses are faults of this program
            raise
        raise UserError(
            f"The journal {str(path)!r} is damaged ({error}), and its answers are paid for. Save what can be read with "
            f"`sqlite3 {NAME} .recover | sqlite3 saved.sqlite` and put that in its place, or move it away to have "
            "everything asked again."
        ) from error


@contextlib.contextmanager
def open_journal(folder: Path) -> Iterator[Journal]:
    """Open a folder's journal for this process alone.

    Raises:
        UserError: another run uses it, or it cannot be used.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lock(UPath(folder / ".lock")))
        except LockedError:
            raise UserError(
                f"Another run asks the same teacher right now, with the journal in {str(folder)!r}. Wait until it "
                "ends, or terminate it; then materialize teacher_batch again."
            ) from None
        yield held.enter_context(contextlib.closing(Journal(folder / NAME)))
