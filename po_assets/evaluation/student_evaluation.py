"""From models to verdicts: the baseline's answers, the student's answers, the gate, the report, the promotion.

Reads top to bottom, free of Dagster's run time: what the two assets do. The parts are in the other modules.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pandas as pd

from po_assets.evaluation.answering import Log, answer_cases
from po_assets.evaluation.answers import AnswerCache
from po_assets.evaluation.cases import EvaluationCase
from po_assets.evaluation.gate import (
    GateRecord,
    evaluate_gate,
    gate_passed,
    gate_path,
    refuse_unpaired,
    write_gate,
)
from po_assets.evaluation.pictures import data_uri, evaluation_figures
from po_assets.evaluation.promotion import promote, promoted_adapter
from po_assets.evaluation.report import FreeRun, build_report, free_run, now, read_report, write_report
from po_assets.evaluation.scoring import ScoredAnswer, answers_from_records, score_answers
from po_assets.evaluation.settings import Decoding, DecodingSettings
from po_assets.model import BaseModelSpec, base_model_digest, ensure_base_model, require_hardware
from po_assets.storage import Layout, digest_of, file_digest, local_copy, published_directory, read_manifest
from po_assets.training.model_card import write_gate_verdict
from po_assets.training.student import adapter_problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation of a student."""

    baseline: Sequence[ScoredAnswer]
    student: Sequence[ScoredAnswer]
    record: GateRecord
    free: FreeRun | None
    promotion: str
    """What became of the adapter, in one sentence."""

    def figures(self) -> "Mapping[str, Figure]":
        """The pictures, by title."""
        return evaluation_figures(self.baseline, self.student)


def answer_with_baseline(
    cases: Sequence[EvaluationCase], layout: Layout, spec: BaseModelSpec, decoding: Decoding, log: Log
) -> list[ScoredAnswer]:
    """The base model's scored answers."""
    from po_assets.evaluation.models import load_baseline

    require_hardware(spec)
    folder = ensure_base_model(spec, layout)
    digest = _model_digest(folder, spec)
    cache = AnswerCache(layout.answer_cache, digest, decoding.digest)
    answers = answer_cases(cases, decoding, cache, lambda: load_baseline(folder, spec), log=log, name="baseline")
    return score_answers(cases, answers, model="baseline", model_digest=digest, decoding=decoding.digest)


def evaluate_student(
    cases: Sequence[EvaluationCase],
    baseline_table: pd.DataFrame,
    layout: Layout,
    spec: BaseModelSpec,
    settings: DecodingSettings,
    *,
    log: Log,
) -> Evaluation:
    """Answer with the student, gate it against the baseline, write report and gate record, promote if it passed.

    Raises:
        dagster.Failure: there is no adapter, it is damaged or was trained on another base model, or the baseline was
            made with other cases, decoding or base model.
    """
    from po_assets.evaluation.models import lazily, load_student

    decoding = settings.decoding()
    require_hardware(spec)
    folder = ensure_base_model(spec, layout)
    base_digest = _model_digest(folder, spec)
    baseline = answers_from_records(baseline_table.to_dict(orient="records"), str(layout.baseline_answers))
    refuse_other_baseline(baseline, cases, decoding, base_digest, layout)

    with _adapter_snapshot(layout, base_model_digest(folder)) as (adapter, adapter_sha256):
        student_digest = digest_of([base_digest, adapter_sha256])
        load = lazily(lambda: load_student(folder, spec, adapter))
        cache = AnswerCache(layout.answer_cache, student_digest, decoding.digest)
        answers = answer_cases(cases, decoding, cache, load, log=log, name="student")
        student = score_answers(cases, answers, model="student", model_digest=student_digest, decoding=decoding.digest)
        free = None
        if decoding.mode == "constrained" and settings.free_cases:
            free_decoding, some = settings.free_decoding(), spread(cases, settings.free_cases)
            free_cache = AnswerCache(layout.answer_cache, student_digest, free_decoding.digest)
            free_answers = answer_cases(some, free_decoding, free_cache, load, log=log, name="student without grammar")
            free = free_run(
                score_answers(
                    some, free_answers, model="student", model_digest=student_digest, decoding=free_decoding.digest
                )
            )
            log(free.described if free else "")

        rows = evaluate_gate(baseline, student)
        record = GateRecord(
            adapter_sha256=adapter_sha256,
            baseline_digest=base_digest,
            cases_sha256=file_digest(layout.eval_cases),
            decoding=decoding.described(),
            passed=gate_passed(rows),
            time=now(),
            rows=rows,
        )
        report = build_report(
            cases,
            baseline,
            student,
            record,
            models={"baseline": spec.name, "student": f"{spec.name} with adapter {adapter_sha256[:12]}"},
            free=free,
            previous=read_report(layout.report_json),
        )
        pictures = {name: data_uri(figure) for name, figure in evaluation_figures(baseline, student).items()}
        write_report(report, layout.report_json, layout.report_html, pictures)
        write_gate(gate_path(layout), record)
        _write_verdict(layout, record, adapter)
        evaluation = Evaluation(baseline, student, record, free, promotion=_promote(layout, record, adapter))
        log(f"the gate {'passed' if record.passed else 'FAILED'}; {evaluation.promotion}")
        return evaluation


def refuse_other_baseline(
    baseline: Sequence[ScoredAnswer],
    cases: Sequence[EvaluationCase],
    decoding: Decoding,
    base_digest: str,
    layout: Layout,
) -> None:
    """Raise `dagster.Failure`, naming every mismatch, unless the baseline answered these cases in this very way."""
    faults = []
    if {answer.case_id for answer in baseline} != {case.case_id for case in cases}:
        faults.append(f"it answered {len(baseline)} cases, which are not the {len(cases)} of today")
    manifest = read_manifest(layout.baseline_answers)
    if manifest is not None and manifest.inputs.get("eval_cases") not in (None, file_digest(layout.eval_cases)):
        faults.append("the evaluation cases have changed since")
    if any(answer.decoding != decoding.digest for answer in baseline):
        faults.append(f"it was decoded with other settings than the student's ({decoding.described()})")
    if any(answer.model_digest != base_digest for answer in baseline):
        faults.append("it is of another base model than the student's")
    if faults:
        raise dg.Failure(
            description=f"The baseline does not fit this evaluation: {'; '.join(faults)}. Materialize baseline_report "
            "with the same settings, then eval_report again.",
            allow_retries=False,
        )
    refuse_unpaired(baseline, baseline)


def spread(cases: Sequence[EvaluationCase], count: int) -> list[EvaluationCase]:
    """`count` cases at even distances, so that every tier and status has its share; all when there are fewer."""
    if count >= len(cases):
        return list(cases)
    return [cases[index * len(cases) // count] for index in range(count)]


@contextlib.contextmanager
def _adapter_snapshot(layout: Layout, base_digest: str) -> Iterator[tuple[Path, str]]:
    """A verified copy of the adapter and its digest: what is evaluated is promoted, whatever is trained meanwhile."""
    with tempfile.TemporaryDirectory(prefix="adapter-") as temporary:
        copy = Path(temporary) / layout.adapter.name
        with contextlib.suppress(FileNotFoundError), local_copy(layout.adapter) as adapter:
            shutil.copytree(adapter, copy)
        manifest = read_manifest(copy)
        problem = adapter_problem(copy, base_digest)
        if problem or manifest is None:
            said = str(problem).replace(str(copy), str(layout.adapter))
            raise dg.Failure(
                description=f"The adapter cannot be evaluated: {said}. Materialize lora_adapter, then eval_report.",
                allow_retries=False,
            )
        yield copy, manifest.sha256


def _model_digest(folder: Path, spec: BaseModelSpec) -> str:
    return digest_of([base_model_digest(folder), spec.quantization])


def _write_verdict(layout: Layout, record: GateRecord, evaluated: Path) -> None:
    """Into the card of the evaluated copy, and into that of the adapter unless another was published meanwhile."""
    rows = [
        {"threshold": row.name, "required": row.required, "value": row.value, "passed": "yes" if row.passed else "no"}
        for row in record.rows
    ]
    write_gate_verdict(evaluated, rows, passed=record.passed)
    published = published_directory(layout.adapter)
    manifest = read_manifest(published)
    if manifest and manifest.sha256 == record.adapter_sha256:
        write_gate_verdict(published, rows, passed=record.passed)


def _promote(layout: Layout, record: GateRecord, adapter: Path) -> str:
    if record.passed:
        return f"adapter {record.adapter_sha256[:12]} is now {promote(layout, record, adapter)}."
    current = promoted_adapter(layout)
    kept = f"adapter {current[:12]} stays current" if current else "no adapter is current yet"
    return f"adapter {record.adapter_sha256[:12]} is not promoted; {kept}."
