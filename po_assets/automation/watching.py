"""What the landing folder holds, told cheaply and often: one listing a look; a file is read again only when it changed.

Free of Dagster; what follows from a change is the sensor's to say. Two memories: the small `Position` travels in the
sensor's cursor, which Dagster keeps with every tick; what is known of each file is kept in a file beside the instance
(`Memory`), since ten thousand digests with every tick would fill its database. A lost memory costs one reading of all.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from upath import UPath

from po_assets.errors import UserError
from po_assets.intake.landing import list_landing
from po_assets.storage import atomic_file, digest_of, file_digest

SETTLE_SECONDS = 10.0
"""A file whose last change is younger may still be being written."""

_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
"""What file systems of fsspec call the time of the last change."""


class Stamp(NamedTuple):
    """What a listing says of a file; it changes whenever the content does.

    Size in bytes, time of the last change in seconds, and an object store's own tag of the content.
    """

    size: int
    modified: float
    tag: str = ""


@dataclass
class Memory:
    """What earlier looks found out: each file's stamp and sha256 (hex), and since when a young one looks as it does."""

    files: dict[str, tuple[Stamp, str]] = field(default_factory=dict)
    young: dict[str, tuple[Stamp, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Memory":
        """The memory that `write` left; empty where there is none or it cannot be read."""
        try:
            record = json.loads(path.read_text())
            return cls(
                {name: (Stamp(*stamp), sha256) for name, (stamp, sha256) in record["files"].items()},
                {name: (Stamp(*stamp), since) for name, (stamp, since) in record["young"].items()},
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def write(self, path: Path) -> None:
        """Keep the memory, in one step."""
        with atomic_file(path) as file:
            file.write(json.dumps(vars(self), separators=(",", ":")).encode())  # asdict would copy every entry


@dataclass(frozen=True)
class Position:
    """How far the sensor is: digests (sha256, hex) of the last listing and of names and contents, number of changes."""

    listing: str = ""
    content: str = ""
    changes: int = 0

    def to_cursor(self) -> str:
        """The position as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_cursor(cls, cursor: str | None) -> "Position | None":
        """The position that `to_cursor` wrote; None without one, and for one that cannot be read."""
        try:
            return cls(**json.loads(cursor or ""))
        except (ValueError, TypeError):
            return None


@dataclass(frozen=True)
class Look:
    """One look into the folder: sha256 (hex) of each file by name, and which are too young to be taken as complete."""

    files: dict[str, str]
    unsettled: list[str]
    unreadable: dict[str, str]
    """Why each of those could not be read that listed as if they could."""
    size: int
    """Bytes of all files."""

    @property
    def content(self) -> str:
        """sha256 (hex) over names and contents; times do not count."""
        return digest_of(self.files)


def listing(incoming: UPath) -> dict[str, Stamp]:
    """The landed files by name, from one listing of the folder: those that `raw_teacher` takes in.

    Raises:
        UserError: the folder is missing, cannot be listed or holds no `*.jsonl` file that can be read.
    """
    try:
        return {name: _stamp(entry) for name, entry in list_landing(incoming).taken.items()}
    except OSError as error:
        raise UserError(
            f"The landing folder {str(incoming)!r} cannot be reached: {error.strerror or error}. Let this user read it "
            "and enter the folders above it."
        ) from error


def look(incoming: UPath, found: dict[str, Stamp], memory: Memory, settle_seconds: float = SETTLE_SECONDS) -> Look:
    """Read what changed since `memory` was written, which is brought up to date.

    A file is complete when its last change, or the first look at it as it is now, is `settle_seconds` ago. (Of a file
    with a time in the future, copied from a machine whose clock is wrong, only the second can be told.)
    """
    now = time.time()
    young: dict[str, tuple[Stamp, float]] = {}
    known: dict[str, tuple[Stamp, str]] = {}
    unreadable: dict[str, str] = {}
    for name, stamp in found.items():
        before = memory.files.get(name)
        if before and before[0] == stamp:
            known[name] = before
            continue
        first = memory.young.get(name)
        since = first[1] if first and first[0] == stamp else now
        if now - stamp.modified >= settle_seconds or now - since >= settle_seconds:
            try:
                known[name] = (stamp, file_digest(incoming / name))
            except OSError as error:
                unreadable[name] = str(error.strerror or error)
        else:
            young[name] = (stamp, since)
    # A file that is being written over keeps what was known of it: it may turn out to be the same again.
    memory.files = {name: entry for name, entry in memory.files.items() if name in young} | known
    memory.young = young
    return Look(
        files={name: sha256 for name, (_, sha256) in known.items()},
        unsettled=list(young),
        unreadable=unreadable,
        size=sum(stamp.size for stamp in found.values()),
    )


def _stamp(entry: dict[str, Any]) -> Stamp:
    changed = next((entry[key] for key in _TIME_KEYS if entry.get(key) is not None), 0.0)
    modified = changed if isinstance(changed, int | float) else changed.timestamp()
    return Stamp(int(entry["size"] or 0), float(modified), str(entry.get("ETag") or ""))
