"""Promotion: an adapter whose gate passed becomes `models/current`, in one atomic switch.

The adapter is copied, since the next training replaces its folder. Whether a gate passed is decided in `gate`.
"""

import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from upath import UPath

from po_assets.evaluation.gate import GateRecord, write_gate
from po_assets.storage import atomic_directory, published_directory
from po_assets.storage.atomic import is_local

if TYPE_CHECKING:
    from po_assets.storage import Layout

GATE_FILE = "gate.json"
_KEPT_VERSIONS = 3
"""Promoted adapters on disk, the current one among them, so that a switch can be taken back by hand."""


def promote(layout: "Layout", record: GateRecord, adapter: Path) -> UPath:
    """Make the evaluated adapter, whose folder is `adapter`, the current one; returns `layout.current`.

    On a file system `current` is a symbolic link that is replaced in one step. In an object store it is a folder of its
    own, whose pointer to the newest version is.

    Raises:
        ValueError: the record's gate did not pass.
    """
    if not record.passed:
        raise ValueError(f"the gate of adapter {record.adapter_sha256[:12]} did not pass, it is not promoted")
    if not is_local(layout.current):
        _copy(adapter, layout.current, record)
        return layout.current
    current = Path(str(layout.current)).absolute()
    versions = current.parent / "promoted"
    version = versions / record.adapter_sha256[:16]
    _copy(adapter, UPath(version), record)
    if current.is_dir() and not current.is_symlink():  # made by hand, or by an object store's sync: kept, not lost
        current.rename(versions / f"replaced-{uuid.uuid4().hex[:8]}")
    link = current.parent / f".staging-current-{uuid.uuid4().hex[:8]}"
    link.symlink_to(version.relative_to(current.parent))
    link.replace(current)
    _prune(versions, keep=version)
    return layout.current


def promoted_adapter(layout: "Layout") -> str | None:
    """Digest of the adapter that is current, None where none is."""
    import json

    try:
        return str(json.loads((published_directory(layout.current) / GATE_FILE).read_text())["adapter_sha256"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return None


def _copy(adapter: Path, target: UPath, record: GateRecord) -> None:
    with atomic_directory(target) as staging:
        shutil.copytree(adapter, staging, dirs_exist_ok=True)
        write_gate(UPath(staging / GATE_FILE), record)


def _prune(versions: Path, keep: Path) -> None:
    others = [folder for folder in versions.iterdir() if folder != keep and not folder.name.startswith(".")]
    newest_first = sorted(others, key=os.path.getmtime, reverse=True)
    for folder in newest_first[_KEPT_VERSIONS - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)
