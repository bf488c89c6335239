"""Rejected lines back to work: written out for an editor with their reasons, checked, and landed as a new file.

A line that is a JSON object stands there as YAML, its documents without escapes; any other as its text. What is not
readable as text at all is counted and left where it is. A corrected line is taken out of the file it came in, so that
it is not rejected again; the verbatim old one stays in the review file, which is kept.
"""

import argparse
import codecs
import os
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import orjson
import yaml
from upath import UPath

from po_assets.errors import UserError, all_faults
from po_assets.intake.lines import Line, Reason, Rejected
from po_assets.intake.normalization import line_id, normalize
from po_assets.review.entries import (
    add_actions,
    land_new_file,
    put_aside,
    read_entries,
    refuse_edited,
    write_entries,
)
from po_assets.storage import Layout, read_rows, replace_file
from po_assets.text import amount, verb

MOST_ENTRIES = 200
"""More are not corrected by hand; the next export brings the next ones."""

_HEADER = """\
# Rejected lines, in landing order; `reason` says what is wrong with each. {more}
#
# Correct `row` (or `text`, where the line is not JSON). Leave everything else as it is; an entry that you delete or
# leave unchanged stays rejected. Then
#
#     {command}
#
# checks all corrected lines before it lands any, as a new file in incoming/, and takes the old ones out of theirs.
"""


def add_rejected(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Landed lines that could not be used."""
    written = "write the rejected lines with their reasons into a file, and open it in $EDITOR"
    landed = "land the corrected lines, and take the old ones out of their files"
    return add_actions(parser, {"edit": (edit_rejected, written), "land": (land_rejected, landed)})


def rejected_file(layout: Layout) -> UPath:
    """The file in which rejected lines are corrected."""
    return layout.review_file.with_name("po_rejected_rows.yaml")


def export_rejected(layout: Layout) -> UPath:
    """Write the rejected lines of the last normalization into a file for people, at most `MOST_ENTRIES`.

    Raises:
        UserError: nothing was normalized yet, no line is rejected that could be corrected, or the file holds edits.
    """
    path = rejected_file(layout)
    command = layout.command("rejected land")
    refuse_edited(path, command, "write it anew")
    editable = (record for record in _quarantine(layout) if "only_the_first_bytes" not in record)
    whole = list(islice((record for record in editable if record.get("text", "").strip()), MOST_ENTRIES + 1))
    if not whole:
        rejected = sum(1 for _ in _quarantine(layout))
        raise UserError(
            f"No rejected line can be corrected here: {amount(rejected, 'line')} {verb(rejected, 'is', 'are')} rejected"
            + (", none of them readable as text. See distillation/po_teacher_rejected.jsonl." if rejected else ".")
        )
    more = f"Only the first {MOST_ENTRIES} are here." if len(whole) > MOST_ENTRIES else ""
    write_entries(path, _HEADER.format(more=more, command=command), [_entry(record) for record in whole[:MOST_ENTRIES]])
    return path


def land_rejected(layout: Layout, say: Callable[[str], object]) -> int:
    """Land the corrected lines as a new file and take the old ones out of theirs; the review file is put aside.

    Raises:
        UserError: the file cannot be read, or a corrected line would be rejected again; every fault is listed, and
            nothing was landed.
    """
    path = rejected_file(layout)
    entries = read_entries(path, f"Write it with `{layout.command('rejected edit')}`.")
    originals = {_place(record): record for record in _quarantine(layout)}
    corrected: list[tuple[Mapping[str, Any], dict[str, Any]]] = []
    faults, unchanged, places = list[str](), 0, set[str]()
    for number, entry in enumerate(entries, start=1):
        place = entry.get("from") if isinstance(entry, dict) else None
        record = originals.get(str(place))
        if str(place) in places:
            faults.append(f"entry {number} ({place}) is a second one of that line; keep one.")
        places.add(str(place))
        if record is None or entry.get("id") != _entry(record)["id"]:
            faults.append(f"entry {number} ({place}) is not a rejected line of the last normalization.")
        elif all(entry.get(key) == value for key, value in _entry(record).items()):
            unchanged += 1
        else:
            try:
                corrected.append((record, _row(entry)))
            except Rejected as rejected:
                faults.append(f"{place} would be rejected again ({rejected.reason}): {rejected.detail}")
    if faults:
        raise all_faults(f"{amount(len(faults), 'fault')} in {str(path)!r}, nothing was landed", faults)
    if corrected:
        lines = amount(len(corrected), "corrected line")
        name = land_new_file(layout, "corrected", [row for _, row in corrected])
        kept = _take_out(layout, [record for record, _ in corrected])
        put_aside(path)
        say(f"{lines} landed in incoming/{name}, and left the files that brought them.")
        for sentence in kept:
            say(sentence)
    if unchanged:
        were, stay = verb(unchanged, "was", "were"), verb(unchanged, "stays", "stay")
        say(f"{amount(unchanged, 'line')} {were} left unchanged and {stay} rejected.")
    return 0


def edit_rejected(layout: Layout, say: Callable[[str], object]) -> int:
    """Write the file, and open it in `$VISUAL` or `$EDITOR` where a person sits at the terminal."""
    path = export_rejected(layout)
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if editor and sys.stdin.isatty():
        subprocess.run([*shlex.split(editor), str(path)], check=False)  # noqa: S603 - the user's own editor
    say(f"The rejected lines stand in {path}. Correct them, then run: {layout.command('rejected land')}")
    return 0


def _quarantine(layout: Layout) -> Any:
    if not layout.rejected.exists():
        raise UserError(f"There is no {str(layout.rejected)!r} yet. Materialize normalized_teacher first.")
    return read_rows(layout.rejected)


def _entry(record: Mapping[str, Any]) -> dict[str, Any]:
    """A quarantined line for an editor."""
    text = str(record.get("text", ""))
    said = {"from": _place(record), "id": line_id(text.encode()), "reason": f"{record['reason']}: {record['detail']}"}
    try:
        row = orjson.loads(text)
        as_yaml = isinstance(row, dict) and yaml.safe_load(yaml.safe_dump(row)) == row
    except (ValueError, RecursionError, yaml.YAMLError):
        as_yaml = False
    return said | ({"row": row} if as_yaml and record["reason"] != "duplicate JSON key" else {"text": text})


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The corrected line as it lands. Raises `Rejected` if it would be rejected again."""
    try:
        line = orjson.dumps(entry["row"]) if "row" in entry else str(entry.get("text")).strip().encode()
    except (TypeError, UnicodeEncodeError) as error:
        raise Rejected(Reason.NOT_JSON, f"it holds what JSON cannot carry ({error})") from None
    normalize(Line("", 1, line, len(line)))
    row: dict[str, Any] = orjson.loads(line)
    return row


def _take_out(layout: Layout, corrected: Sequence[Mapping[str, Any]]) -> list[str]:
    """Take lines out of the files that brought them; what could not be, in sentences."""
    by_file: dict[str, Counter[bytes]] = defaultdict(Counter)
    for record in corrected:
        by_file[record["file"]][record["text"].encode().strip()] += 1
    said = []
    for name, wanted in by_file.items():
        landed, left = layout.incoming / name, list[bytes]()
        path = landed.resolve()  # a file that is linked from elsewhere brought them all the same
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        for line in lines:
            bare = line.strip().removeprefix(codecs.BOM_UTF8)
            if wanted[bare] > 0:
                wanted[bare] -= 1
            else:
                left.append(line)
        if wanted.total():
            said.append(f"{name} has changed since: {amount(wanted.total(), 'line')} to take out of it not found.")
        if lines and not left:
            path.unlink()
            landed.unlink(missing_ok=True)
        elif len(left) < len(lines):
            replace_file(path, b"".join(left))
    return said


def _place(record: Mapping[str, Any]) -> str:
    return f"{record['file']}:{record['line']}"
