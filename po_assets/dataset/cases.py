"""The evaluation cases: a file that people wrote, read and validated, never rewritten.

A case stands in a form of its own or in any record format in which rows land, which `intake` then reads. What is done
with the cases belongs to `holdout` (kept out of training) and to `evaluation`. `docs/cases.md` says the same to users.
"""

import codecs
import difflib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import yaml
from upath import UPath

from po_assets.errors import UserError, all_faults
from po_assets.intake.formats import FINISHED, read_record
from po_assets.intake.lines import Reason, Rejected, read_object
from po_assets.intake.normalization import holds_anything, input_digest
from po_assets.intake.record import TeacherRecord, is_answer
from po_assets.product_owner import (
    STATUSES,
    parse_answer,
    read_alignment,
    read_status,
    read_yaml,
    requirement_entries,
)
from po_assets.product_owner.documents import canonical_status, with_status
from po_assets.product_owner.templates import BUILT_IN, Prompt
from po_assets.storage import open_buffered
from po_assets.storage.strict_yaml import read_strict_yaml
from po_assets.text import amount

COLUMNS: dict[str, tuple[str, str]] = {
    "case_id": ("string", "Unique name of the case; made from the concept's id or the input where it has none."),
    "tier": ("string", "How large the product is (simple, medium, corporate); empty where nothing is said."),
    "concept": ("string", "The product concept."),
    "requirements_yaml": ("string", "The requirements document."),
    "reference_vision_yaml": ("string", "A good vision; empty where there is no reference answer."),
    "reference_review_yaml": ("string", "A good review; empty where there is no reference answer."),
    "status": ("string", f"The right status: {', '.join(STATUSES)}; none where it is not known."),
    "existing_vision_yaml": ("string", "The vision that the product has already, part of the input; empty for none."),
}
SUFFIXES = (".jsonl", ".yaml", ".yml")
_REFERENCE = ("reference_vision_yaml", "reference_review_yaml")
_TEACHERS_ANSWER = ("teacher_product_vision", "teacher_product_owner_review")
_ANSWERS = (*_TEACHERS_ANSWER, "product_vision", "product_owner_review")
_NAMES = ("case_id", "concept_id")
_IGNORED = ("concept_id", "metadata", "score")
_SHOWN_FAULTS = 20


@dataclass(frozen=True)
class EvalCase:
    """One evaluation case: an input, and as far as they are known a reference answer and the right status.

    What each text is, and when it is empty, stands in `COLUMNS`.
    """

    case_id: str
    tier: str
    concept: str
    requirements_yaml: str
    reference_vision_yaml: str
    reference_review_yaml: str
    status: str | None
    existing_vision_yaml: str = ""
    asked_with: Prompt = BUILT_IN
    """Of the run, not of the case."""

    @cached_property
    def prompt(self) -> str:
        """The user's turn, as in training; the system text is that of `asked_with`."""
        return self.asked_with.user(self.concept, self.requirements_yaml, self.existing_vision_yaml)

    @property
    def turns(self) -> list[dict[str, str]]:
        """The whole conversation (`role`, `content`): a system text where there is one, and the user's turn."""
        return self.asked_with.turns(self.concept, self.requirements_yaml, self.existing_vision_yaml)

    @cached_property
    def requirement_ids(self) -> tuple[str, ...]:
        """The ids that an answer may cite, in document order."""
        entries = requirement_entries(self.requirements_yaml)
        return tuple(dict.fromkeys(entry.id for entry in entries if entry.id))

    @cached_property
    def reference_conflicts(self) -> int:
        """How many conflicts the reference answer lists."""
        return len(read_alignment(self.reference_review_yaml)["conflicts"])

    @property
    def has_reference(self) -> bool:
        """Whether there is a reference answer."""
        return bool(self.reference_review_yaml)

    @cached_property
    def input_digest(self) -> str:
        """What the case asks, as rows have it."""
        return input_digest(self.concept, self.requirements_yaml, self.existing_vision_yaml)


class CaseFile(NamedTuple):
    """The cases of a file, and what had to be decided about them."""

    cases: list[EvalCase]
    notes: list[dict[str, object]]
    """`case` and `note`: a status read by an alias, a key that nothing reads."""


def read_eval_cases(path: UPath, asked_with: Prompt = BUILT_IN) -> list[EvalCase]:
    """The evaluation cases in the file's order, to be asked with this prompt; errors as `read_case_file`."""
    return [replace(case, asked_with=asked_with) for case in read_case_file(path).cases]


def read_case_file(path: UPath) -> CaseFile:
    """The evaluation cases, validated: JSON lines, or with the suffix .yaml or .yml a YAML list of mappings.

    Raises:
        UserError: the file is missing or empty, there are two, or cases are faulty; all faults of the file are named.
    """
    _refuse_none_or_two(path)
    return read_cases(path.resolve() if path.is_symlink() else path)  # the file that a person corrects


def read_cases(path: UPath) -> CaseFile:
    """As `read_case_file`, of a file of any name."""
    read: list[tuple[EvalCase, str]] = []
    places: list[str] = []
    faults: list[str] = []
    notes: list[dict[str, object]] = []
    for place, row in _rows(path):
        try:
            case, concept_id, found = _read_case(row)
        except _FaultyCase as faulty:
            faults += [f"{place}: {fault}" for fault in faulty.args]
        else:
            read.append((case, concept_id))
            places.append(place)
            notes += [{"case": place, "note": note} for note in found]
    cases = _named(read)
    faults += _repeated(cases, places) if cases or faults else ["it is empty"]
    if faults:
        raise all_faults(
            f"The evaluation cases {str(path)!r} have {amount(len(faults), 'fault')}. Correct the file and materialize "
            "eval_cases again",
            faults,
            most=_SHOWN_FAULTS,
        )
    return CaseFile(cases, notes)


class _FaultyCase(Exception):  # noqa: N818 - a finding about a case
    """Everything that is wrong with a case, a sentence each."""


def _refuse_none_or_two(path: UPath) -> None:
    there = [other.name for suffix in SUFFIXES if (other := path.with_suffix(suffix)).exists()]
    if len(there) > 1:
        raise UserError(
            f"There are {len(there)} files of evaluation cases in {str(path.parent)!r}: {' and '.join(there)}. "
            "Keep one of them."
        )
    if not path.exists():
        raise UserError(
            f"The evaluation cases {str(path)!r} do not exist. Put the file there (it is committed with the project: "
            "`git checkout` brings it back): a JSON object a line, or as .yaml a list of mappings, with at least "
            "concept and requirements_yaml each; docs/cases.md has the forms."
        )


def _rows(path: UPath) -> Iterator[tuple[str, Any]]:
    """The place of each case, and what stands there: a mapping, anything else, or why it cannot be read."""
    if path.suffix.lower() not in SUFFIXES[1:]:
        with open_buffered(path) as file:
            opening = b""
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                opening = opening or line
                try:
                    yield f"line {number}", read_object(line, opening=opening)
                except Rejected as rejected:
                    yield f"line {number}", rejected
        return
    try:
        document = read_strict_yaml(path.read_bytes())
    except ValueError as error:
        raise UserError(f"The evaluation cases {str(path)!r} are not YAML: {error}. Correct the file.") from None
    if document is not None and not isinstance(document, list):
        raise UserError(
            f"The evaluation cases {str(path)!r} must be a YAML list with a mapping for each case, which begins with "
            f"'- '; got {document!r:.60}."
        )
    for number, row in enumerate(document or [], start=1):
        yield f"case {number}", row


def case_lines(path: UPath) -> list[bytes]:
    """Each case of a sound file as a line of JSON; as it stands there, where it is one."""
    if path.suffix.lower() in SUFFIXES[1:]:
        return [json.dumps(row, ensure_ascii=False, default=str).encode() for _, row in _rows(path)]
    return [line for line in path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n") if line.strip()]


def _with_documents_as_text(row: dict[Any, Any]) -> dict[str, Any]:
    """A document may also stand as the mapping that it is."""
    inner = {key: _with_documents_as_text(row[key]) for key in ("input", "output") if isinstance(row.get(key), dict)}
    documents = {
        key: yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
        for key, value in row.items()
        if isinstance(value, dict) and (str(key).endswith("_yaml") or key in _ANSWERS)
    }
    return {str(key): value for key, value in (row | inner | documents).items() if value is not None}


def _read_case(row: Any) -> tuple[EvalCase, str, list[str]]:
    """The case of one row, the id of its concept, and notes; its own id is empty where the row has none.

    Raises:
        _FaultyCase: everything that is wrong with it.
    """
    if isinstance(row, Rejected):
        raise _FaultyCase(f"{row.reason}: {row.detail}")
    if not isinstance(row, dict):
        raise _FaultyCase(f"it must be a mapping, got {row!r:.60}")
    row = _with_documents_as_text(row)
    own = any(key in row for key in _REFERENCE) or (
        "requirements_yaml" in row and not any(key in row for key in _TEACHERS_ANSWER) and not _holds_answer(row)
    )
    case, concept_id, notes = _of_own_form(row) if own else _of_record(row)
    faults = [
        f"{name} does not parse: {error}"
        for name in ("requirements_yaml", *_REFERENCE, "existing_vision_yaml")
        if (text := getattr(case, name)) and (error := read_yaml(text).error)
    ]
    if bool(case.reference_vision_yaml) != bool(case.reference_review_yaml):
        gap = "VISION" if case.reference_review_yaml else "REVIEW"
        faults.append(f"its reference answer has no {gap}; give both documents, or none")
    if not (faults or holds_anything(read_yaml(case.requirements_yaml).value)):
        faults.append(f"the REQUIREMENTS {case.requirements_yaml!r:.60} ask for nothing")
    declared = _status("status", None if row.get("status") == "" else row.get("status"), faults, notes)
    review = read_yaml(case.reference_review_yaml)
    said = review.value.get("status", "missing") if case.reference_review_yaml and not review.error else None
    reviewed = _status("the reference review's status", said, faults, notes)
    if declared and reviewed and declared != reviewed:
        faults.append(f"status is {declared!r}, but the reference review says {reviewed!r}")
    if reviewed and not faults and read_status(case.reference_review_yaml) != reviewed:
        try:  # in the data's own words, as rows have it
            case = replace(case, reference_review_yaml=with_status(case.reference_review_yaml, reviewed))
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise _FaultyCase(*faults)
    return replace(case, status=declared or reviewed), concept_id, notes


def _holds_answer(row: Mapping[str, Any]) -> bool:
    """Whether a finished answer, or one block of it, stands beside the columns."""
    answers = (parse_answer(row[key]) for key in FINISHED if is_answer(row, key))
    return any(answer.vision_yaml or answer.review_yaml for answer in answers)


def _of_own_form(row: Mapping[str, Any]) -> tuple[EvalCase, str, list[str]]:
    row = {key: str(value) if key in _NAMES and type(value) is int else value for key, value in row.items()}
    record = TeacherRecord()
    record.take_columns(row, row, _REFERENCE)  # which may be absent: what is missing of the answer is no fault
    faults = record.missing + record.wrong
    for name, value in row.items():
        if name not in COLUMNS and name not in _IGNORED:
            close = difflib.get_close_matches(name, COLUMNS, n=1)
            faults.append(f"unknown key {name!r}; " + (f"did you mean {close[0]!r}?" if close else "remove it"))
        elif name in ("case_id", "tier", "status") and not isinstance(value, str):
            faults.append(f"{name} must be a string, got {value!r:.60}; put it in quotes")
    if faults:
        raise _FaultyCase(*faults)
    return _case(row, record, row.get("tier", "")), str(row.get("concept_id", "")), record.notes


def _of_record(row: Mapping[str, Any]) -> tuple[EvalCase, str, list[str]]:
    """A case in the form of a landed row, read as landed rows are; the row's answer is the reference."""
    rest = {key: value for key, value in row.items() if key not in ("case_id", "status")}
    try:
        _, record = read_record(rest, answer_needed=False)
    except Rejected as rejected:
        own = f"; or the form of cases ({', '.join(COLUMNS)})" if rejected.reason == Reason.UNKNOWN_FORMAT else ""
        raise _FaultyCase(f"{rejected.reason}: {rejected.detail}{own}") from None
    return _case(row, record, record.tier or ""), record.concept_id or "", record.notes


def _case(row: Mapping[str, Any], record: TeacherRecord, tier: str) -> EvalCase:
    return EvalCase(
        case_id=str(row.get("case_id", "")),
        tier=tier,
        concept=record.concept.strip(),
        requirements_yaml=record.requirements_yaml,
        reference_vision_yaml=record.vision_yaml,
        reference_review_yaml=record.review_yaml,
        status=None,
        existing_vision_yaml=record.existing_vision_yaml,
    )


def _status(place: str, said: object, faults: list[str], notes: list[str]) -> str | None:
    """A status in the data's own words; None where nothing is said, or something else, which is a fault."""
    if said is None:
        return None
    status = canonical_status(said) if isinstance(said, str) else ""
    if status not in STATUSES:
        faults.append(f"{place} is {said!r}, expected is one of {', '.join(STATUSES)}")
        return None
    if status != str(said).strip().lower():
        notes.append(f"{place} {said!r} was read as {status!r}")
    return status


def _named(read: list[tuple[EvalCase, str]]) -> list[EvalCase]:
    """The cases, each with an id: its own, that of its concept where no other case has it, or a digest of its input."""
    often = Counter(concept_id for _, concept_id in read)
    named: list[EvalCase] = []
    for case, concept_id in read:
        digest = case.input_digest[:8]
        made = concept_id if often[concept_id] == 1 and concept_id else f"{concept_id or 'case'}-{digest}"
        named.append(replace(case, case_id=case.case_id.strip() or made))
    return named


def _repeated(cases: list[EvalCase], places: list[str]) -> list[str]:
    """Cases that share their name or their input with an earlier one."""
    faults: list[str] = []
    ids: set[str] = set()
    inputs: dict[str, str] = {}
    for case, place in zip(cases, places, strict=True):
        if case.case_id in ids:
            faults.append(f"{place}: case_id {case.case_id!r} stands twice")
        ids.add(case.case_id)
        if (other := inputs.setdefault(case.input_digest, case.case_id)) != case.case_id:
            faults.append(f"{place}: case {case.case_id!r} has the same input as {other!r}; remove one of them")
    return faults
