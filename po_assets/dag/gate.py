"""Gate records: what the checks said about exactly these bytes, kept beside them.

Dagster's blocking checks hold within one run. The record makes the verdict last: whoever uses the artifact, in whatever
run, reads it and refuses what did not pass.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from upath import UPath

from po_assets.dag.verdict import Verdict
from po_assets.storage import replace_file


@dataclass(frozen=True)
class GateRecord:
    """Verdicts of an artifact's checks, tied to its sha256."""

    sha256: str
    passed: bool
    """Whether no check failed with severity ERROR."""
    checks: dict[str, dict[str, Any]]
    """By name: `passed`, `severity`, `required`, `value`, `summary`, `next_step`."""
    time: str
    """When the checks ran (ISO 8601, UTC)."""
    context: dict[str, Any] = field(default_factory=dict)
    """What else the verdict depends on: digests of other inputs, settings, thresholds."""

    @property
    def failed(self) -> dict[str, dict[str, Any]]:
        """The checks that failed with severity ERROR."""
        return {name: one for name, one in self.checks.items() if not one["passed"] and one["severity"] == "ERROR"}


def gate_record(sha256: str, verdicts: Mapping[str, Verdict], context: Mapping[str, Any] | None = None) -> GateRecord:
    """The record of verdicts whose severities are settled (as `AssetChecks.verdicts` gives them)."""
    shown = ("passed", "severity", "required", "value", "summary", "next_step")
    return GateRecord(
        sha256=sha256,
        passed=all(verdict.passed or verdict.severity == "WARN" for verdict in verdicts.values()),
        checks={name: {key: getattr(verdict, key) for key in shown} for name, verdict in verdicts.items()},
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        context=dict(context or {}),
    )


def write_gate(path: UPath, record: GateRecord) -> None:
    """Write the record in one step; what stood there before is replaced."""
    replace_file(path, json.dumps(asdict(record), indent=2, ensure_ascii=False).encode())


def read_gate(path: UPath) -> GateRecord | None:
    """The record, or None where there is none, or none that this version reads."""
    try:
        return GateRecord(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
