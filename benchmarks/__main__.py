"""`make bench`: every benchmark, one after the other, each in a process of its own.

Each compares this project with what one would otherwise use, in one run, on this machine; read the ratios. A single one
is `python -m benchmarks.rows` (or `training`, `generation`, `teacher_batch`), with `--help` for its sizes.
"""

import subprocess
import sys

NAMES = ("rows", "training", "generation", "teacher_batch")


def main() -> int:
    """Run all of them; the exit status is the number of those that failed."""
    failed = 0
    for name in NAMES:
        print(f"\n== {name}", flush=True)
        failed += subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
