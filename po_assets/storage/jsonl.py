"""JSONL files: one writer, staged beside their place and published in one step with a manifest, and one reader.

What the lines mean belongs to the stages; frames of pandas belong to `dag.artifacts`.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, BinaryIO

import orjson
from upath import UPath

from po_assets.errors import UserError
from po_assets.storage.files import atomic_file, full_disk_named, is_local, open_buffered, publish_file, staging_path
from po_assets.storage.manifest import Manifest, write_manifest

CHUNK_ROWS = 2_000


class LineWriter:
    """Appends lines to an open file and keeps count and digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.rows = 0
        self.inputs: dict[str, str] = {}
        """Digests of what the file was made from; `published_lines` puts them into its manifest."""

    def write(self, lines: list[bytes]) -> None:
        """Append lines verbatim, each of which gets its newline."""
        if lines:
            block = b"\n".join(lines) + b"\n"
            self._file.write(block)
            self._digest.update(block)
            self.rows += len(lines)

    @property
    def sha256(self) -> str:
        """Digest (hex) of what has been written."""
        return self._digest.hexdigest()


@contextlib.contextmanager
def published_lines(path: UPath) -> Iterator[LineWriter]:
    """A writer whose file replaces `path` when the block ends well, and vanishes when it raises.

    For files that are filled beside a table, in the same pass; a table itself goes through `stage_lines`.
    """
    with atomic_file(path) as file:
        writer = LineWriter(file)
        yield writer
    write_manifest(path, Manifest(writer.sha256, writer.rows, writer.inputs))


@dataclass(frozen=True)
class StagedTable:
    """A written table that is not yet published; `sha256` is of the file's bytes."""

    target: UPath
    staging: UPath
    rows: int
    sha256: str
    manifest: Manifest | None = None
    """What the table was made from; `with_manifest` sets it, the IO manager publishes it."""

    def with_manifest(
        self,
        *,
        inputs: dict[str, str] | None = None,
        config: str = "",
        code_version: str = "",
        extra: dict[str, Any] | None = None,
    ) -> "StagedTable":
        """The same table with a manifest that names its inputs, its settings and the code that made it."""
        manifest = Manifest(self.sha256, self.rows, inputs or {}, config, code_version, extra or {})
        return replace(self, manifest=manifest)

    def publish(self) -> None:
        """Put the table in its place, then its manifest."""
        publish_file(self.staging, self.target)
        write_manifest(self.target, self.manifest or Manifest(sha256=self.sha256, rows=self.rows))


def stage_lines(target: UPath, lines: Iterable[bytes]) -> StagedTable:
    """Write lines verbatim beside `target`, each ended by one newline."""
    staging = staging_path(target)
    try:
        with full_disk_named(target, staging), staging.open("wb") as file:
            writer = LineWriter(file)
            remaining = iter(lines)
            while batch := list(islice(remaining, CHUNK_ROWS)):
                writer.write(batch)
            file.flush()
            if is_local(target):
                os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            staging.unlink()
        raise
    return StagedTable(target, staging, writer.rows, writer.sha256)


def read_rows(path: UPath) -> Iterator[dict[str, Any]]:
    """The rows of a table that this project wrote, one at a time.

    Raises:
        FileNotFoundError: the table is not there.
        UserError: a line is not a JSON object; the message names file and line.
    """
    with open_buffered(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise UserError(f"{path}, line {number} is not JSON ({error}): materialize it again") from error
            if not isinstance(record, dict):
                raise UserError(f"{path}, line {number} must be a JSON object, got {line[:60]!r}: materialize it again")
            yield record
