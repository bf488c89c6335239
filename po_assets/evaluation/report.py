"""The report: everything that is said about an evaluation, as one JSON document, one HTML page and pictures.

Derived from scored answers alone, so that it can be rebuilt without a model. How the page looks is in `report.html.j2`.
"""

import base64
import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
from upath import UPath

from po_assets.dag import GateRecord, data_uri
from po_assets.dataset.cases import EvalCase
from po_assets.evaluation.checks import Evidence, checks, criterion_verdict
from po_assets.evaluation.consumers import consumer_rows, worst_answers
from po_assets.evaluation.contrast import ContrastResult
from po_assets.evaluation.scoring import ScoredAnswer
from po_assets.evaluation.settings import Decoding
from po_assets.evaluation.statistics import breakdown, confusion_matrix, judgement_rows, summarize
from po_assets.storage import replace_file
from po_assets.text import printable, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPORT_FORMAT = 3
_CHANGED = 0.01
"""Score differences under one hundredth are rounding and wording, not better or worse."""

_NAMED_CASES = 100
"""More names under a picture are not read, and take minutes to draw."""
_BASELINE, _STUDENT, _LINE = "#94a3b8", "#4f46e5", "#dc2626"


def free_run(scored: Sequence[ScoredAnswer]) -> dict[str, Any]:
    """What the student's answers without grammar come to, beside the ones the gate used; for JSON, with a sentence."""
    cases, valid, summary = len(scored), sum(answer.valid for answer in scored), summarize(scored)
    return {
        "cases": cases,
        "valid": valid,
        "mean_score": summary.mean,
        "cut": summary.cut_answers,
        "invalid": [{"case": a.case_id, "reason": a.invalid_reason} for a in scored if not a.valid],
        "described": f"Without grammar {valid} of {cases} answers are valid (mean score {summary.mean:.3f}, "
        f"{summary.cut_answers} cut at the token limit), measured on {cases} cases.",
    }


def answers_summary(scored: Sequence[ScoredAnswer], model: str, decoding: Decoding) -> dict[str, Any]:
    """The statistics of one model's answers, for JSON."""
    return {
        "model": model,
        "decoding": decoding.described(),
        "decoding_digest": decoding.fingerprint(),
        **_side(scored),
    }


def reference_note(cases: Sequence[EvalCase]) -> str:
    """What the reference answers are for, and how many cases have one."""
    some, statuses = sum(case.has_reference for case in cases), sum(case.status is not None for case in cases)
    return (
        f"{some} of {len(cases)} cases have a reference answer, from which come the bounds of an answer and what "
        f"counts as an invented conflict; {statuses} have a right status."
    )


def build_report(
    cases: Sequence[EvalCase],
    found: Evidence,
    record: GateRecord,
    *,
    models: Mapping[str, str],
    free: Mapping[str, Any] | None = None,
    contrast: ContrastResult | None = None,
    previous: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The report as a JSON document; `previous` is the report that it replaces, if there is one."""
    cases_of = {name: [dict(row) for row in verdict.rows] for name, verdict in checks.verdicts(found).items()}
    pairs = {answer.case_id: (base, answer) for base, answer in found.pairs}
    return {
        "format": REPORT_FORMAT,
        "time": record.time,
        "adapter_sha256": record.sha256,
        "models": dict(models),
        "decoding": record.context["decoding"],
        "student_decoding": found.student[0].decoding,
        "gate": {
            "passed": record.passed,
            "rows": [{"name": name, **check, "cases": cases_of[name]} for name, check in record.checks.items()],
        },
        "baseline": _side(found.baseline),
        "student": _side(found.student),
        "difference": asdict(found.difference),
        "sentence": record.context["sentence"],
        "profile": record.context["profile"],
        "references": reference_note(cases),
        "judgement": judgement_rows(found.judgement),
        "contrast": asdict(contrast) if contrast else None,
        "prompt": record.context.get("prompt", ""),
        "consumer_prompts": consumer_rows(found.student, found.consumers),
        "consumer_answers": worst_answers(found.student, found.consumers),
        "free": free,
        "previous": _against_previous(found.student, record.sha256, previous),
        "cases": [_case(case, *pairs[case.case_id]) for case in cases],
    }


def write_report(report: Mapping[str, Any], found: Evidence, document: UPath, page: UPath) -> None:
    """Write the report as JSON document and HTML page, with the pictures of what was found."""
    text, html = json.dumps(report, indent=1, ensure_ascii=False), render_html(report, drawn(evaluation_figures(found)))
    replace_file(document, text.encode("utf-8", "backslashreplace"))
    replace_file(page, html.encode("utf-8", "backslashreplace"))


def read_report(path: UPath) -> dict[str, Any] | None:
    """The report of an earlier evaluation, or None where there is none of this format."""
    try:
        report = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return report if isinstance(report, dict) and report.get("format") == REPORT_FORMAT else None


def render_html(report: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """One page without outside files; `pictures` are data URIs by their alternative text.

    Everything is escaped: answers are text from a model, never markup.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=_plain
    )
    environment.filters["verdict"] = criterion_verdict
    page, script = (
        files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("report.html.j2", "report.js")
    )
    # The one script that the page's policy lets run.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(page).render(
        report=report, pictures=pictures, script=script, script_hash=f"sha256-{digest}"
    )


def _plain(value: object) -> object:
    """Text without what turns, hides or controls it; markup, which only the page itself brings, as it is."""
    return printable(value) if type(value) is str else value


def evaluation_figures(found: Evidence) -> "dict[str, Figure]":
    """All pictures of an evaluation, by title: for Dagster's metadata and for the HTML page."""
    return {
        "Scores by case": _case_scores(found.baseline, found.student, found.profile.mean_score),
        "Student's statuses": _confusion_picture(confusion_matrix(found.student), "Student's statuses"),
        "Baseline's statuses": _confusion_picture(confusion_matrix(found.baseline), "Baseline's statuses"),
    }


def drawn(figures: "Mapping[str, Figure]") -> dict[str, str]:
    """The figures as data URIs, for an HTML page without further files; an empty one where a figure cannot be drawn."""
    uris = dict.fromkeys(figures, "")
    for name, figure in figures.items():
        with contextlib.suppress(Exception):  # whatever a drawing library makes of a text, the report is written
            uris[name] = data_uri(figure, dots_per_inch=110)
    return uris


def _side(scored: Sequence[ScoredAnswer]) -> dict[str, Any]:
    return {
        "summary": asdict(summarize(scored)),
        "by_tier": breakdown(scored, "tier"),
        "by_status": breakdown(scored, "reference_status"),
        "confusion": confusion_matrix(scored),
    }


def _case(case: EvalCase, baseline: ScoredAnswer, student: ScoredAnswer) -> dict[str, Any]:
    return {
        "case_id": case.case_id,
        "tier": case.tier,
        "status": case.status,
        "prompt": case.prompt,
        "reference": f"{case.reference_vision_yaml}\n\n{case.reference_review_yaml}".strip(),
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


def _case_scores(baseline: Sequence[ScoredAnswer], student: Sequence[ScoredAnswer], threshold: float) -> "Figure":
    """Each case's two scores, joined by a line, cases in order of the student's score."""
    figure, axes = _figure((9.0, 3.4), "Score per case", "cases, lowest student score first", "score")
    by_case = {answer.case_id: answer.total for answer in baseline}
    ordered = sorted(student, key=lambda answer: answer.total)
    places = range(len(ordered))
    before, after = [by_case[answer.case_id] for answer in ordered], [answer.total for answer in ordered]
    axes.vlines(places, before, after, color="#cbd5e1", linewidth=1)
    axes.scatter(places, before, color=_BASELINE, s=22, label="baseline", zorder=3)
    axes.scatter(places, after, color=_STUDENT, s=22, label="student", zorder=3)
    axes.axhline(threshold, color=_LINE, linestyle="--", linewidth=1, label=f"mean asked for {threshold:g}")
    if len(ordered) <= _NAMED_CASES:
        axes.set_xticks(list(places), [shown(a.case_id, 20) for a in ordered], rotation=90, fontsize=5)
    else:
        axes.set_xticks([])
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _confusion_picture(matrix: Mapping[str, Mapping[str, int]], title: str) -> "Figure":
    """Reference status (rows) against answered status (columns)."""
    figure, axes = _figure((5.2, 3.2), title, "status in the answer", "right status")
    rows = list(matrix)
    columns = list(dict.fromkeys(column for row in matrix.values() for column in row))
    counts = [[matrix[row].get(column, 0) for column in columns] for row in rows]
    axes.imshow(counts, cmap="Purples", aspect="auto")
    highest = max((count for row in counts for count in row), default=0)
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            axes.text(x, y, str(count), ha="center", va="center", color="white" if count > highest / 2 else "black")
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    return figure


def _figure(size: tuple[float, float], title: str, xlabel: str, ylabel: str) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
