"""The journal survives being cut anywhere: what was kept is there, and nothing half-kept is."""

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from po_assets.errors import UserError
from po_assets.teacher import journal as journal_module
from po_assets.teacher.journal import NAME, Attempt, Journal, open_journal
from po_assets_tests.evaluation.scenes import GOOD
from po_assets_tests.teacher.scenes import payload


def sent(number: int) -> Attempt:
    one, at = payload(number), "2026-11-22T10:00:00+00:00"
    return Attempt(f"id{number}", one.key, "question", **asdict(one), sent_at=at,
                   max_output_tokens=4096, prompt_tokens=900, completion_tokens=4096)  # fmt: skip


def done(number: int, **changes: Any) -> Attempt:
    options = {"answered_at": "2026-11-22T10:00:09+00:00", "seconds": 9.0, "text": GOOD, "finish_reason": "stop",
               "model": "m", "prompt_tokens": 800, "completion_tokens": 300, "estimated": False}  # fmt: skip
    return replace(sent(number), **(options | changes))


STEPS = [sent(1), sent(2), sent(3), done(1), done(2, text="größer als Ü 😀 und\nmehr", cut=True)]


def keep(journal: Journal, *attempts: Attempt) -> None:
    async def keep_all() -> None:
        for attempt in attempts:
            await journal.keep(attempt)

    asyncio.run(keep_all())


def attempts_in(path: Path) -> list[Attempt]:
    with contextlib.closing(Journal(path)) as journal:
        return journal.attempts()


def test_what_was_kept_is_read_again(tmp_path: Path) -> None:
    """Requests in the order in which they were sent, with their answers; announced files until they are published."""
    with open_journal(tmp_path) as journal:
        keep(journal, *STEPS)
        journal.announce("a.jsonl", b"row\n", ["id1"])
        assert journal.unpublished() == {"a.jsonl": b"row\n"}
        journal.published("a.jsonl")
    with open_journal(tmp_path) as journal:
        assert journal.attempts() == [replace(STEPS[3], landed_in="a.jsonl"), STEPS[4], STEPS[2]]
        assert journal.unpublished() == {}


def test_cut_after_any_byte_it_opens_with_a_whole_beginning(tmp_path: Path) -> None:
    """As a power cut may leave what is appended; and it goes on from there."""
    with open_journal(tmp_path / "whole") as journal:
        states: list[list[Attempt]] = [journal.attempts()]
        for step in STEPS:
            keep(journal, step)
            states.append(journal.attempts())
        wal = tmp_path / "whole" / f"{NAME}-wal"
        content = wal.read_bytes()
        found = []
        for cut in [*range(0, len(content), 4_001), len(content)]:
            folder = tmp_path / f"cut{cut}"
            folder.mkdir()
            shutil.copy(tmp_path / "whole" / NAME, folder / NAME)
            (folder / wal.name).write_bytes(content[:cut])
            with open_journal(folder) as again:
                found.append(states.index(again.attempts()))
                keep(again, done(9))
            assert attempts_in(folder / NAME)[-1] == done(9)
    assert found == sorted(found)
    assert set(found) == set(range(len(STEPS) + 1))


def test_a_damaged_journal_is_said_with_the_way_to_what_is_left(tmp_path: Path) -> None:
    """Its answers are paid for: it is neither used nor thrown away."""
    with open_journal(tmp_path) as journal:
        keep(journal, *STEPS)
    path = tmp_path / NAME
    damaged = b"no database" * 1000
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"is damaged \(file is not a database\).* \.recover"), open_journal(tmp_path):
        pass
    assert path.read_bytes() == damaged


def test_a_second_run_is_turned_away(tmp_path: Path) -> None:
    """It would pay for the same answers; a person who only looks is not."""
    with open_journal(tmp_path) as journal:
        keep(journal, sent(1))
        with pytest.raises(UserError, match="Another run asks the same teacher"), open_journal(tmp_path):
            pass
        assert attempts_in(tmp_path / NAME) == [sent(1)]
    with open_journal(tmp_path):
        pass


@contextlib.contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, pages: int) -> Iterator[None]:
    """SQLite finds no room beyond so many pages (of 4 KiB)."""
    connect = sqlite3.connect

    def limited(*args: Any, **options: Any) -> sqlite3.Connection:
        database = connect(*args, **options)
        database.execute(f"PRAGMA max_page_count = {pages}")
        return database

    with monkeypatch.context() as patch:
        patch.setattr(journal_module.sqlite3, "connect", limited)
        yield


def test_every_transaction_is_synced(tmp_path: Path) -> None:
    """A power cut after it costs nothing."""
    with open_journal(tmp_path) as journal:
        assert journal._do("PRAGMA synchronous") == [(2,)]  # FULL, as SQLite counts
        assert journal._do("PRAGMA journal_mode") == [("wal",)]


def test_what_is_kept_at_the_same_time_is_all_kept_or_all_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever's transaction it was in; a full disk leaves nothing half-kept."""

    async def all_at_once(journal: Journal, attempts: list[Attempt]) -> list[BaseException | None]:
        return await asyncio.gather(*map(journal.keep, attempts), return_exceptions=True)

    many = [sent(number) for number in range(1, 40)]
    with open_journal(tmp_path / "whole") as journal:
        assert set(asyncio.run(all_at_once(journal, many))) == {None}
        assert journal.attempts() == many
    with full_disk(monkeypatch, 12), open_journal(tmp_path / "full") as journal:
        keep(journal, *STEPS[:3])
        told = asyncio.run(all_at_once(journal, [done(1, text="x" * 100_000), *many[3:]]))
        assert {str(one).partition("(")[2][:24] for one in told} >= {"database or disk is full"}
        assert {type(one) for one in told[1:]} == {UserError}
    with open_journal(tmp_path / "full") as journal:
        keep(journal, done(1))
        assert journal.attempts()[:3] == [done(1), *STEPS[1:3]]
