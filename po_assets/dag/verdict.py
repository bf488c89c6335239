"""The verdict of a check: passed or not, one sentence, the violating rows, the next step; and gate records.

A gate record says what the checks found about exactly these bytes, and is kept beside them. Dagster's blocking checks
hold within one run; the record makes the verdict last: whoever uses the artifact, in whatever run, reads it and refuses
what did not pass.
"""

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any, Literal

import dagster as dg
from upath import UPath

from po_assets.dag.pages import SHOWN_ROWS, escaped, records_table, rounded
from po_assets.storage import replace_file

Severity = Literal["ERROR", "WARN"]


@dataclass(frozen=True)
class Verdict:
    """What a check found; made by plain functions, shown by `to_check_result`."""

    passed: bool
    summary: str
    """One sentence with the numbers, what is against what should be."""
    next_step: str = ""
    """What to do about it; shown when the check did not pass."""
    rows: Sequence[Mapping[str, object]] = ()
    """The violating rows (file, line, reason …)."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Plotted over time by the UI."""
    severity: Severity | None = None
    """Empty: as the check was registered. Set where it depends on what was found."""
    extra: Mapping[str, dg.MetadataValue] = field(default_factory=dict)
    """Further evidence, pictures for example."""
    required: str = ""
    """Of a threshold: what is asked for, in a few characters (`>= 0.82`)."""
    value: str = ""
    """What was found, likewise."""
    of: int | None = None
    """How many rows there are where `rows` holds only the first or worst of them."""


class CannotJudge(Exception):  # noqa: N818 - no fault of the program
    """Why a check cannot look at what it judges, in words, and the next step; the check then fails with both."""

    @property
    def verdict(self) -> Verdict:
        """The check's."""
        return Verdict(False, *self.args)


class Violations:
    """Counts rows and keeps the `SHOWN_ROWS` with the greatest weight, the earliest first among equals."""

    def __init__(self) -> None:
        self.count = 0
        self._heap: list[tuple[float, int, Mapping[str, object]]] = []
        self._order = count(0, -1)

    def add(self, row: Mapping[str, object], weight: float = 0.0) -> None:
        """Count one row; a greater weight is worse."""
        self.count += 1
        entry = (weight, next(self._order), row)
        if len(self._heap) < SHOWN_ROWS:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    @property
    def rows(self) -> list[Mapping[str, object]]:
        """The kept rows, worst first."""
        return [row for _, _, row in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1]))]

    def __bool__(self) -> bool:
        return self.count > 0


def check_description(verdict: Verdict) -> str:
    """The text the UI shows first (markdown, of which only code spans are taken from the verdict's own words)."""
    parts = [escaped(verdict.summary)]
    total, shown = verdict.of or len(verdict.rows), min(SHOWN_ROWS, len(verdict.rows))
    if total > shown > 0:
        parts.append(f"The table shows {shown} of {total:,} rows.")
    if verdict.next_step and not verdict.passed:
        parts.append(f"**What to do:** {escaped(verdict.next_step)}")
    return "\n\n".join(parts)


def to_check_result(name: str, asset: str, verdict: Verdict) -> dg.AssetCheckResult:
    """The verdict as Dagster's result: sentence inline, rows as a table, numbers as plots."""
    metadata: dict[str, dg.MetadataValue | float | int] = {}
    if verdict.rows:
        metadata["rows"] = records_table(verdict.rows[:SHOWN_ROWS])  # the description says of how many
    metadata |= rounded({key: float(value) for key, value in verdict.numbers.items()})
    metadata |= dict(verdict.extra)
    return dg.AssetCheckResult(
        passed=verdict.passed,
        asset_key=asset,
        check_name=name,
        severity=dg.AssetCheckSeverity(verdict.severity or "ERROR"),
        description=check_description(verdict),
        metadata=metadata,
    )


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
