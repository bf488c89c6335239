"""The report: everything that is said about an evaluation, as one JSON document and one HTML page.

Derived from scored answers alone, so that it can be rebuilt without a model. How the page looks is in `report.html.j2`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from upath import UPath

from po_assets.evaluation.cases import EvaluationCase
from po_assets.evaluation.gate import GateRecord
from po_assets.evaluation.gate_rows import THRESHOLDS
from po_assets.evaluation.scoring import ScoredAnswer
from po_assets.evaluation.settings import Decoding
from po_assets.evaluation.statistics import breakdown, confusion_matrix, paired_difference, summarize
from po_assets.storage import atomic_file

REPORT_FORMAT = 1
_CHANGED = 0.01
"""Score differences under one hundredth are rounding and wording, not better or worse."""


@dataclass(frozen=True)
class FreeRun:
    """The student's answers without grammar, beside the ones the gate used."""

    cases: int
    valid: int
    mean_score: float
    cut: int
    invalid: list[dict[str, str]]

    @property
    def described(self) -> str:
        """One sentence."""
        return (
            f"Without grammar {self.valid} of {self.cases} answers are valid (mean score {self.mean_score:.3f}, "
            f"{self.cut} cut at the token limit), measured on {self.cases} cases."
        )


def free_run(scored: Sequence[ScoredAnswer]) -> FreeRun | None:
    """What the free answers come to; None where none were asked for."""
    if not scored:
        return None
    return FreeRun(
        cases=len(scored),
        valid=sum(answer.valid for answer in scored),
        mean_score=summarize(scored).mean,
        cut=sum(answer.finish_reason == "length" for answer in scored),
        invalid=[{"case": a.case_id, "reason": a.invalid_reason} for a in scored if not a.valid],
    )


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()


def answers_summary(scored: Sequence[ScoredAnswer], model: str, decoding: Decoding) -> dict[str, Any]:
    """The statistics of one model's answers, for JSON."""
    return {
        "model": model,
        "decoding": decoding.described(),
        "decoding_digest": decoding.digest,
        "summary": summarize(scored).as_dict(),
        "by_tier": breakdown(scored, "tier"),
        "by_status": breakdown(scored, "reference_status"),
        "confusion": confusion_matrix(scored),
    }


def build_report(
    cases: Sequence[EvaluationCase],
    baseline: Sequence[ScoredAnswer],
    student: Sequence[ScoredAnswer],
    record: GateRecord,
    *,
    models: Mapping[str, str],
    free: FreeRun | None = None,
    previous: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The report as a JSON document; `previous` is the report that it replaces, if there is one."""
    first = {answer.case_id: answer for answer in baseline}
    second = {answer.case_id: answer for answer in student}
    difference = paired_difference([first[a.case_id].total for a in student], [a.total for a in student])
    return {
        "format": REPORT_FORMAT,
        "time": record.time,
        "adapter_sha256": record.adapter_sha256,
        "models": dict(models),
        "decoding": record.decoding,
        "student_decoding": student[0].decoding,
        "gate": {"passed": record.passed, "rows": [asdict(row) for row in record.rows]},
        "baseline": _side(baseline),
        "student": _side(student),
        "difference": asdict(difference),
        "free": None if free is None else {**asdict(free), "described": free.described},
        "previous": _against_previous(student, record.adapter_sha256, previous),
        "cases": [_case(case, first[case.case_id], second[case.case_id]) for case in cases],
    }


def write_report(report: Mapping[str, Any], json_path: UPath, html_path: UPath, pictures: Mapping[str, str]) -> None:
    """Write the JSON document and the HTML page; `pictures` are data URIs by their alternative text."""
    with atomic_file(json_path) as file:
        file.write(json.dumps(report, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace"))
    with atomic_file(html_path) as file:
        file.write(render_html(report, pictures).encode("utf-8", "backslashreplace"))


def read_report(path: UPath) -> dict[str, Any] | None:
    """The report of an earlier evaluation, or None where there is none of this format."""
    try:
        report = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return report if isinstance(report, dict) and report.get("format") == REPORT_FORMAT else None


def render_html(report: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """One page without outside files. Everything is escaped: answers are text from a model, never markup."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    return template.render(report=report, pictures=pictures, thresholds=THRESHOLDS)


def _side(scored: Sequence[ScoredAnswer]) -> dict[str, Any]:
    return {
        "summary": summarize(scored).as_dict(),
        "by_tier": breakdown(scored, "tier"),
        "by_status": breakdown(scored, "reference_status"),
        "confusion": confusion_matrix(scored),
    }


def _case(case: EvaluationCase, baseline: ScoredAnswer, student: ScoredAnswer) -> dict[str, Any]:
    return {
        "case_id": case.case_id,
        "tier": case.tier,
        "status": case.status,
        "prompt": case.prompt,
        "reference": f"{case.reference_vision_yaml}\n\n{case.reference_review_yaml}",
        "difference": student.total - baseline.total,
        "baseline": asdict(baseline),
        "student": asdict(student),
    }


def _against_previous(
    student: Sequence[ScoredAnswer], adapter: str, previous: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """What got better and worse since the report of the last *other* adapter."""
    if previous is None:
        return None
    if previous.get("adapter_sha256") == adapter:
        kept: dict[str, Any] | None = previous.get("previous")
        return kept
    before = {case["case_id"]: case["student"]["total"] for case in previous["cases"]}
    changes = [
        {"case": answer.case_id, "before": before[answer.case_id], "now": answer.total}
        for answer in student
        if answer.case_id in before and abs(answer.total - before[answer.case_id]) >= _CHANGED
    ]
    return {
        "adapter_sha256": previous["adapter_sha256"],
        "time": previous["time"],
        "mean": previous["student"]["summary"]["mean"],
        "same_decoding": previous["student_decoding"] == student[0].decoding,
        "cases_in_common": sum(answer.case_id in before for answer in student),
        "better": sorted((c for c in changes if c["now"] > c["before"]), key=lambda c: c["before"] - c["now"]),
        "worse": sorted((c for c in changes if c["now"] < c["before"]), key=lambda c: c["now"] - c["before"]),
    }
