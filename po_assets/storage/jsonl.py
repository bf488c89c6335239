"""JSONL tables: read whole or in chunks, staged beside their place, published in one step with their manifest."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import orjson
import pandas as pd
from upath import UPath

from po_assets.storage.atomic import is_local, publish_file, staging_path
from po_assets.storage.manifest import Manifest, write_manifest
from po_assets.storage.reading import open_buffered

CHUNK_ROWS = 2_000


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

    def discard(self) -> None:
        """Remove the staged file; what is published stays."""
        with contextlib.suppress(FileNotFoundError):
            self.staging.unlink()


@dataclass(frozen=True)
class TableStream:
    """A published table that may not fit in memory: iterating gives frames of at most `CHUNK_ROWS` rows, every time."""

    path: UPath

    def __iter__(self) -> Iterator[pd.DataFrame]:
        return read_jsonl_chunks(self.path)


def stage_jsonl(target: UPath, chunks: Iterable[pd.DataFrame]) -> StagedTable:
    """Write data frames as one JSON object per row beside `target`; missing values become null."""
    return stage_lines(target, (line for chunk in chunks for line in encode_rows(chunk)))


def stage_lines(target: UPath, lines: Iterable[bytes]) -> StagedTable:
    """Write lines verbatim beside `target`, each ended by one newline."""
    staging = staging_path(target)
    digest, rows = hashlib.sha256(), 0
    try:
        with staging.open("wb") as file:
            remaining = iter(lines)
            while batch := list(islice(remaining, CHUNK_ROWS)):
                block = b"\n".join(batch) + b"\n"
                file.write(block)
                digest.update(block)
                rows += len(batch)
            file.flush()
            if is_local(target):
                os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            staging.unlink()
        raise
    return StagedTable(target, staging, rows, digest.hexdigest())


def encode_rows(frame: pd.DataFrame) -> Iterator[bytes]:
    """One JSON line (without newline) per row."""
    columns = [str(column) for column in frame.columns]
    values = [frame[column].tolist() for column in frame.columns]
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    for row in zip(*values, strict=True):
        yield orjson.dumps(dict(zip(columns, row, strict=True)), option=options)


def read_jsonl(path: UPath) -> pd.DataFrame:
    """The whole table; an empty file gives an empty frame.

    Raises:
        FileNotFoundError: the table is not there.
        ValueError: a line is no JSON object; the message names file and line.
    """
    return pd.DataFrame(_records(path))


def read_jsonl_chunks(path: UPath, rows: int = CHUNK_ROWS) -> Iterator[pd.DataFrame]:
    """The table in frames of at most `rows` rows, with a running index; errors as `read_jsonl`."""
    records, start = _iterate(path), 0
    while batch := list(islice(records, rows)):
        yield pd.DataFrame(batch, index=range(start, start + len(batch)))
        start += len(batch)


def _records(path: UPath) -> list[dict[str, object]]:
    return list(_iterate(path))


def _iterate(path: UPath) -> Iterator[dict[str, object]]:
    with open_buffered(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is no JSON ({error}): materialize it again") from error
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number} is no JSON object but {line[:60]!r}")  # noqa: TRY004 - bad data
            yield record
