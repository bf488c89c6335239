"""`python -m po_assets.review land [--root artifacts]`: take the corrections of the review file."""

import argparse
import sys

from upath import UPath

from po_assets.dag import Artifacts
from po_assets.errors import UserError
from po_assets.review.corrections import Landed, land_corrections
from po_assets.storage import Layout


def main(arguments: list[str] | None = None) -> int:
    """Land corrected rows, change corrected cases, and say so; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m po_assets.review", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("land", help="take the corrections of the review file")
    command.add_argument("--root", help="artifacts root (default: PO_ARTIFACTS_ROOT, else artifacts/)")
    given = parser.parse_args(arguments)
    layout = Layout(UPath(given.root)) if given.root else Artifacts().layout
    try:
        landed = land_corrections(layout)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("\n".join(_said(landed, layout)) + "\n")
    return 0


def _said(landed: Landed, layout: Layout) -> list[str]:
    said = []
    if landed.rows:
        said.append(
            f"{len(landed.rows)} corrected rows landed in incoming/{landed.file}; each replaces its old row when the "
            "graph runs (the sensor starts it)."
        )
    if landed.cases:
        said.append(
            f"{len(landed.cases)} evaluation cases ({', '.join(landed.cases)}) changed in "
            "evaluation/po_eval_cases.jsonl: commit the file. The next evaluation uses them; none is trained on."
        )
    if landed.right:
        said.append(
            f"{len(landed.right)} answers were found right and are not shown again "
            f"(curation/{layout.found_right.name})."
        )
    if landed.untouched:
        said.append(f"{landed.untouched} answers were left as they are.")
    return [*said, *landed.notes]


if __name__ == "__main__":
    sys.exit(main())
