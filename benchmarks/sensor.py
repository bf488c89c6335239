"""Seconds a tick of the sensor `new_teacher_data` takes over many landed files, beside reading all of them each time.

    python -m benchmarks.sensor                   10,000 files of some 2 kB
    python -m benchmarks.sensor --files 1000 --bytes 100000

* `ours`: the sensor as Dagster evaluates it, with its cursor: the first tick, ticks in which nothing changed, and one
  after a single file changed.
* `hash all`: the digest of every file at every tick, which is what a sensor without a memory has to do.

Both on the same folder, one after the other, so that the files are in the page cache for both.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import machine

TICKS = 5


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--bytes", type=int, default=2_000)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        incoming = Path(folder, "incoming")
        incoming.mkdir()
        for number in range(arguments.files):
            land(incoming / f"{number:06d}.jsonl", f"{number} ".ljust(arguments.bytes, "x"))
        measure(Path(folder), arguments.files)


def land(path: Path, text: str) -> None:
    """Write a file that was complete a minute ago."""
    path.write_text(text)
    minute_ago = time.time() - 60
    os.utime(path, (minute_ago, minute_ago))


def measure(root: Path, files: int) -> None:
    """Time both ways over the folder under `root`."""
    import dagster as dg

    from po_assets.automation.landing import new_teacher_data
    from po_assets.dag import Artifacts
    from po_assets.intake.landing import list_landing
    from po_assets.storage import digest_of, file_digest

    artifacts = Artifacts(root=str(root))
    with dg.DagsterInstance.ephemeral(tempdir=str(root / "instance")) as instance:
        cursor: str | None = None

        def tick() -> str:
            nonlocal cursor
            context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"artifacts": artifacts})
            result = new_teacher_data(context)
            if isinstance(result, dg.SensorResult):
                cursor = result.cursor
                return "run requested" if result.run_requests else "skipped"
            return "skipped"

        def hash_all() -> str:
            return digest_of({path.name: file_digest(path) for path in list_landing(artifacts.layout.incoming).files})

        hash_all()  # the files are in the page cache for every way
        all_seconds = timed(hash_all)
        first = once(tick)
        unchanged = timed(tick)
        land(root / "incoming" / "000007.jsonl", "changed")
        changed = once(tick)
    print(f"{files:,} files, cursor of {len(cursor or ''):,} bytes")
    for name, seconds in (
        ("hash all, every tick", all_seconds),
        ("ours, first tick", first),
        ("ours, nothing changed", unchanged),
        ("ours, one file changed", changed),
    ):
        print(f"{name:<24} {seconds:8.3f} s   {all_seconds / seconds:6.1f} times as fast as hashing all")


def timed(work: Callable[[], str]) -> float:
    """Median seconds of some repetitions."""
    return statistics.median(once(work) for _ in range(TICKS))


def once(work: Callable[[], str]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
