"""The gate record of the supervised dataset: what its checks said about exactly these bytes.

Dagster's blocking checks hold within one run. The record makes the verdict last: whoever trains on the dataset, in
whatever run, reads it and refuses data that did not pass.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from upath import UPath

from po_assets.dag import Verdict
from po_assets.storage import atomic_file


@dataclass(frozen=True)
class GateRecord:
    """Verdicts of all checks of a dataset, tied to its sha256."""

    supervised_sha256: str
    passed: bool
    """Whether no check failed with severity ERROR."""
    checks: dict[str, dict[str, object]]
    time: str
    """When the checks ran (ISO 8601, UTC)."""


def write_gate(path: UPath, supervised_sha256: str, verdicts: Mapping[str, Verdict]) -> GateRecord:
    """Record the verdicts of all checks; what stood there before is replaced."""
    record = GateRecord(
        supervised_sha256=supervised_sha256,
        passed=all(verdict.passed or verdict.severity == "WARN" for verdict in verdicts.values()),
        checks={
            name: {"passed": verdict.passed, "severity": verdict.severity, "summary": verdict.summary}
            for name, verdict in verdicts.items()
        },
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with atomic_file(path) as file:
        file.write(json.dumps(asdict(record), indent=2, ensure_ascii=False).encode())
    return record


def read_gate(path: UPath) -> GateRecord | None:
    """The record, or None where there is none or it cannot be read."""
    try:
        return GateRecord(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def refusal(path: UPath, supervised_sha256: str) -> str | None:
    """Why data with this digest must not be trained on, in a sentence with the way out; None where it may be."""
    record = read_gate(path)
    way_out = "Materialize supervised_dataset with its checks."
    if record is None:
        return f"The supervised dataset has no gate record ({str(path)!r}): its checks did not run. {way_out}"
    if record.supervised_sha256 != supervised_sha256:
        return (
            f"The gate record is for other data (sha256 {record.supervised_sha256[:12]}, not "
            f"{supervised_sha256[:12]}): the dataset changed after its checks ran. {way_out}"
        )
    if not record.passed:
        failed = "; ".join(
            f"{name}: {check['summary']}"
            for name, check in record.checks.items()
            if not check["passed"] and check["severity"] == "ERROR"
        )
        return f"The supervised dataset did not pass its gate. {failed} Correct the data and materialize it again."
    return None
