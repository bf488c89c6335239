"""Writing a JSONL file line by line while another table is being streamed, published in one step with its manifest.

Tables that are an asset's value go through `storage.stage_lines` and the IO manager; this is for the files beside them
(ledger, quarantine), which are filled in the same pass.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import BinaryIO

from upath import UPath

from po_assets.storage import Manifest, atomic_file, write_manifest


class LineWriter:
    """Appends JSON lines to an open file and keeps count and digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.rows = 0
        self.inputs: dict[str, str] = {}
        """Digests of what the file was made from; goes into its manifest."""

    def write(self, lines: list[bytes]) -> None:
        """Append lines, each of which gets its newline."""
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
def published_lines(path: UPath, code_version: str = "") -> Iterator[LineWriter]:
    """A writer whose file replaces `path` when the block ends well, and vanishes when it raises."""
    with atomic_file(path) as file:
        writer = LineWriter(file)
        yield writer
    write_manifest(path, Manifest(writer.sha256, writer.rows, writer.inputs, code_version=code_version))
