"""`python -m po_assets.sample_data [--root artifacts]`: write the committed sample data anew."""

import argparse
import sys
from pathlib import Path

from po_assets.sample_data.landing import SEED, write_sample_data


def main() -> None:
    """Write the files and say how many rows each holds."""
    parser = argparse.ArgumentParser(prog="python -m po_assets.sample_data", description=main.__doc__)
    parser.add_argument("--root", type=Path, default=Path("artifacts"), help="artifacts root (default: artifacts)")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of all draws (default: %(default)s)")
    arguments = parser.parse_args()
    for path, rows in write_sample_data(arguments.root, arguments.seed).items():
        sys.stdout.write(f"{path}: {rows} rows\n")


if __name__ == "__main__":
    main()
