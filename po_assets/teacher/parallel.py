"""Work on blocks of rows in worker processes, in order and in bounded memory.

What is done to a block belongs to the caller. Few blocks are worked on in this process: starting workers takes a
second or two, which only pays for tables of thousands of rows.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Block = TypeVar("Block")
Result = TypeVar("Result")

BLOCK_ROWS = 250
BLOCK_BYTES = 4 << 20
"""A block of rows travels to a worker process: large enough to make the trip cheap, small enough for flat memory."""

BLOCKS_WORTH_A_POOL = 8
_WAITING_PER_WORKER = 3
"""Blocks handed out ahead: enough that no worker idles, few enough that memory stays flat."""


class WorkerLostError(RuntimeError):
    """A worker process died; the message says what usually kills it."""


def available_cpus() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        WorkerLostError: a worker died, for lack of memory most likely.
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
    # Dagster's process has threads, which a plain fork would leave in an undefined state.
    context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    waiting: deque[Future[Result]] = deque()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare, initargs=(make_work, arguments))
    try:
        for block in blocks:
            waiting.append(pool.submit(_run, block))
            if len(waiting) >= workers * _WAITING_PER_WORKER:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise WorkerLostError(
            "A worker process died while working on the rows, most likely because memory ran out. Nothing was "
            "published; free memory and materialize again."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: Callable[[Any], Any] | None = None  # one process, one function: set by the pool before the first block


def _prepare(make_work: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    global _work  # noqa: PLW0603  the pool offers no other way to keep something in a worker
    _work = make_work(*arguments)


def _run(block: Any) -> Any:
    if _work is None:
        raise RuntimeError("the worker was not prepared")
    return _work(block)
