"""Landing rows: one file in the landing folder, written in one step, and left alone where it holds the same already.

And what a row will be once it has landed, known beforehand: whoever pays a teacher or a person for an answer asks
`as_landed` first, and only what `normalized_teacher` will take in lands.
"""

from collections.abc import Sequence
from typing import Any

import orjson
from upath import UPath

from po_assets.intake.lines import Line, Reason, Rejected
from po_assets.intake.normalization import normalize
from po_assets.storage import atomic_file


def to_lines(rows: Sequence[dict[str, Any]]) -> list[bytes]:
    """The rows as JSON lines, without newlines."""
    return [orjson.dumps(row) for row in rows]


def as_landed(row: dict[str, Any]) -> dict[str, Any]:
    """The normalized row that this row becomes when it has landed.

    Raises:
        Rejected: it would be rejected; its detail says why.
    """
    try:
        (line,) = to_lines([row])
    except TypeError:  # orjson's word for half a surrogate pair
        raise Rejected(Reason.NOT_UTF8, "it holds half of a character, which no UTF-8 file can hold") from None
    return normalize(Line("", 1, line, len(line))).row


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
