"""Work on blocks in worker processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from po_assets.errors import UserError
from po_assets.storage import workers
from po_assets.storage.workers import group, map_blocks

BLOCKS = [[number, number + 1] for number in range(0, 60, 2)]


def make_adder(offset: int) -> Callable[[list[int]], tuple[int, int]]:
    """Adds a block up and says in which process; prints, as libraries do, and takes longest for the first block."""

    def work(block: list[int]) -> tuple[int, int]:
        print("noise")
        time.sleep(0.3 if block[0] == 0 else 0)
        return sum(block) + offset, os.getpid()

    return work


def make_failing() -> Callable[[list[int]], int]:
    """Fails on one block."""
    return lambda block: 1 // (block[0] - 20)


def make_dying() -> Callable[[list[int]], int]:
    """Dies as the out-of-memory killer would have it."""

    def work(block: list[int]) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return block[0]

    return work


def test_results_come_in_order_from_several_processes() -> None:
    """As if one process had done it, whichever is done first; what the work prints is not among the results."""
    results = list(map_blocks(make_adder, (100,), BLOCKS, workers=2))
    assert [total for total, _ in results] == [sum(block) + 100 for block in BLOCKS]
    pids = {pid for _, pid in results}
    assert len(pids) == 2
    assert os.getpid() not in pids


@pytest.mark.parametrize(("blocks", "workers"), [(BLOCKS[:3], 2), (BLOCKS, 1), ([], 2)])
def test_few_blocks_are_worked_on_here(blocks: list[list[int]], workers: int) -> None:
    """Starting processes costs more than it saves."""
    results = list(map_blocks(make_adder, (0,), blocks, workers=workers))
    assert [total for total, _ in results] == [sum(block) for block in blocks]
    assert {pid for _, pid in results} <= {os.getpid()}


def test_blocks_are_read_only_as_fast_as_they_are_worked_on() -> None:
    """Memory stays flat, however long the table."""
    read: list[int] = []

    def blocks() -> Iterator[list[int]]:
        for number in range(200):
            read.append(number)
            yield [number]

    results = map_blocks(make_adder, (0,), blocks(), workers=2)
    next(results)
    assert len(read) <= workers.BLOCKS_WORTH_A_POOL + 1 + 2 * workers._WAITING_PER_WORKER
    results.close()  # type: ignore[attr-defined]


def test_a_failure_in_a_worker_fails_the_caller() -> None:
    """With what went wrong there."""
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(map_blocks(make_failing, (), BLOCKS, workers=2))


def test_a_killed_worker_is_one_clear_error() -> None:
    """The usual reason is named."""
    with pytest.raises(UserError, match="most likely because memory ran out"):
        list(map_blocks(make_dying, (), BLOCKS, workers=2))


def test_no_worker_outlives_the_work() -> None:
    """Also when the caller stops early."""
    results = map_blocks(make_adder, (0,), BLOCKS, workers=2)
    _, pid = next(results)
    results.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_imports_neither_dagster_nor_pandas() -> None:
    """Each would cost every worker a second or more."""
    code = (
        "import sys, po_assets.storage.workers, po_assets.intake.ledger, po_assets.dataset.selection; "
        "print([name for name in ('dagster', 'pandas', 'torch', 'scipy', 'matplotlib') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_groups_are_bounded_in_number_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """One large item alone may exceed the sum."""
    monkeypatch.setattr(workers, "BLOCK_ROWS", 3)
    monkeypatch.setattr(workers, "BLOCK_BYTES", 10)
    items = ["a", "b", "c", "d", "x" * 9, "y" * 2, "z" * 50, "e"]
    assert list(group(items, size=len)) == [["a", "b", "c"], ["d", "x" * 9], ["y" * 2], ["z" * 50], ["e"]]
