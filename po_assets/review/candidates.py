"""What a person should look at: teacher rows whose scores disagree, and evaluation cases that models stumble over.

How they are shown, corrected and taken back belongs to `review_file`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain

from po_assets.dataset.cases import read_eval_cases
from po_assets.errors import UserError
from po_assets.intake.normalization import replaced_record
from po_assets.product_owner.contract import GATE_WORST_SCORE
from po_assets.review.review_file import CORRECTIONS, Entry, Kind, entry_of_case, entry_of_row, read_approved
from po_assets.review.settings import ReviewSettings
from po_assets.storage import Layout, file_digest, read_manifest, read_rows


@dataclass(frozen=True)
class Collected:
    """The candidates, the worst first; what is not among them is counted for each kind, or said in `notes`."""

    candidates: list[Entry] = field(default_factory=list)
    more: dict[str, int] = field(default_factory=dict)
    """Those beyond `max_candidates`."""
    approved: dict[str, int] = field(default_factory=dict)
    """Those that a person found right."""
    notes: list[str] = field(default_factory=list)


def collect(layout: Layout, settings: ReviewSettings, score_tolerance: float) -> Collected:
    """All candidates, at most `max_candidates` of each kind, without those that a person found right.

    Raises:
        UserError: the rows are not normalized yet; evaluation cases or approved answers cannot be read.
    """
    if not layout.normalized.exists():
        raise UserError(f"There is no {str(layout.normalized)!r} yet. Materialize normalized_teacher first.")
    approved, found = read_approved(layout), Collected()
    kinds: dict[Kind, Iterator[Entry]] = {
        "teacher_row": _rows(layout, score_tolerance),
        "evaluation_case": _cases(layout, settings.worst_cases, found.notes),
    }
    for kind, entries in kinds.items():
        everyone = sorted(entries, key=lambda entry: (-entry.weight, entry.identifier))
        still_open = [entry for entry in everyone if entry.key not in approved]
        found.candidates.extend(still_open[: settings.max_candidates])
        found.more[kind] = len(still_open[settings.max_candidates :])
        found.approved[kind] = len(everyone) - len(still_open)
    return found


def _rows(layout: Layout, tolerance: float) -> Iterator[Entry]:
    """Rows whose declared score is not the metric's, unless a correction has replaced them, or will in the next run."""
    landed = chain.from_iterable(map(read_rows, layout.incoming.glob(f"{CORRECTIONS}-{'[0-9a-f]' * 10}.jsonl")))
    replaced = {replaced_record(row.get("metadata") or {}) for row in chain(read_rows(layout.normalized), landed)}
    for row in read_rows(layout.normalized):
        declared, metric = row["declared_score"], row["metric_score"]
        if declared is None or abs(declared - metric) <= tolerance or row["record_id"] in replaced:
            continue
        why = [f"it declares a score of {declared:.3f}, the metric gives {metric:.3f}"]
        why += [] if row["valid"] else [f"its answer is not valid: {row['invalid_reason']}"]
        yield entry_of_row(row, status=row["status"], why=tuple(why), weight=abs(declared - metric))


def _cases(layout: Layout, worst: int, notes: list[str]) -> Iterator[Entry]:
    """Cases on which baseline and student disagree about the status, and those with the student's worst answers."""
    tables = (layout.baseline_answers, layout.student_answers)
    manifests = [read_manifest(path) if path.exists() else None for path in tables]
    if None in manifests:
        notes.append("Evaluation cases were left out: materialize baseline_report and eval_report first.")
        return
    if {manifest.inputs.get("eval_cases") for manifest in manifests if manifest} != {file_digest(layout.eval_cases)}:
        notes.append("Evaluation cases were left out: they have changed since the models answered them.")
        return
    baseline, student = ({row["case_id"]: row for row in read_rows(path)} for path in tables)
    lowest = sorted(student, key=lambda name: (student[name]["total"], name))[:worst]
    for case in read_eval_cases(layout.eval_cases):
        name = case.case_id
        if name not in student or name not in baseline:
            continue
        said, before, total = student[name]["status"], baseline[name]["status"], student[name]["total"]
        why = []
        if said != before:
            model = f"the student says {said or 'nothing'}, the base model {before or 'nothing'}"
            why.append(f"{model}, the case {case.status or 'nothing'}")
        if total < GATE_WORST_SCORE:
            why.append(f"the student's answer scores {total:.3f}, under {GATE_WORST_SCORE:g}")
        elif name in lowest:
            why.append(f"the student's answer scores {total:.3f}, among its {len(lowest)} lowest")
        if why:
            weight, text = 1.0 - total + (case.status not in (None, said)), student[name]["text"]
            yield replace(entry_of_case(case), why=tuple(why), weight=weight, student_answer=text)
