"""The landing folder: which files lie in it, and the snapshot that copies their lines verbatim.

What a line means belongs to `lines` and `formats`; watching the folder belongs to `automation`.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from upath import UPath

from po_assets.errors import UserError
from po_assets.intake.lines import MAX_LINE_BYTES, Line
from po_assets.storage import StagedTable, full_disk_named, is_local, open_buffered, read_manifest, staging_path
from po_assets.text import amount

_BLOCK = 1 << 20
_OPENING = 64
"""Bytes of a file's first line that go with each of its lines."""
_NAMED = 20
"""So many of the entries that are not taken in are named."""


@dataclass(frozen=True)
class Source:
    """One landed file as it was read: name, sha256 (hex) of its bytes, and its number of lines."""

    file: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class LandingFolder:
    """What one listing of the landing folder shows."""

    place: UPath
    taken: dict[str, dict[str, Any]]
    """What the file system says of each file that is taken in, by name, in name order."""
    skipped: dict[str, str]
    """Why each other entry is not, with the way out; hidden ones are none of our business."""

    @property
    def files(self) -> list[UPath]:
        """The files that are taken in, in name order."""
        return [self.place / name for name in self.taken]


def is_landed_name(name: str) -> bool:
    """Whether a file of this name is taken in; hidden ones are those that other programs are still writing."""
    return name.lower().endswith(".jsonl") and not name.startswith(".")


def list_landing(incoming: UPath) -> LandingFolder:
    """What lies in the landing folder, from one listing: the files that are taken in, and why the others are not.

    Raises:
        UserError: the folder is not there, cannot be listed or holds no `*.jsonl` file that can be read.
    """
    if not incoming.is_dir():
        raise UserError(
            f"The landing folder {str(incoming)!r} does not exist. Create it and put teacher rows into it as *.jsonl, "
            "or point PO_ARTIFACTS_ROOT to where it is."
        )
    try:
        listed = {str(entry["name"]).rsplit("/", 1)[-1]: entry for entry in incoming.fs.ls(incoming.path, detail=True)}
    except OSError as error:
        raise UserError(
            f"The landing folder {str(incoming)!r} cannot be listed: {error.strerror or error}. Let this user read it."
        ) from error
    taken, skipped = {}, {}
    for name, listed_entry in sorted(listed.items()):
        # An object store lists the folder itself, as an object without a name.
        if not name or name.startswith(".") or str(listed_entry["name"]).rstrip("/") == incoming.path.rstrip("/"):
            continue
        entry = _followed(incoming, listed_entry)
        if reason := _unsupported_reason(name, entry, here=is_local(incoming)):
            skipped[name] = reason
        else:
            taken[name] = entry
    if not taken:
        others = "; ".join(f"'{_written(name)}' {reason}" for name, reason in list(skipped.items())[:_NAMED])
        raise UserError(
            f"The landing folder {str(incoming)!r} holds no *.jsonl file. Put teacher rows into it."
            + (f" It holds {amount(len(skipped), 'other name')}: {others}." if others else "")
        )
    return LandingFolder(incoming, taken, skipped)


def _followed(incoming: UPath, entry: dict[str, Any]) -> dict[str, Any]:
    """The entry, or what it links to; a link that leads nowhere stays what it is."""
    if entry.get("islink"):
        with contextlib.suppress(OSError):
            return {**incoming.fs.info(entry["name"]), "islink": False}
    return entry


def _unsupported_reason(name: str, entry: dict[str, Any], *, here: bool) -> str | None:
    """Why an entry is not taken in, and the way out; None for one that is."""
    if entry["type"] == "directory":
        return "is a folder; put its *.jsonl files directly into the landing folder"
    if not is_landed_name(name):
        return "does not end in .jsonl; if it holds teacher rows, unpack it or rename it"
    if entry["type"] != "file":
        what = "a link to nothing" if entry.get("islink") else "not a regular file"
        return f"is {what}; put the file itself there, or remove it"
    if _written(name) != name:
        return "has a name that is not UTF-8; rename it"
    if here and not os.access(entry["name"], os.R_OK):
        return "may not be read by this user; change its permissions (chmod a+r)"
    return None


def _written(name: str) -> str:
    """A file's name as it can be written down; bytes that are not UTF-8 as their codes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def snapshot(files: list[UPath], target: UPath) -> tuple[StagedTable, list[Source]]:
    """Copy all lines of the files, one file after the other, verbatim, beside `target`; memory stays at one block.

    Every line of the copy ends in a newline, also the last one of a file that lacks it; nothing else is changed.

    Raises:
        UserError: the files hold not one line, or one of them cannot be read.
    """
    staging = staging_path(target)
    whole, sources = hashlib.sha256(), []
    try:
        with full_disk_named(target, staging), staging.open("wb") as out:
            for path in files:
                digest, rows, last = hashlib.sha256(), 0, b"\n"
                for block in _blocks(path):
                    digest.update(block)
                    whole.update(block)
                    out.write(block)
                    rows += block.count(b"\n")
                    last = block[-1:]
                if last != b"\n":
                    whole.update(b"\n")
                    out.write(b"\n")
                    rows += 1
                sources.append(Source(path.name, digest.hexdigest(), rows))
            _refuse_nothing(sources, files[0].parent)
            out.flush()
            if is_local(target):
                os.fsync(out.fileno())
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            staging.unlink()
        raise
    return StagedTable(target, staging, sum(source.rows for source in sources), whole.hexdigest()), sources


def _blocks(path: UPath) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block
    except OSError as error:
        raise UserError(
            f"The landed file {path.name!r} cannot be read: {error.strerror or error}. Make it readable or take it out "
            "of the landing folder, and materialize raw_teacher again."
        ) from error


def _refuse_nothing(sources: list[Source], incoming: UPath) -> None:
    if not any(source.rows for source in sources):
        raise UserError(
            f"The landing folder {str(incoming)!r} holds {len(sources)} *.jsonl files and all are empty. "
            "Put teacher rows into it."
        )


def sources_of(raw: UPath) -> list[Source]:
    """The landed files that a raw snapshot was made from, in order.

    Raises:
        UserError: the snapshot has no manifest that names them.
    """
    manifest = read_manifest(raw)
    if manifest is None or "sources" not in manifest.extra or not raw.exists():
        raise UserError(f"There is no complete snapshot at {str(raw)!r}. Materialize raw_teacher again.")
    return [Source(**source) for source in manifest.extra["sources"]]


def skipped_record(folder: LandingFolder) -> dict[str, Any]:
    """What was not taken in, as a manifest keeps it: how many entries, and the first of them with the reason."""
    first = list(folder.skipped.items())[:_NAMED]
    rows = [{"file": _written(name), "reason": reason} for name, reason in first]
    return {"count": len(folder.skipped), "first": rows}


def snapshot_lines(raw: UPath, sources: list[Source]) -> Iterator[Line]:
    """The lines of a raw snapshot, each with the file and the line number under which it landed.

    Raises:
        UserError: the snapshot has fewer or more lines than its sources.
    """
    with open_buffered(raw) as file:
        for source in sources:
            opening = b""
            for number in range(1, source.rows + 1):
                data = file.readline(MAX_LINE_BYTES)
                if not data:
                    raise UserError(
                        f"The snapshot {str(raw)!r} ends before line {number} of {source.file}: it is not the one its "
                        "manifest describes. Materialize raw_teacher again."
                    )
                length, tail = len(data), data
                while not tail.endswith(b"\n") and (tail := file.readline(_BLOCK)):
                    length += len(tail)
                length -= tail.endswith(b"\n")
                data = data.removesuffix(b"\n")
                opening = opening or data[:_OPENING]
                yield Line(source.file, number, data, length, opening)
        if file.read(1):
            raise UserError(
                f"The snapshot {str(raw)!r} has more lines than its manifest says. Materialize raw_teacher again."
            )
