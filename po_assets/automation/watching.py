"""What the landing folder holds, told cheaply and often: a file is hashed again only when its size or time changed.

Free of Dagster; what follows from a change is the sensor's to say.
"""

import json
import time
from dataclasses import dataclass, field

from upath import UPath

from po_assets.storage import digest_of, file_digest
from po_assets.teacher.landing import landed_files

SETTLE_SECONDS = 10.0
"""A file whose last change is younger may still be being written."""


@dataclass(frozen=True)
class SeenFile:
    """A landed file: its size in bytes, its modification time in seconds, and sha256 (hex) of its bytes."""

    size: int
    modified: float
    sha256: str


@dataclass(frozen=True)
class FolderState:
    """The files of the landing folder by name, and how often the content was seen to change."""

    files: dict[str, SeenFile] = field(default_factory=dict)
    changes: int = 0

    @property
    def digest(self) -> str:
        """sha256 (hex) over names and contents; times do not count."""
        return digest_of({name: seen.sha256 for name, seen in self.files.items()})

    def to_cursor(self) -> str:
        """The state as text for a sensor's cursor."""
        files = {name: [seen.size, seen.modified, seen.sha256] for name, seen in self.files.items()}
        return json.dumps({"files": files, "changes": self.changes}, separators=(",", ":"))

    @classmethod
    def from_cursor(cls, cursor: str | None) -> "FolderState":
        """The state that `to_cursor` wrote; empty without one, and for one that cannot be read."""
        try:
            record = json.loads(cursor or "{}")
            return cls(
                {name: SeenFile(*seen) for name, seen in record.get("files", {}).items()}, record.get("changes", 0)
            )
        except (ValueError, TypeError, AttributeError):
            return cls()


@dataclass(frozen=True)
class Look:
    """One look into the folder: the state now, and which files are too young to be taken as complete."""

    state: FolderState
    unsettled: list[str]


def look(incoming: UPath, before: FolderState, settle_seconds: float = SETTLE_SECONDS) -> Look:
    """Look into the landing folder, hashing only what changed in size or time since `before`.

    Raises:
        LandingError: the folder is missing or holds no `*.jsonl` file.
    """
    now = time.time()
    files: dict[str, SeenFile] = {}
    unsettled = []
    for path in landed_files(incoming):
        info = path.stat()
        known = before.files.get(path.name)
        if known and (known.size, known.modified) == (info.st_size, info.st_mtime):
            files[path.name] = known
        elif now - info.st_mtime < settle_seconds:
            unsettled.append(path.name)
        else:
            files[path.name] = SeenFile(info.st_size, info.st_mtime, file_digest(path))
    return Look(FolderState(files, before.changes), unsettled)
