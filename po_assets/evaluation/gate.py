"""What comes of the gate's verdicts: the record, tied to the adapter's digest, and the promotion to `models/current`.

Whoever uses an adapter trusts the record, not the colour of the last run. What the gate asks for belongs to `checks`.
"""

import os
import shutil
import uuid
from pathlib import Path

from upath import UPath

from po_assets.dag import GateRecord, gate_record, read_gate, write_gate
from po_assets.errors import UserError
from po_assets.evaluation.checks import Evidence, checks
from po_assets.storage import Layout, atomic_directory, is_local, published_directory

GATE_FILE = "gate.json"
_KEPT_VERSIONS = 3
"""Promoted adapters on disk, the current one among them, so that a switch can be taken back by hand."""


def judge(found: Evidence, adapter_sha256: str, *, cases_sha256: str, decoding: str) -> GateRecord:
    """The gate's verdict on an adapter; `decoding` in words."""
    context = {
        "baseline_digest": found.baseline[0].model_digest,
        "cases_sha256": cases_sha256,
        "decoding": decoding,
    }
    return gate_record(adapter_sha256, checks.verdicts(found), context)


def gate_path(layout: Layout) -> UPath:
    """Where the record of the last evaluation stands."""
    return layout.report_json.parent / "po_eval_gate.json"


def verdict_rows(record: GateRecord) -> list[dict[str, str]]:
    """The record as a narrow table: criterion, required, value, verdict (pass, FAIL or warning)."""
    return [
        {
            "criterion": name,
            "required": check["required"],
            "value": check["value"],
            "verdict": "pass" if check["passed"] else ("FAIL" if check["severity"] == "ERROR" else "warning"),
        }
        for name, check in record.checks.items()
    ]


def gate_table(layout: Layout) -> list[dict[str, str]]:
    """The last gate's table, empty where there is none: for the end of `po-assets run`."""
    record = read_gate(gate_path(layout))
    return verdict_rows(record) if record else []


def promote(layout: Layout, record: GateRecord, adapter: Path) -> UPath:
    """Make the evaluated adapter, whose folder is `adapter`, the current one; returns `layout.current`.

    It is copied, since the next training replaces its folder. On a file system `current` is a symbolic link that is
    replaced in one step. In an object store it is a folder of its own, whose pointer to the newest version is.

    Raises:
        UserError: the record's gate did not pass.
    """
    if not record.passed:
        raise UserError(f"The gate of adapter {record.sha256[:12]} did not pass, it is not promoted.")
    if not is_local(layout.current):
        _copy(adapter, layout.current, record)
        return layout.current
    current = Path(str(layout.current)).absolute()
    versions = current.parent / "promoted"
    version = versions / record.sha256[:16]
    _copy(adapter, UPath(version), record)
    if current.is_dir() and not current.is_symlink():  # made by hand, or by an object store's sync: kept, not lost
        current.rename(versions / f"replaced-{uuid.uuid4().hex[:8]}")
    link = current.parent / f".staging-current-{uuid.uuid4().hex[:8]}"
    link.symlink_to(version.relative_to(current.parent))
    link.replace(current)
    _prune(versions, keep=version)
    return layout.current


def promoted_adapter(layout: Layout) -> str | None:
    """Digest of the adapter that is current, None where none is."""
    try:
        record = read_gate(published_directory(layout.current) / GATE_FILE)
    except NotADirectoryError:
        return None
    return record.sha256 if record else None


def _copy(adapter: Path, target: UPath, record: GateRecord) -> None:
    with atomic_directory(target) as staging:
        shutil.copytree(adapter, staging, dirs_exist_ok=True)
        write_gate(UPath(staging / GATE_FILE), record)


def _prune(versions: Path, keep: Path) -> None:
    others = [folder for folder in versions.iterdir() if folder != keep and not folder.name.startswith(".")]
    newest_first = sorted(others, key=os.path.getmtime, reverse=True)
    for folder in newest_first[_KEPT_VERSIONS - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)
