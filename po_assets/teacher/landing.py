"""The landing folder: which files lie in it, and the snapshot that copies their lines verbatim.

What a line means belongs to `lines` and `formats`; watching the folder belongs to `automation`.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from upath import UPath

from po_assets.storage import Manifest, StagedTable, open_buffered
from po_assets.storage.atomic import is_local, staging_path
from po_assets.teacher.lines import MAX_LINE_BYTES, Line

_BLOCK = 1 << 20


class LandingError(Exception):
    """The landing folder holds nothing to take in; the message says where and what to do."""


@dataclass(frozen=True)
class Source:
    """One landed file as it was read: name, sha256 (hex) of its bytes, and its number of lines."""

    file: str
    sha256: str
    rows: int


def is_landed_name(name: str) -> bool:
    """Whether a file of this name is taken in; hidden ones are those that other programs are still writing."""
    return name.endswith(".jsonl") and not name.startswith(".")


def landed_files(incoming: UPath) -> list[UPath]:
    """The landed files in name order.

    Raises:
        LandingError: the folder is not there or holds no `*.jsonl` file.
    """
    if not incoming.is_dir():
        raise LandingError(
            f"The landing folder {str(incoming)!r} does not exist. Create it and put teacher rows into it as *.jsonl, "
            "or point PO_ARTIFACTS_ROOT to where it is."
        )
    files = sorted(
        (path for path in incoming.iterdir() if is_landed_name(path.name)),
        key=lambda path: path.name,
    )
    if not files:
        raise LandingError(f"The landing folder {str(incoming)!r} holds no *.jsonl file. Put teacher rows into it.")
    return files


def snapshot(files: list[UPath], target: UPath) -> tuple[StagedTable, list[Source]]:
    """Copy all lines of the files, one file after the other, verbatim, beside `target`; memory stays at one block.

    Every line of the copy ends in a newline, also the last one of a file that lacks it; nothing else is changed.

    Raises:
        LandingError: the files hold not one line.
    """
    staging = staging_path(target)
    whole, sources = hashlib.sha256(), []
    try:
        with staging.open("wb") as out:
            for path in files:
                digest, rows, last = hashlib.sha256(), 0, b"\n"
                with path.open("rb") as file:
                    while block := file.read(_BLOCK):
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


def _refuse_nothing(sources: list[Source], incoming: UPath) -> None:
    if not any(source.rows for source in sources):
        raise LandingError(
            f"The landing folder {str(incoming)!r} holds {len(sources)} *.jsonl files and all are empty. "
            "Put teacher rows into it."
        )


def sources_of(manifest: Manifest | None, raw: UPath) -> list[Source]:
    """The landed files that a raw snapshot was made from, in order.

    Raises:
        LandingError: the snapshot has no manifest that names them.
    """
    if manifest is None or "sources" not in manifest.extra or not raw.exists():
        raise LandingError(f"There is no complete snapshot at {str(raw)!r}. Materialize raw_teacher again.")
    return [Source(**source) for source in manifest.extra["sources"]]


def sources_record(sources: list[Source]) -> list[dict[str, Any]]:
    """The sources as a manifest keeps them."""
    return [asdict(source) for source in sources]


def snapshot_lines(raw: UPath, sources: list[Source]) -> Iterator[Line]:
    """The lines of a raw snapshot, each with the file and the line number under which it landed.

    Raises:
        LandingError: the snapshot has fewer or more lines than its sources.
    """
    with open_buffered(raw) as file:
        for source in sources:
            for number in range(1, source.rows + 1):
                data = file.readline(MAX_LINE_BYTES)
                if not data:
                    raise LandingError(
                        f"The snapshot {str(raw)!r} ends before line {number} of {source.file}: it is not the one its "
                        "manifest describes. Materialize raw_teacher again."
                    )
                length = len(data)
                tail = data
                while not tail.endswith(b"\n") and (tail := file.readline(_BLOCK)):
                    length += len(tail)
                if tail.endswith(b"\n"):
                    length -= 1
                    data = data[:-1] if data.endswith(b"\n") else data
                yield Line(source.file, number, data, length)
        if file.read(1):
            raise LandingError(
                f"The snapshot {str(raw)!r} has more lines than its manifest says. Materialize raw_teacher again."
            )
