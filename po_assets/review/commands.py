"""The commands `po-assets review land` and `po-assets rejected edit|land`: what people corrected goes back to work."""

import argparse
from collections.abc import Callable

from upath import UPath

from po_assets.dag import Artifacts
from po_assets.review.rejected import edit_rejected, land_rejected
from po_assets.review.review_file import land
from po_assets.storage import Layout
from po_assets.text import say

Action = tuple[str, Callable[[Layout, Callable[[str], object]], int], str]


def add_review(parser: argparse.ArgumentParser) -> None:
    """Answers that people corrected in the file of `review_candidates`."""
    _add(parser, ("land", land, "take the corrections of the review file"))


def add_rejected(parser: argparse.ArgumentParser) -> None:
    """Landed lines that could not be used."""
    _add(
        parser,
        ("edit", edit_rejected, "write the rejected lines with their reasons into a file, and open it in $EDITOR"),
        ("land", land_rejected, "land the corrected lines, and take the old ones out of their files"),
    )


def _add(parser: argparse.ArgumentParser, *actions: Action) -> None:
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, act, line in actions:
        command = commands.add_parser(name, help=line, description=f"{line[0].upper()}{line[1:]}.")
        command.add_argument("--root", help="artifacts root (default: PO_ARTIFACTS_ROOT, else artifacts/)")
        command.set_defaults(handle=lambda options, act=act: act(_layout(options.root), say))


def _layout(root: str | None) -> Layout:
    return Layout(UPath(root)) if root else Artifacts().layout
