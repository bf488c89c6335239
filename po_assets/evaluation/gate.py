"""The gate: what a student must reach to be promoted, and the record of its verdict.

A gate is computed from scored answers alone. Its record is tied to the digest of the adapter that gave the answers;
whoever uses an adapter trusts that record, not the colour of the last run.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from upath import UPath

from po_assets.evaluation import gate_rows
from po_assets.evaluation.gate_rows import THRESHOLDS, GateRow, GateThresholds
from po_assets.evaluation.scoring import ScoredAnswer
from po_assets.evaluation.statistics import paired_difference, summarize
from po_assets.storage import atomic_file

if TYPE_CHECKING:
    from po_assets.storage import Layout


@dataclass(frozen=True)
class GateRecord:
    """A gate's verdict on one adapter."""

    adapter_sha256: str
    baseline_digest: str
    cases_sha256: str
    decoding: str
    passed: bool
    time: str
    rows: list[GateRow]


def evaluate_gate(
    baseline: Sequence[ScoredAnswer], student: Sequence[ScoredAnswer], thresholds: GateThresholds = THRESHOLDS
) -> list[GateRow]:
    """Every row of the gate. The two must answer the same cases; see `refuse_unpaired`.

    Raises:
        ValueError: the student answered nothing, or the two do not pair.
    """
    refuse_unpaired(baseline, student)
    summary = summarize(student)
    pairs = _pairs(baseline, student)
    difference = paired_difference([b.total for b, _ in pairs], [s.total for _, s in pairs])
    return [
        gate_rows.case_count(summary, thresholds),
        gate_rows.mean_score(summary, student, thresholds),
        gate_rows.score_std(summary, student, thresholds),
        gate_rows.delta_vs_baseline(summarize(baseline), summary, pairs, thresholds),
        gate_rows.valid_answers(summary, student, thresholds),
        gate_rows.non_inferiority(difference, thresholds),
        gate_rows.status_accuracy(summary, student),
        gate_rows.worst_case(student, thresholds),
    ]


def gate_passed(rows: Sequence[GateRow]) -> bool:
    """Whether no ERROR row failed; a WARN is looked at by people."""
    return all(row.passed for row in rows if row.severity == "ERROR")


def refuse_unpaired(baseline: Sequence[ScoredAnswer], student: Sequence[ScoredAnswer]) -> None:
    """Raise ValueError unless both sides answered the same cases under the same decoding and metric."""
    faults = []
    one, other = ({answer.case_id for answer in side} for side in (baseline, student))
    if one != other:
        only = sorted(one ^ other)
        faults.append(
            f"{len(only)} cases were answered by one side only ({', '.join(only[:3])}{', …' * (len(only) > 3)})"
        )
    for name, of in (("decoding settings", "decoding"), ("metric version", "metric_version")):
        values = [{str(getattr(answer, of))[:12] for answer in side} for side in (baseline, student)]
        if values[0] != values[1] or len(values[0]) > 1:
            faults.append(f"{name} differ ({', '.join(sorted(values[0]))} and {', '.join(sorted(values[1]))})")
    if faults:
        raise ValueError(
            f"baseline and student cannot be compared: {'; '.join(faults)}. Materialize baseline_report and "
            "eval_report together, with the same settings"
        )


def gate_path(layout: "Layout") -> UPath:
    """Where the gate's record stands."""
    return layout.report_json.parent / "po_eval_gate.json"


def write_gate(path: UPath, record: GateRecord) -> None:
    """Write the record in one step."""
    with atomic_file(path) as file:
        file.write(json.dumps(asdict(record), indent=2).encode())


def load_gate(layout: "Layout") -> GateRecord | None:
    """The last gate's record, or None where there is none (or one of another version)."""
    try:
        record = json.loads(gate_path(layout).read_text())
        return GateRecord(**{**record, "rows": [GateRow(**row) for row in record["rows"]]})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def gate_table(layout: "Layout") -> list[GateRow]:
    """The rows of the last gate, empty where there is none: for the table at the end of `make run`."""
    record = load_gate(layout)
    return record.rows if record else []


def _pairs(
    baseline: Sequence[ScoredAnswer], student: Sequence[ScoredAnswer]
) -> list[tuple[ScoredAnswer, ScoredAnswer]]:
    by_case = {answer.case_id: answer for answer in baseline}
    return [(by_case[answer.case_id], answer) for answer in student]
