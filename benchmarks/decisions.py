"""Memory of the one thing that grows with the number of rows: the selection's decisions.

    python -m benchmarks.decisions                 ten million rows
    python -m benchmarks.decisions --keep-all      the same without the limit of 400 samples, duplicates dropped

Everything else of the pass over the rows works on blocks. The judgements are drawn, not made from rows: their number
and types are what counts here, and ten million rows would be 50 GB.
"""

import argparse
import resource
from collections.abc import Iterator
from typing import Any

import numpy as np

from po_assets.dataset.selection import _JUDGED, gather, select
from po_assets.storage.workers import BLOCK_ROWS

CONFLICTS_SHARE = 0.04
TOKENS, MAX_TOKENS = 800, 2048


def main() -> None:
    """Gather and decide, and print the largest resident set before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--keep-all", action="store_true")
    arguments = parser.parse_args()
    print(f"libraries alone  {peak():>6,.0f} MiB")
    decisions = gather(judgements(arguments.rows), ["a.jsonl"], [])
    print(f"gathered         {peak():>6,.0f} MiB")
    everything = arguments.keep_all
    select(
        decisions,
        MAX_TOKENS,
        lambda rows: (TOKENS for _ in rows),
        max_samples=None if everything else 400,
        drop_duplicates=everything,
    )
    print(f"decided          {peak():>6,.0f} MiB  ({len(decisions):,} rows)")


def judgements(rows: int) -> Iterator[dict[str, Any]]:
    """Blocks of judgements as the worker processes send them, drawn at random."""
    random = np.random.default_rng(0)
    for start in range(0, rows, BLOCK_ROWS):
        drawn = {
            name: random.integers(0, 2**63, BLOCK_ROWS, np.uint64)
            if dtype is np.uint64
            else np.zeros(BLOCK_ROWS, dtype)
            for name, dtype in _JUDGED.items()
        }
        drawn["line"] += np.arange(start, start + BLOCK_ROWS)
        drawn["conflicts"] = random.random(BLOCK_ROWS) < CONFLICTS_SHARE
        drawn["replaces"][:] = 0
        yield drawn


def peak() -> float:
    """Largest resident set of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
