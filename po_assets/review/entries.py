"""Files of entries that people correct in an editor: written, guarded, read again; and what was corrected lands.

YAML and not JSON lines, because rows hold documents of many lines: in block scalars they stand without a single escape.
What stands in an entry belongs to `review_file` and `rejected`.
"""

import argparse
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson
import yaml
from upath import UPath

from po_assets.dag import Artifacts
from po_assets.errors import UserError
from po_assets.storage import Layout, replace_file
from po_assets.storage.strict_yaml import read_strict_yaml
from po_assets.text import first_upper, say

_SEAL = "# digest of this file as it was written: "
Action = Callable[[Layout, Callable[[str], object]], int]
"""Gets the artifacts and what prints a line; gives the exit status."""


def add_actions(
    parser: argparse.ArgumentParser, actions: Mapping[str, tuple[Action, str]]
) -> list[argparse.ArgumentParser]:
    """What can be done with a file of entries, by name, each with its line of help; their parsers."""
    parsers = []
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, (act, line) in actions.items():
        command = commands.add_parser(name, help=line, description=f"{first_upper(line)}.")
        command.add_argument("--root", help="artifacts root (default: PO_ARTIFACTS_ROOT, else artifacts/)")
        command.set_defaults(handle=lambda options, act=act: act(_layout(options.root), say))
        parsers.append(command)
    return parsers


def _layout(root: str | None) -> Layout:
    return Layout(UPath(root)) if root else Artifacts().layout


def write_entries(path: UPath, header: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """A file of entries for people: texts of several lines as block scalars, and a digest that shows any edit."""
    texts = [
        yaml.dump([entry], Dumper=_BlockDumper, sort_keys=False, allow_unicode=True, width=110) for entry in entries
    ]
    head, body = (text.encode("utf-8", "backslashreplace") for text in (header, "\n".join(texts) or "[]\n"))
    replace_file(path, head + f"{_SEAL}{_short_digest(head + body)}\n\n".encode() + body)


def refuse_edited(path: UPath, command: str, again: str) -> None:
    """Raise `UserError` if the file holds edits that `command` has not taken; `again` is what would overwrite it."""
    if not path.exists():
        return
    head, _, rest = path.read_bytes().partition(_SEAL.encode())
    written, _, body = rest.partition(b"\n\n")
    if written.decode(errors="replace") != _short_digest(head + body):
        raise UserError(
            f"The file {str(path)!r} was edited and its corrections were not taken yet. Take them with `{command}`, or "
            f"move or delete the file (also if it holds notes only), then {again}."
        )


def read_entries(path: UPath, first: str) -> list[Any]:
    """What a person left of such a file.

    Raises:
        UserError: there is none (`first` says how to come by one), it is not a YAML list any more, or an empty one.
    """
    if not path.exists():
        raise UserError(f"There is no review file {str(path)!r}. {first}")
    try:
        entries = read_strict_yaml(path.read_text(encoding="utf-8"), any_escape=True)
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not YAML any more: {error}. Mind the indentation of the blocks.") from error
    if not isinstance(entries, list):
        raise UserError(
            f"{str(path)!r} must hold a list of entries, each starting with `-`, got {str(entries)[:40]!r}."
        )
    if not entries:
        raise UserError(f"{str(path)!r} holds no entry: there is nothing to take.")
    return entries


def put_aside(path: UPath) -> None:
    """Rename the file after its content, so that the next candidates get a fresh one and no edit is lost."""
    content = path.read_bytes()
    replace_file(path.parent / f"{path.stem}.landed-{_short_digest(content)}{path.suffix}", content)
    path.unlink()


def plain(text: str) -> str:
    """A text without the white space at the ends of its lines, which block scalars do not keep."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def land_lines(path: UPath, lines: Iterable[bytes]) -> bool:
    """Make `path` hold exactly these lines, in one step; whether anything had to be written."""
    content = b"".join(line + b"\n" for line in lines)
    if path.exists() and path.read_bytes() == content:
        return False
    replace_file(path, content)
    return True


def land_new_file(layout: Layout, stem: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Land rows under a name made of their content, so that landing twice is landing once; the name."""
    lines = [orjson.dumps(row) for row in rows]
    digest = _short_digest(b"\n".join(lines))
    name = f"{stem}-{digest}.jsonl"
    land_lines(layout.incoming / name, lines)
    return name


def _short_digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=5).hexdigest()


class _BlockDumper(yaml.SafeDumper):
    """Texts of several lines as block scalars."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_BlockDumper.add_representer(str, _represent_text)
