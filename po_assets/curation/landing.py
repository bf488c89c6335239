"""Landing rows: one file in the landing folder, written in one step, and left alone where it holds the same already."""

from collections.abc import Sequence
from typing import Any

import orjson
from upath import UPath

from po_assets.storage import atomic_file


def to_lines(rows: Sequence[dict[str, Any]]) -> list[bytes]:
    """The rows as JSON lines, without newlines."""
    return [orjson.dumps(row) for row in rows]


def land(path: UPath, lines: Sequence[bytes]) -> bool:
    """Make `path` hold exactly these lines; whether anything had to be written.

    A reader sees the old file or the new one. The sensor takes it from there.
    """
    content = b"".join(line + b"\n" for line in lines)
    if path.exists() and path.read_bytes() == content:
        return False
    with atomic_file(path) as file:
        file.write(content)
    return True
