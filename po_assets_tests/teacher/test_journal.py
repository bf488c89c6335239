"""The journal survives being cut anywhere: what is whole counts, what is torn is said and asked again."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from po_assets.errors import UserError
from po_assets.teacher import journal as journal_module
from po_assets.teacher.journal import Done, Landing, Sent, open_journal, read_journal
from po_assets_tests.evaluation.scenes import GOOD
from po_assets_tests.teacher.scenes import payload


def sent(number: int) -> Sent:
    one = payload(number)
    return Sent(f"id{number}", one.key, "question", one, "2026-11-22T10:00:00+00:00", 4096, 900, 4096)


def done(number: int, **changes: Any) -> Done:
    fields = {
        "id": f"id{number}",
        "at": "2026-11-22T10:00:09+00:00",
        "seconds": 9.0,
        "text": GOOD,
        "finish_reason": "stop",
        "refusal": "",
        "model": "m",
        "reason": "",
        "detail": "",
        "cut": False,
        "prompt_tokens": 800,
        "completion_tokens": 300,
        "estimated": False,
    }
    return Done(**{**fields, **changes})


def write(folder: Path) -> bytes:
    """A journal of three requests, two of them answered, and a landing."""

    async def fill() -> None:
        with open_journal(folder) as journal:
            for number in (1, 2, 3):
                await journal.sent(sent(number))
            await journal.done(done(1))
            await journal.done(done(2, text="größer als Ü 😀 und\nmehr"))
            journal.landing(Landing("a.jsonl", "0" * 64, ("id1",)))
            journal.landed("a.jsonl")

    asyncio.run(fill())
    return (folder / journal_module.NAME).read_bytes()


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    """Requests, answers and landings, in order."""
    write(tmp_path)
    contents = read_journal(tmp_path / journal_module.NAME)
    assert [attempt.sent for attempt in contents.attempts.values()] == [sent(1), sent(2), sent(3)]
    assert contents.attempts["id1"].done == done(1)
    assert contents.attempts["id3"].done is None
    assert contents.landings == {"a.jsonl": Landing("a.jsonl", "0" * 64, ("id1",))}
    assert contents.landed == {"a.jsonl"}
    assert contents.faults == []


def test_cut_after_any_byte_it_opens_with_every_whole_line_and_says_what_is_torn(tmp_path: Path) -> None:
    """Also when only the newline is missing: then the line counts, for it is paid for."""
    content = write(tmp_path / "whole")
    lines = content.splitlines(keepends=True)
    ends = [sum(map(len, lines[:count])) for count in range(len(lines) + 1)]
    for cut in sorted(
        {*range(0, len(content), 37), *ends, *(end - 1 for end in ends[1:]), *(end + 1 for end in ends[:-1])}
    ):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        path = folder / journal_module.NAME
        path.write_bytes(content[:cut])
        whole = sum(end <= cut + 1 for end in ends[1:])
        torn = cut not in ends and cut + 1 not in ends
        with open_journal(folder) as journal:
            assert bool(journal.contents.faults) == torn, cut
            answered = [name for name, attempt in journal.contents.attempts.items() if attempt.done]
            assert len(journal.contents.attempts) == min(whole, 3)
            assert answered == ["id1", "id2"][: max(whole - 3, 0)]
            # What is appended now stands on a line of its own.
            asyncio.run(journal.sent(sent(9)))
        assert path.read_bytes().splitlines(keepends=True)[:whole] == lines[:whole]
        again = read_journal(path)
        assert again.faults == []
        assert "id9" in again.attempts


def test_a_damaged_line_in_the_middle_costs_only_itself(tmp_path: Path) -> None:
    """Its answer is asked again, and the fault is named with its line."""
    lines = write(tmp_path).splitlines(keepends=True)
    lines[3] = lines[3][:50] + b"\x00" * 20 + lines[3][70:]
    (tmp_path / journal_module.NAME).write_bytes(b"".join(lines))
    contents = read_journal(tmp_path / journal_module.NAME)
    assert len(contents.faults) == 1
    assert contents.faults[0].startswith("line 4 cannot be read")
    assert contents.attempts["id1"].done is None
    assert contents.attempts["id2"].done


def test_a_second_run_is_turned_away(tmp_path: Path) -> None:
    """It would pay for the same answers."""
    with open_journal(tmp_path), pytest.raises(UserError, match="Another run asks the same teacher"):  # noqa: SIM117
        with open_journal(tmp_path):
            pass
    with open_journal(tmp_path):
        pass


def test_a_full_disk_is_said_and_leaves_no_torn_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer may be paid for that cannot be kept."""
    before = write(tmp_path)
    real = os.write
    with open_journal(tmp_path) as journal:
        monkeypatch.setattr(journal_module.os, "write", lambda file, line: real(file, line[: len(line) // 2]))
        with pytest.raises(UserError, match="bytes fit"):
            asyncio.run(journal.done(done(3)))
        monkeypatch.undo()
    assert (tmp_path / journal_module.NAME).read_bytes() == before


def test_an_answer_is_synced_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut after it costs nothing."""
    synced: list[int] = []
    real = os.fsync
    with open_journal(tmp_path) as journal:
        monkeypatch.setattr(
            journal_module.os, "fsync", lambda file: (synced.append(os.fstat(file).st_size), real(file))[1]
        )
        asyncio.run(journal.sent(sent(1)))
        assert synced == []
        asyncio.run(journal.done(done(1)))
        assert synced == [(tmp_path / journal_module.NAME).stat().st_size]
