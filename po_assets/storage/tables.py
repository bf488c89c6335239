"""Manifests (what an artifact is, and from what it was made), and tables: JSONL files, written once, read row by row.

A manifest stands beside its file as `<name>.manifest.json`, or inside its folder as `manifest.json`. Lines have one
writer, staged beside their place and published in one step with a manifest, and one reader. What the lines mean belongs
to the stages; frames of pandas belong to `dag.artifacts`.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from upath import UPath

from po_assets.errors import UserError
from po_assets.storage.files import (
    atomic_file,
    full_disk_named,
    is_local,
    open_buffered,
    publish_file,
    published_directory,
    replace_file,
    staging_path,
)

_BLOCK = 1 << 20
CHUNK_ROWS = 2_000


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and what it was made from."""

    sha256: str
    rows: int | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    """Digest of each input, by name."""
    config: str = ""
    """Digest of the settings; Dagster's own staleness does not count them."""
    code_version: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def manifest_path(artifact: UPath | Path) -> UPath:
    """Where an artifact's manifest stands."""
    artifact = UPath(artifact)
    if artifact.suffix:
        return artifact.parent / f"{artifact.name}.manifest.json"
    return artifact / "manifest.json"


def read_manifest(artifact: UPath | Path) -> Manifest | None:
    """The artifact's manifest, or None where there is none or it cannot be read."""
    artifact = UPath(artifact)
    try:
        place = manifest_path(artifact if artifact.suffix else published_directory(artifact))
        return Manifest(**json.loads(place.read_text()))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def recorded_digest(artifact: UPath | Path) -> str:
    """The sha256 in the artifact's manifest; empty where there is none."""
    manifest = read_manifest(artifact)
    return manifest.sha256 if manifest else ""


def write_manifest(artifact: UPath | Path, manifest: Manifest) -> None:
    """Write the artifact's manifest in one step."""
    replace_file(manifest_path(artifact), json.dumps(asdict(manifest), indent=2, sort_keys=True).encode())


def digest_of(value: object) -> str:
    """sha256 (hex) of a value's canonical JSON: keys sorted, no white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_digest(path: UPath | Path) -> str:
    """sha256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with UPath(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def directory_digest(path: UPath | Path) -> str:
    """sha256 (hex) over the names and digests of all files in a folder but its manifest."""
    root = UPath(path)
    files = sorted(file for file in root.rglob("*") if file.is_file() and file.name != "manifest.json")
    return digest_of({str(file.path)[len(str(root.path)) :].lstrip("/"): file_digest(file) for file in files})


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
        """The same table with a manifest that names its inputs (left out: those named already), settings and code."""
        if inputs is None:
            inputs = self.manifest.inputs if self.manifest else {}
        manifest = Manifest(self.sha256, self.rows, inputs, config, code_version, extra or {})
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
