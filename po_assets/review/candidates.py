"""What a person should look at: teacher rows whose scores disagree, and evaluation cases that models stumble over.

The two are corrected differently, so they are kept apart to the end: a corrected row is trained on, a corrected case is
only evaluated with. How they are shown and taken back belongs to `review_file` and `corrections`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from po_assets.dataset.cases import EvalCase, read_eval_cases
from po_assets.evaluation.gate_rows import THRESHOLDS
from po_assets.intake.normalization import replaced_record
from po_assets.review.found_right import Known, known_by, read_found_right
from po_assets.review.policy import CurationPolicy
from po_assets.storage import Layout, file_digest, read_manifest, read_rows

Kind = Literal["teacher_row", "evaluation_case"]


@dataclass(frozen=True)
class Candidate:
    """One row or case with the answer that may be wrong; `weight` sorts, the greater the worse."""

    kind: Kind
    identifier: str
    """Record id of a row, case id of a case."""
    place: str
    why: tuple[str, ...]
    weight: float
    status: str
    concept: str
    requirements_yaml: str
    vision_yaml: str
    review_yaml: str
    student_answer: str = ""
    """What the student wrote, to compare with; cases only."""

    @property
    def known(self) -> Known:
        """What the answer is known by once it was found right."""
        return known_by(self.kind, self.identifier, self.vision_yaml, self.review_yaml)


@dataclass(frozen=True)
class Collected:
    """The candidates, the worst first; what is not among them is counted for each kind, or said in `notes`."""

    candidates: list[Candidate]
    more: dict[str, int] = field(default_factory=dict)
    """Those beyond `max_candidates`."""
    found_right: dict[str, int] = field(default_factory=dict)
    """Those that a person found right."""
    notes: list[str] = field(default_factory=list)


def collect(layout: Layout, policy: CurationPolicy, score_tolerance: float) -> Collected:
    """All candidates, at most `max_candidates` of each kind, without those that a person found right.

    Raises:
        FileNotFoundError: the teacher's rows are not normalized yet.
        UserError: the evaluation cases cannot be used.
        UserError: what was found right cannot be read.
    """
    if not layout.normalized.exists():
        raise FileNotFoundError(f"there is no {str(layout.normalized)!r} yet. Materialize normalized_teacher first.")
    right = read_found_right(layout)
    collected = Collected([])
    for kind, found in (
        ("teacher_row", _rows(layout, score_tolerance)),
        ("evaluation_case", _cases(layout, policy.worst_cases, collected.notes)),
    ):
        everyone = sorted(found, key=_worst_first)
        open_ones = [one for one in everyone if one.known not in right]
        collected.candidates.extend(open_ones[: policy.max_candidates])
        collected.more[kind] = len(open_ones[policy.max_candidates :])
        collected.found_right[kind] = len(everyone) - len(open_ones)
    return collected


def _worst_first(candidate: Candidate) -> tuple[float, str]:
    return -candidate.weight, candidate.identifier


def _rows(layout: Layout, tolerance: float) -> Iterator[Candidate]:
    """Rows whose declared score is not the metric's, unless a correction has replaced them."""
    replaced = {replaced_record(row["metadata"]) for row in read_rows(layout.normalized)}
    for row in read_rows(layout.normalized):
        declared, metric = row["declared_score"], row["metric_score"]
        if declared is None or abs(declared - metric) <= tolerance or row["record_id"] in replaced:
            continue
        why = [f"it declares a score of {declared:.3f}, the metric gives {metric:.3f}"]
        if not row["valid"]:
            why.append(f"its answer is not valid: {row['invalid_reason']}")
        yield Candidate(
            kind="teacher_row",
            identifier=row["record_id"],
            place=f"{row['file']}:{row['line']}",
            why=tuple(why),
            weight=abs(declared - metric),
            status=row["status"],
            concept=row["concept"],
            requirements_yaml=row["requirements_yaml"],
            vision_yaml=row["vision_yaml"],
            review_yaml=row["review_yaml"],
        )


def _cases(layout: Layout, worst: int, notes: list[str]) -> Iterator[Candidate]:
    """Cases on which baseline and student disagree about the status, and those with the student's worst answers."""
    answers = _answers(layout, notes)
    if answers is None:
        return
    baseline, student = answers
    lowest = sorted(student, key=lambda name: (student[name]["total"], name))[:worst]
    cases = {case.case_id: case for case in read_eval_cases(layout.eval_cases)}
    for name in student:
        if name not in cases or name not in baseline:
            continue
        said, before, right = student[name]["status"], baseline[name]["status"], cases[name].status
        total = student[name]["total"]
        why = []
        if said != before:
            why.append(f"the student says {said or 'nothing'}, the base model {before or 'nothing'}, the case {right}")
        if total < THRESHOLDS.worst_case:
            why.append(f"the student's answer scores {total:.3f}, under {THRESHOLDS.worst_case:g}")
        elif name in lowest:
            why.append(f"the student's answer scores {total:.3f}, among its {len(lowest)} lowest")
        if why:
            yield _case(cases[name], why, student[name])


def _case(case: EvalCase, why: list[str], answer: Mapping[str, Any]) -> Candidate:
    return Candidate(
        kind="evaluation_case",
        identifier=case.case_id,
        place=case.case_id,
        why=tuple(why),
        weight=1.0 - answer["total"] + (answer["status"] != case.status),
        status=case.status,
        concept=case.concept,
        requirements_yaml=case.requirements_yaml,
        vision_yaml=case.reference_vision_yaml,
        review_yaml=case.reference_review_yaml,
        student_answer=answer["text"],
    )


def _answers(layout: Layout, notes: list[str]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The scored answers of baseline and student by case; None, with a note, where there are none to these cases."""
    tables = (layout.baseline_answers, layout.student_answers)
    manifests = [read_manifest(path) if path.exists() else None for path in tables]
    if None in manifests:
        notes.append("Evaluation cases were left out: materialize baseline_report and eval_report first.")
        return None
    digest = file_digest(layout.eval_cases)
    if any(manifest and manifest.inputs.get("eval_cases") != digest for manifest in manifests):
        notes.append("Evaluation cases were left out: they have changed since the models answered them.")
        return None
    baseline, student = ({row["case_id"]: row for row in read_rows(path)} for path in tables)
    return baseline, student
