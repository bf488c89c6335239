"""From models to verdicts: the baseline's answers, the student's answers, the gate, the report, the promotion.

What the two assets do, free of Dagster, top to bottom; and the same for answers that were made elsewhere. The parts are
in the other modules.
"""

import argparse
import contextlib
import functools
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from po_assets.dag import Artifacts, GateRecord
from po_assets.dataset.cases import EvalCase, read_eval_cases
from po_assets.errors import UserError
from po_assets.evaluation.answering import (
    Answer,
    AnsweringModel,
    ServedModel,
    computed_in,
    load_baseline,
    load_student,
    served,
)
from po_assets.evaluation.answers import AnswerCache, Log, answer_cases, reference_limits
from po_assets.evaluation.checks import Evidence
from po_assets.evaluation.consumers import ask_consumers, consumer_rows, write_consumers
from po_assets.evaluation.contrast import contrast_cases, judge_contrasts
from po_assets.evaluation.gate import judge, settle, verdict_rows
from po_assets.evaluation.report import build_report, free_run, read_report, write_report
from po_assets.evaluation.scoring import ScoredAnswer, read_scored, score_answers
from po_assets.evaluation.settings import Decoding, GateProfile
from po_assets.model import BaseModel, base_model_digest, decide_quantization, ensure_base_model, require_hardware
from po_assets.product_owner import format_answer
from po_assets.product_owner.templates import BUILT_IN, Prompt
from po_assets.storage import Layout, digest_of, file_digest, local_copy, read_manifest
from po_assets.text import say, shown
from po_assets.training.handover import travelled_prompt
from po_assets.training.student import adapter_problem

_ELSEWHERE = "elsewhere"
_FINISH_REASONS = ("stop", "length", "missing")


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation of a student."""

    found: Evidence
    record: GateRecord
    free: dict[str, Any] | None
    promotion: str
    """What became of the adapter, in one sentence."""


def answer_with_baseline(
    cases: Sequence[EvalCase], layout: Layout, spec: BaseModel, decoding: Decoding, log: Log
) -> list[ScoredAnswer]:
    """The base model's scored answers."""
    folder, digest = _base_model(spec, layout, decoding)
    cache = AnswerCache(layout.answer_cache, digest_of([digest, computed_in()]), decoding.fingerprint())

    def load() -> AnsweringModel | ServedModel:
        return served(decoding.address, spec.name) if decoding.address else load_baseline(folder, spec)

    answers = answer_cases(cases, decoding, cache, load, log=log, name="baseline")
    return score_answers(cases, answers, model="baseline", model_digest=digest, decoding=decoding.fingerprint())


def evaluate_student(
    cases: Sequence[EvalCase],
    layout: Layout,
    spec: BaseModel,
    decoding: Decoding,
    *,
    gate: GateProfile,
    log: Log,
    consumers: Sequence[Prompt] = (),
    consumer_cases: Sequence[EvalCase] = (),
) -> Evaluation:
    """Answer with the student, gate it against the baseline, write report and gate record, promote if it passed.

    The cases say what they are asked with; `consumer_cases` are asked through the prompts of `consumers`, too.

    Raises:
        UserError: there is no adapter, it is damaged or was trained on another base model or prompt, or the baseline
            was made with other cases, prompt, decoding or base model.
    """
    folder, base_digest = _base_model(spec, layout, decoding)
    baseline = read_scored(layout.baseline_answers)
    refuse_other_baseline(baseline, cases, decoding, base_digest, layout)

    with _adapter_snapshot(layout, base_model_digest(folder)) as (adapter, adapter_sha256):
        own = cases[0].asked_with
        _refuse_other_prompt(travelled_prompt(adapter), own)
        digest = digest_of([base_digest, adapter_sha256])
        load = functools.cache(lambda: load_student(folder, spec, adapter))
        name_there = f"po-student-{adapter_sha256[:12]}"
        there = functools.cache(lambda: served(decoding.address, name_there, adapter))

        def cache_of(how: Decoding) -> AnswerCache:
            return AnswerCache(layout.answer_cache, digest_of([digest, computed_in()]), how.fingerprint())

        def ask(some: Sequence[EvalCase], how: Decoding, name: str) -> list[ScoredAnswer]:
            answers = answer_cases(some, how, cache_of(how), there if how.address else load, log=log, name=name)
            return score_answers(some, answers, model="student", model_digest=digest, decoding=how.fingerprint())

        student = ask(cases, decoding, "student")
        free = None
        if decoding.mode == "constrained" and decoding.free_cases:
            some = spread(cases, decoding.free_cases)
            free = free_run(ask(some, decoding.free(), "student without grammar"))
            log(free["described"])

        # A server does not go on from a VISION that the student wrote before, as the contrasts want it.
        contrast = judge_contrasts(
            contrast_cases([] if decoding.address else cases),
            student,
            cache_of(decoding),
            load,
            decoding=decoding,
            limits=reference_limits(cases),
        )
        if contrast:
            log(contrast.described)
        others = ask_consumers(consumer_cases, consumers, lambda some, name: ask(some, decoding, name))
        write_consumers(layout.consumer_answers, others)
        for row in consumer_rows(student, others):
            log(", ".join(f"{name} {value}" for name, value in row.items()))
        found = Evidence(baseline, student, gate, others)
        record = judge(
            found,
            adapter_sha256,
            cases_sha256=file_digest(layout.eval_cases),
            decoding=decoding.described(),
            contrast=contrast.described if contrast else "",
            prompt=f"The own prompt is {own.name} (digest {own.digest[:12]}).",
        )
        report = build_report(
            cases,
            found,
            record,
            models={"baseline": spec.name, "student": f"{spec.name} with adapter {adapter_sha256[:12]}"},
            free=free,
            contrast=contrast,
            previous=read_report(layout.report_json),
        )
        write_report(report, found, layout.report_json, layout.report_html)
        promotion = settle(layout, record, adapter)
        log(f"{record.context['sentence']} {promotion}")
        return Evaluation(found, record, free, promotion)


def refuse_other_baseline(
    baseline: Sequence[ScoredAnswer],
    cases: Sequence[EvalCase],
    decoding: Decoding,
    base_digest: str,
    layout: Layout,
) -> None:
    """Raise `UserError`, naming every mismatch, unless the baseline answered these cases in this very way."""
    faults = []
    if {answer.case_id for answer in baseline} != {case.case_id for case in cases}:
        faults.append(f"it answered {len(baseline)} cases, which are not the {len(cases)} of today")
    manifest = read_manifest(layout.baseline_answers)
    if manifest is not None and manifest.inputs.get("eval_cases") not in (None, file_digest(layout.eval_cases)):
        faults.append("the evaluation cases have changed since")
    if any(answer.decoding != decoding.fingerprint() for answer in baseline):
        faults.append(f"it was decoded with other settings than the student's ({decoding.described()})")
    if any(answer.model_digest != base_digest for answer in baseline):
        faults.append("it is of another base model than the student's")
    own = cases[0].asked_with
    if manifest is not None and manifest.inputs.get("prompt", BUILT_IN.digest) != own.digest:
        faults.append(f"it was asked under another prompt than the student is ({own.name})")
    if faults:
        raise UserError(
            f"The baseline does not fit this evaluation: {'; '.join(faults)}. Materialize baseline_report with the "
            "same settings, then eval_report again."
        )


def _refuse_other_prompt(trained: Prompt, own: Prompt) -> None:
    if trained.digest != own.digest:
        raise UserError(
            f"The adapter was trained under the prompt {trained.name!r} ({trained.digest[:12]}), and the one set now "
            f"is {own.name!r} ({own.digest[:12]}): what passes under one may fail under the other. Materialize "
            "supervised_dataset and lora_adapter, then eval_report; or set the template (resource prompt) back."
        )


def spread(cases: Sequence[EvalCase], count: int) -> list[EvalCase]:
    """`count` cases at even distances; all when there are fewer."""
    count = min(count, len(cases))
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
            raise UserError(f"The adapter cannot be evaluated: {said}. Materialize lora_adapter, then eval_report.")
        yield copy, manifest.sha256


def _base_model(spec: BaseModel, layout: Layout, decoding: Decoding) -> tuple[Path, str]:
    """Its folder, and the digest of what answers; this machine must be fit for it, unless a server answers."""
    if not decoding.address:
        require_hardware(spec)
    folder = ensure_base_model(spec, layout)
    return folder, digest_of([base_model_digest(folder), decide_quantization(spec)[0]])


# Answers made elsewhere


def add_rescore(parser: argparse.ArgumentParser) -> None:
    """The arguments of `po-assets rescore`."""
    parser.description = f"{parser.description} The gate is that of the settings."
    parser.add_argument(
        "answers",
        type=Path,
        help="a JSON list (or an object with such a list under `cases`, or JSON Lines) of {case_id, vision_yaml, "
        "review_yaml} or {case_id, text}; tokens, seconds and finish_reason may be there. The answers table of "
        "eval_report has that form: given it, the report is built again",
    )
    parser.add_argument("--cases", type=UPath, help="evaluation cases (default: those of the artifacts)")
    parser.add_argument("--baseline", type=Path, help="answers to compare with (default: those of baseline_report)")
    parser.add_argument("--output", type=UPath, metavar="FOLDER", help="of the report (default: that of eval_report)")
    parser.set_defaults(handle=_rescore_command, error_status=2)


def _rescore_command(options: argparse.Namespace) -> int:
    """Score, gate and report the answers against a scored baseline; cases without answer count as empty ones.

    0 when the gate passed, 1 when it failed; 2 when the answers cannot be read.
    """
    layout = Artifacts().layout
    place, folder = options.cases or layout.eval_cases, options.output or layout.report_json.parent
    if not place.is_file():
        raise UserError(f"Not scored: there are no evaluation cases in {place}; give them with --cases.")
    cases = read_eval_cases(place)
    answers, digest = read_answers(options.answers, cases), file_digest(options.answers)
    baseline = _baseline(options.baseline, cases, layout.baseline_answers)
    # Whoever made the answers decides how; against which baseline is said in the report.
    decoding = baseline[0].decoding if baseline else _ELSEWHERE
    student = score_answers(cases, answers, model="student", model_digest=digest, decoding=decoding)
    found = Evidence(baseline, student, GateProfile(**options.location().given["gate"]))
    record = judge(found, digest, cases_sha256=file_digest(place), decoding="answers made elsewhere")
    document, page = (folder / f"po_rescored_report.{suffix}" for suffix in ("json", "html"))
    models = {"baseline": baseline[0].model_digest[:12], "student": f"answers file {digest[:12]}"}
    report = build_report(cases, found, record, models=models, previous=read_report(document))
    write_report(report, found, document, page)
    lines = [
        f"{row['criterion']:<20} {row['required']:>18} {row['value']:>20}  {row['verdict']}"
        for row in verdict_rows(record)
    ]
    if absent := len(cases) - len(answers):
        lines.insert(0, f"{absent} of {len(cases)} cases have no answer; each counts as an empty one.")
    lines.append(f"The gate {'passed' if record.passed else 'failed'}. Report: {page}")
    say("\n".join(lines))
    return 0 if record.passed else 1


def read_answers(path: Path, cases: Sequence[EvalCase]) -> list[Answer]:
    """The answers of a file, for these cases.

    Raises:
        UserError: naming every entry that is not an answer, is of an unknown case, comes twice, or has wrong details.
    """
    known, seen, faults, answers = {case.case_id for case in cases}, set(), [], []
    for number, record in enumerate(_records(path), start=1):
        case_id = str(record.get("case_id", "")) if isinstance(record, dict) else ""
        text = _text(record)
        if text is None or not case_id:
            faults.append(f"answer {number} lacks case_id, or vision_yaml and review_yaml (or text)")
        elif case_id not in known:
            faults.append(f"answer {number} is of case {shown(case_id)!r}, which is not among the {len(known)} cases")
        elif case_id in seen:
            faults.append(f"answer {number} is a second one to case {shown(case_id)!r}")
        else:
            seen.add(case_id)
            try:
                answers.append(Answer(case_id, text, *_details(record)))
            except ValueError as error:
                faults.append(f"answer {number} ({shown(case_id)}) has {shown(error, 200)}")
    if faults:
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise UserError(f"{path}: {'; '.join(faults[:10])}{more}")
    return answers


def _baseline(path: Path | None, cases: Sequence[EvalCase], answers_table: UPath) -> list[ScoredAnswer]:
    if path is not None:
        answers = read_answers(path, cases)
        return score_answers(cases, answers, model="baseline", model_digest=file_digest(path), decoding=_ELSEWHERE)
    if not answers_table.exists():
        raise UserError(
            f"Not scored: there is no baseline to compare with in {answers_table}; give one with --baseline, or "
            "materialize baseline_report."
        )
    return read_scored(answers_table)


def _records(path: Path) -> list[Any]:
    """The entries of the file, whatever they are."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":  # U+2028 and its like, on which splitlines() cuts, may stand in a text
            document: Any = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            document = json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON (.jsonl: one answer per line): {error}") from error
    records = document.get("cases") if isinstance(document, dict) else document
    if not isinstance(records, list) or not records:
        raise UserError(f"{path} holds no list of answers; see `po-assets rescore --help`.")
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


def _text(record: Any) -> str | None:
    """An answer's text, as it is or of its blocks; None where the record has none."""
    if not isinstance(record, dict):
        return None
    if isinstance(record.get("text"), str):
        return str(record["text"])
    blocks = [record.get("vision_yaml"), record.get("review_yaml")]
    if blocks == [None, None] or not all(isinstance(block, str | None) for block in blocks):
        return None
    return format_answer(blocks[0] or "", blocks[1] or "")
