"""Score answers that were made elsewhere, with the same metric, gate and report; no model is needed.

    python -m po_assets.evaluation.rescore ANSWERS.json [--cases CASES] [--baseline ANSWERS.json] [--output FOLDER]

ANSWERS.json is a list of answers, an object with such a list under `cases`, or JSON Lines with one answer each. An
answer has `case_id` and either `vision_yaml` and `review_yaml` or the whole `text`; `tokens`, `seconds` and
`finish_reason` may be there. The answers table of `eval_report` has that form: given it, the report is built again.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from upath import UPath

from po_assets.dag import Artifacts, read_frame
from po_assets.errors import UserError
from po_assets.evaluation.answers import Answer
from po_assets.evaluation.cases import EvaluationCase, cases_from_frame
from po_assets.evaluation.gate import GateRecord, evaluate_gate, gate_passed
from po_assets.evaluation.pictures import data_uri, evaluation_figures
from po_assets.evaluation.report import build_report, now, read_report, write_report
from po_assets.evaluation.scoring import ScoredAnswer, answers_from_records, score_answers
from po_assets.product_owner import format_answer
from po_assets.storage import file_digest

_DECODING = "elsewhere"
_FINISH_REASONS = ("stop", "length", "missing")


def read_answers(path: Path, cases: Sequence[EvaluationCase]) -> list[Answer]:
    """The answers of a file, for these cases.

    Raises:
        UserError: naming every answer that is none, is of an unknown case, comes twice, or has wrong details.
    """
    records = _records(path)
    known, seen, faults, answers = {case.case_id for case in cases}, set(), [], []
    for number, record in enumerate(records, start=1):
        case_id = str(record.get("case_id", "")) if isinstance(record, dict) else ""
        text = _text(record) if isinstance(record, dict) else None
        if text is None or not case_id:
            faults.append(f"answer {number} lacks case_id, or vision_yaml and review_yaml (or text)")
        elif case_id not in known:
            faults.append(f"answer {number} is of case {case_id!r}, which is not among the {len(known)} cases")
        elif case_id in seen:
            faults.append(f"answer {number} is a second one to case {case_id!r}")
        else:
            seen.add(case_id)
            try:
                answers.append(Answer(case_id, text, *_details(record)))
            except ValueError as error:
                faults.append(f"answer {number} ({case_id}) has {error}")
    if faults:
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise UserError(f"{path}: {'; '.join(faults[:10])}{more}")
    return answers


def rescore(
    cases: Sequence[EvaluationCase],
    answers: Sequence[Answer],
    baseline: Sequence[ScoredAnswer],
    *,
    digest: str,
    cases_sha256: str,
    output: UPath,
) -> GateRecord:
    """Score, gate and report the answers against a scored baseline; cases without answer count as empty ones."""
    # Whoever made the answers decides how; against which baseline is said in the report.
    decoding = baseline[0].decoding if baseline else _DECODING
    student = score_answers(cases, answers, model="student", model_digest=digest, decoding=decoding)
    rows = evaluate_gate(baseline, student)
    record = GateRecord(
        adapter_sha256=digest,
        baseline_digest=baseline[0].model_digest,
        cases_sha256=cases_sha256,
        decoding="answers made elsewhere",
        passed=gate_passed(rows),
        time=now(),
        rows=rows,
    )
    html, document = output / "po_rescored_report.html", output / "po_rescored_report.json"
    report = build_report(
        cases,
        baseline,
        student,
        record,
        models={"baseline": baseline[0].model_digest[:12], "student": f"answers file {digest[:12]}"},
        previous=read_report(document),
    )
    pictures = {name: data_uri(figure) for name, figure in evaluation_figures(baseline, student).items()}
    write_report(report, document, html, pictures)
    return record


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 0 when the gate passed, 1 when it failed, 2 when the answers cannot be read."""
    layout = Artifacts().layout
    parser = argparse.ArgumentParser(
        prog="python -m po_assets.evaluation.rescore",
        description="Score answers made elsewhere with the same metric, gate and report.",
    )
    parser.add_argument(
        "answers", type=Path, help="JSON: a list of {case_id, vision_yaml, review_yaml} or {case_id, text}"
    )
    parser.add_argument(
        "--cases", type=UPath, default=layout.eval_cases, help=f"evaluation cases ({layout.eval_cases})"
    )
    parser.add_argument("--baseline", type=Path, help="answers to compare with (default: those of baseline_report)")
    parser.add_argument("--output", type=UPath, default=layout.report_json.parent, help="folder of the report")
    options = parser.parse_args(arguments)
    try:
        cases = _cases(options.cases)
        answers = read_answers(options.answers, cases)
        baseline = _baseline(options.baseline, cases, layout.baseline_answers)
        record = rescore(
            cases,
            answers,
            baseline,
            digest=file_digest(options.answers),
            cases_sha256=file_digest(options.cases),
            output=options.output,
        )
    except (ValueError, OSError) as error:
        print(f"Not scored: {error}", file=sys.stderr)  # noqa: T201 - a command line speaks on its streams
        return 2
    if absent := len(cases) - len(answers):
        print(f"{absent} of {len(cases)} cases have no answer; each counts as an empty one.")  # noqa: T201
    for row in record.rows:
        verdict = "pass" if row.passed else ("FAIL" if row.severity == "ERROR" else "warn")
        print(f"{row.name:<20} {row.required:>18} {row.value:>20}  {verdict}")  # noqa: T201
    print(f"The gate {'passed' if record.passed else 'failed'}. Report: {options.output / 'po_rescored_report.html'}")  # noqa: T201
    return 0 if record.passed else 1


def _cases(table: UPath) -> list[EvaluationCase]:
    if not table.is_file():
        raise FileNotFoundError(f"there are no evaluation cases in {table}; give them with --cases")
    return cases_from_frame(read_frame(table))


def _baseline(path: Path | None, cases: Sequence[EvaluationCase], answers_table: UPath) -> list[ScoredAnswer]:
    if path is not None:
        answers = read_answers(path, cases)
        return score_answers(cases, answers, model="baseline", model_digest=file_digest(path), decoding=_DECODING)
    if not answers_table.exists():
        raise FileNotFoundError(
            f"there is no baseline to compare with in {answers_table}; give one with --baseline, or materialize "
            "baseline_report"
        )
    return answers_from_records(read_frame(answers_table).to_dict(orient="records"), str(answers_table))


def _records(path: Path) -> list[Any]:
    """What the file lists, which may be no answers."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            document: Any = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            document = json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON (.jsonl: one answer per line): {error}") from error
    records = document.get("cases") if isinstance(document, dict) else document
    if not isinstance(records, list) or not records:
        raise UserError(f"{path} holds no list of answers; see `python -m po_assets.evaluation.rescore --help`")
    return records


def _details(record: dict[str, Any]) -> tuple[str, int, float]:
    """Finish reason, tokens and seconds of an answer; what is absent or null is taken as a whole answer at no cost."""
    reason = record.get("finish_reason") or "stop"
    if reason not in _FINISH_REASONS:
        raise ValueError(f"finish_reason {reason!r}; use one of {', '.join(_FINISH_REASONS)}, or leave it out")
    numbers = []
    for name in ("tokens", "seconds"):
        value = record.get(name) or 0
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"{name} {value!r}; give a number of at least 0, or leave it out")
        numbers.append(value)
    return reason, int(numbers[0]), float(numbers[1])


def _text(record: dict[str, Any]) -> str | None:
    if isinstance(record.get("text"), str):
        return str(record["text"])
    vision, review = record.get("vision_yaml"), record.get("review_yaml")
    if not isinstance(vision, str) and not isinstance(review, str):
        return None
    return format_answer(vision or "", review or "")


if __name__ == "__main__":
    sys.exit(main())
