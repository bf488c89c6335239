"""Work on blocks of rows in worker processes, in order and in bounded memory.

What is done to a block belongs to the caller. Few blocks are worked on in this process: starting workers takes half a
second, which only pays for tables of thousands of rows. A worker is this module as a fresh Python, which imports only
what the work needs. (The pools of the standard library import the parent's main module again, which in a Dagster run
costs seconds per worker; a fork would copy a process that has threads.)
"""

import contextlib
import math
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from queue import SimpleQueue
from subprocess import PIPE
from typing import Any, TypeVar, cast

from po_assets.errors import UserError

Item = TypeVar("Item")
Block = TypeVar("Block")
Result = TypeVar("Result")

BLOCK_ROWS = 250
BLOCK_BYTES = 4 << 20
"""A block of rows travels to a worker process: large enough to make the trip cheap, small enough for flat memory."""

BLOCKS_WORTH_A_POOL = 8
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_WAITING_PER_WORKER = 3
"""Blocks handed out ahead: enough that no worker idles, few enough that memory stays flat."""


def available_cpus() -> int:
    """Processors this process may use: those it is bound to, or fewer where its container has a limit (cgroup v2)."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_LIMIT.read_text().split()
        return max(1, min(bound, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or `max`: no limit
        return bound


def group(items: Iterable[Item], size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Group items into blocks bounded in number and in the sum of their sizes; one item alone may exceed the sum."""
    block: list[Item] = []
    total = 0
    for item in items:
        if block and (len(block) == BLOCK_ROWS or total + size(item) > BLOCK_BYTES):
            yield block
            block, total = [], 0
        block.append(item)
        total += size(item)
    if block:
        yield block


def map_blocks(
    make_work: Callable[..., Callable[[Block], Result]],
    arguments: tuple[Any, ...],
    blocks: Iterable[Block],
    workers: int | None = None,
) -> Iterator[Result]:
    """Apply `make_work(*arguments)` to each block and yield the results in the blocks' order.

    Args:
        make_work: a module-level function; each worker calls it once, so that costly set-up is done once a process.
        arguments: its arguments; they must be picklable.
        blocks: read only as fast as they are worked on.
        workers: worker processes; by default one for each available processor. With one, no process is started.

    Raises:
        UserError: a worker died, for lack of memory most likely.
    """
    workers = available_cpus() if workers is None else workers
    remaining = iter(blocks)
    first = list(islice(remaining, BLOCKS_WORTH_A_POOL))
    if workers < 2 or len(first) < BLOCKS_WORTH_A_POOL:
        yield from map(make_work(*arguments), chain(first, remaining))
        return
    yield from _map_in_pool(make_work, arguments, chain(first, remaining), workers)


def _map_in_pool(
    make_work: Callable[..., Callable[[Block], Result]],
    arguments: tuple[Any, ...],
    blocks: Iterator[Block],
    workers: int,
) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    idle: SimpleQueue[_Worker] = SimpleQueue()
    started: list[_Worker] = []

    def hand_over(block: Block) -> Result:
        worker = idle.get()
        try:
            return cast("Result", worker.work_on(block))
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(workers)
    try:
        for _ in range(workers):
            started.append(_Worker(make_work, arguments))
            idle.put(started[-1])
        for block in blocks:
            waiting.append(threads.submit(hand_over, block))
            if len(waiting) >= workers * _WAITING_PER_WORKER:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for worker in started:
            worker.stop()
        threads.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """A worker process and the pipes to it."""

    def __init__(self, make_work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        # The worker finds modules where this process does, whatever put them on its path.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "po_assets.storage.workers"], stdin=PIPE, stdout=PIPE, env=environment
        )
        self._first: list[Any] = [(make_work, arguments)]

    def work_on(self, block: Any) -> Any:
        """Send a block, wait for its result."""
        to_worker, from_worker = self._process.stdin, self._process.stdout
        assert to_worker is not None  # noqa: S101 - both are pipes
        assert from_worker is not None  # noqa: S101
        try:
            for message in [*self._first, block]:
                pickle.dump(message, to_worker, protocol=pickle.HIGHEST_PROTOCOL)
            self._first = []
            to_worker.flush()
            succeeded, result = pickle.load(from_worker)  # noqa: S301 - from our own worker
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            raise UserError(
                "A worker process died while working on the rows, most likely because memory ran out. Nothing was "
                "published; free memory and materialize again."
            ) from error
        if not succeeded:
            raise RuntimeError(f"A worker process failed with {result}")
        return result

    def stop(self) -> None:
        """End the process; a block that it still works on is lost."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _serve() -> None:
    """What a worker process does: prepare the work once, then serve blocks of its input until that ends."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the work prints must not end up among the replies
    make_work, arguments = pickle.load(requests)  # noqa: S301 - from the parent, through a pipe of its own
    work = make_work(*arguments)
    while True:
        try:
            block = pickle.load(requests)  # noqa: S301
        except EOFError:
            return
        try:
            reply = (True, work(block))
        except Exception as error:  # noqa: BLE001 - it is the parent that must fail
            reply = (False, f"{type(error).__name__}: {error}")
        pickle.dump(reply, replies, protocol=pickle.HIGHEST_PROTOCOL)
        replies.flush()


if __name__ == "__main__":
    _serve()
