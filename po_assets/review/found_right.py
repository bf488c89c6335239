"""Answers that a person looked at and found right: kept in a small file beside the review file, and not shown again.

They are known by their text: an answer that changes is shown again. Nothing else depends on the file; a line that is
deleted from it brings its answer back.
"""

from collections.abc import Iterable

import orjson

from po_assets.errors import UserError
from po_assets.review.landing import land
from po_assets.storage import Layout, digest_of

Known = tuple[str, str, str]
"""Kind of the candidate, its id, and a digest of its answer."""
_KEYS = ("candidate", "id", "answer")


def known_by(kind: str, identifier: str, vision_yaml: str, review_yaml: str) -> Known:
    """What an answer is known by; white space does not count, which block scalars do not keep."""
    return kind, identifier, digest_of([text.split() for text in (vision_yaml, review_yaml)])[:16]


def read_found_right(layout: Layout) -> set[Known]:
    """All answers that were found right.

    Raises:
        UserError: a line is none of this file's.
    """
    path, found = layout.found_right, set()
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], start=1):
        if not line.strip():
            continue
        try:
            record = orjson.loads(line)
            found.add((str(record["candidate"]), str(record["id"]), str(record["answer"])))
        except (ValueError, KeyError, TypeError):
            shown = line[:60].decode(errors="replace")
            raise UserError(
                f"Line {number} of {str(path)!r} is {shown!r}, a JSON object with {', '.join(_KEYS)} is expected. "
                "Correct it, or delete it: its answer is then shown again."
            ) from None
    return found


def remember(layout: Layout, found: Iterable[Known]) -> None:
    """Add answers to the file, in one step."""
    everything = sorted(read_found_right(layout) | set(found))
    land(layout.found_right, [orjson.dumps(dict(zip(_KEYS, known, strict=True))) for known in everything])
