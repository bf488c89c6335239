"""The review file: answers that a person should look at, written as YAML, corrected in an editor, and taken back.

Which answers those are belongs to `candidates`. Two kinds stand in it, kept apart to the end. A corrected teacher row
lands and replaces the old one; a corrected evaluation case changes its reference in the file of cases, never lands, and
keeps being held out of training.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import orjson
from upath import UPath

from po_assets.dataset.cases import COLUMNS, EvalCase, case_lines, read_eval_cases
from po_assets.errors import UserError
from po_assets.intake.lines import Rejected
from po_assets.intake.normalization import REPLACES, as_landed
from po_assets.product_owner.contract import MIN_SCORE
from po_assets.review.entries import (
    add_actions,
    land_lines,
    land_new_file,
    plain,
    put_aside,
    read_entries,
    write_entries,
)
from po_assets.storage import Layout, digest_of, read_rows
from po_assets.text import amount, shown, verb

_HEADER = """\
# Answers to look at, the worst first; `why` says what caught the eye.
#
# Correct `vision` and `review` where they are wrong. Where they are right, write `verdict: right`: the answer stays
# what it is and is not shown again. Leave everything else as it is; an entry that you delete, or leave unchanged
# without a verdict, stays what it is and comes back next time. Then
#
#     {command}
#
# checks all entries before it takes any.
#   teacher_row      lands in incoming/ as a new row that replaces the old one; the row ledger says by which line.
#   evaluation_case  changes the reference answer (and `status`) in evaluation/po_eval_cases.jsonl. It is never trained
#                    on. `student_answer` is only there to compare with.
"""
RIGHT = "right"
"""The verdict on an answer that needs no correction."""
CORRECTIONS = "corrections"
"""How the names of landed files of corrected rows begin."""
_PARTS = ("concept", "requirements", "vision", "review")
_APPROVED_KEYS = ("candidate", "id", "answer")

Kind = Literal["teacher_row", "evaluation_case"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Approved = tuple[str, str, str]
"""What an answer that a person found right is known by: kind, id and a digest of its text."""


@dataclass(frozen=True)
class Entry:
    """A row or case with the answer that may be wrong."""

    kind: Kind
    identifier: str
    """Record id of a row, case id of a case."""
    concept: str
    requirements: str
    vision: str
    review: str
    status: str = ""
    verdict: str = ""
    """`RIGHT`, or empty."""
    place: str = ""
    why: tuple[str, ...] = ()
    weight: float = 0.0
    """The greater the worse."""
    student_answer: str = ""
    """What the student wrote, to compare with; cases only."""
    written: str = ""
    """Digest of the answer as the file was written with it; empty in a file of an earlier version."""

    @property
    def key(self) -> Approved:
        """White space does not count, which block scalars do not keep."""
        return self.kind, self.identifier, digest_of([self.vision.split(), self.review.split()])[:16]


@dataclass
class Landed:
    """What was taken of a review file."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    file: str = ""
    """The file in the landing folder; empty where no row was corrected."""
    cases: list[str] = field(default_factory=list)
    approved: list[Approved] = field(default_factory=list)
    untouched: int = 0
    """Unchanged answers without a verdict."""
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """Why nothing was taken."""


def entry_of_row(row: Mapping[str, Any], **more: Any) -> Entry:
    """A normalized row with its answer."""
    texts = (row["concept"], row["requirements_yaml"], row["vision_yaml"], row["review_yaml"])
    return Entry("teacher_row", row["record_id"], *texts, place=f"{row['file']}:{row['line']}", **more)


def entry_of_case(case: EvalCase) -> Entry:
    """A case with its reference answer."""
    texts = (case.concept, case.requirements_yaml, case.reference_vision_yaml, case.reference_review_yaml)
    return Entry("evaluation_case", case.case_id, *texts, status=case.status or "", place=f"case {case.case_id}")


def read_approved(layout: Layout) -> set[Approved]:
    """All answers that people found right; a line that is deleted from the file brings its answer back.

    Raises:
        UserError: a line is none of this file's.
    """
    path, found = layout.approved_answers, set()
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], start=1):
        try:
            record = orjson.loads(line) if line.strip() else None
            found |= {(str(record["candidate"]), str(record["id"]), str(record["answer"]))} if record else set()
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"Line {number} of {str(path)!r} is {line[:60].decode(errors='replace')!r}, a JSON object with "
                f"{', '.join(_APPROVED_KEYS)} is expected. Correct it, or delete it: its answer is then shown again."
            ) from None
    return found


def write_review_file(layout: Layout, candidates: Sequence[Entry]) -> None:
    """Write the candidates into the review file, in one step."""
    entries = []
    for one in candidates:
        entry = {"candidate": one.kind, "id": one.identifier, "from": one.place, "why": list(one.why), "verdict": ""}
        entry |= {"answer": one.key[2], "concept": plain(one.concept), "requirements": f"{plain(one.requirements)}\n"}
        entry |= {"status": one.status} if one.kind == "evaluation_case" else {}
        entry |= {"vision": f"{plain(one.vision)}\n", "review": f"{plain(one.review)}\n"}
        entry |= {"student_answer": f"{plain(one.student_answer)}\n"} if one.student_answer else {}
        entries.append(entry)
    write_entries(layout.review_file, _HEADER.format(command=layout.command("review land")), entries)


def read_review_file(path: UPath) -> list[Entry]:
    """The entries as they stand now.

    Raises:
        UserError: there is no such file, it is not YAML, or entries lack a part.
    """
    entries = read_entries(path, "Materialize review_candidates first.")
    faults = [fault for number, entry in enumerate(entries, start=1) for fault in _faults(number, entry)]
    often = Counter((entry["candidate"], str(entry["id"])) for entry in ([] if faults else entries))
    faults += [f"{shown(name)} has {times} entries; keep one" for (_, name), times in often.items() if times > 1]
    if faults:
        raise UserError(f"{str(path)!r} has {amount(len(faults), 'fault')}: {'; '.join(faults)}.")
    return [
        Entry(
            kind=entry["candidate"],
            identifier=str(entry["id"]),
            **{part: entry[part] for part in _PARTS},
            status=_word(entry, "status"),
            verdict=_word(entry, "verdict"),
            written=_word(entry, "answer"),
        )
        for entry in entries
    ]


def _faults(number: int, entry: object) -> list[str]:
    if not isinstance(entry, dict):
        return [f"entry {number} must be a mapping, got {str(entry)[:40]!r}"]
    name, verdict = f"entry {number} ({entry.get('id', 'no id')})", _word(entry, "verdict")
    faults = [f"{name} must have a {part} that is text" for part in _PARTS if not isinstance(entry.get(part), str)]
    if entry.get("candidate") not in KINDS:
        faults.append(f"{name} is a candidate of kind {entry.get('candidate')!r}")
    if verdict not in ("", RIGHT):
        faults.append(f"{name} has the verdict {verdict!r}: write {RIGHT!r}, or leave it empty and correct the answer")
    return faults if entry.get("id") else [*faults, f"{name} has no id"]


def _word(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    return "" if value is None else str(value).strip().lower()


def add_review(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Answers that people corrected in the file of `review_candidates`."""
    return add_actions(parser, {"land": (land, "take the corrections of the review file")})


def land(layout: Layout, say: Callable[[str], object]) -> int:
    """The command `po-assets review land`: take the corrections of the review file, and say what became of them.

    Raises:
        UserError: as `land_corrections`.
    """
    landed = land_corrections(layout)
    if landed.rows:
        say(
            f"{amount(len(landed.rows), 'corrected row')} landed in incoming/{landed.file}; each replaces its old row "
            "when the graph runs (the sensor starts it)."
        )
    if landed.cases:
        say(
            f"{amount(len(landed.cases), 'evaluation case')} ({', '.join(landed.cases)}) changed in "
            f"{layout.eval_cases.resolve()}: commit the file. The next evaluation uses them; none is trained on."
        )
    if landed.approved:
        name = layout.approved_answers.name
        answers, were = amount(len(landed.approved), "answer"), verb(len(landed.approved), "was", "were")
        say(f"{answers} {were} approved and not shown again (curation/{name}).")
    if landed.untouched:
        left = verb(landed.untouched, "was left as it is", "were left as they are")
        say(f"{amount(landed.untouched, 'answer')} {left}.")
    for note in landed.notes:
        say(note)
    return 0


def land_corrections(layout: Layout) -> Landed:
    """Take all corrections of the review file, which is put aside afterwards; nothing unless every one is sound.

    Raises:
        UserError: the file, or the approved answers, cannot be read; a correction is not sound (every fault is listed).
    """
    entries, landed = read_review_file(layout.review_file), Landed()
    _correct_rows(layout, [entry for entry in entries if entry.kind == "teacher_row"], landed)
    corrected_cases = _correct_cases(layout, [entry for entry in entries if entry.kind == "evaluation_case"], landed)
    if faults := landed.faults:
        said = "; ".join(faults)
        raise UserError(f"{amount(len(faults), 'fault')} in {str(layout.review_file)!r}, nothing was taken: {said}.")
    if landed.approved:  # first, since it may find its file broken
        everything = sorted(read_approved(layout) | set(landed.approved))
        records = (dict(zip(_APPROVED_KEYS, known, strict=True)) for known in everything)
        land_lines(layout.approved_answers, map(orjson.dumps, records))
    if landed.rows:
        landed.file = land_new_file(layout, CORRECTIONS, landed.rows)
    if landed.cases:
        land_lines(layout.eval_cases.resolve(), corrected_cases)  # a project's file is linked there
    if landed.rows or landed.cases or landed.approved:
        put_aside(layout.review_file)
    return landed


def _correct_rows(layout: Layout, entries: Sequence[Entry], landed: Landed) -> None:
    """Make the rows that land."""
    if entries and not layout.normalized.exists():
        landed.faults.append(f"there is no {str(layout.normalized)!r}: materialize normalized_teacher")
        return
    wanted = {entry.identifier for entry in entries}
    rows = {row["record_id"]: row for row in read_rows(layout.normalized) if row["record_id"] in wanted}
    for entry in entries:
        row = rows.get(entry.identifier)
        if row is None:
            landed.faults.append(f"row {shown(entry.identifier)} has not landed, or not any more")
            continue
        original = entry_of_row(row)
        if not (normalized := _corrected(entry, original, f"answer to {original.place}", landed)):
            continue
        score = normalized["metric_score"]
        labels = {key: row[key] for key in ("concept_id", "tier") if row[key]}
        metadata = row["metadata"] | {REPLACES: entry.identifier, "corrected_from": original.place}
        landed.rows.append({**labels, **_landing_row(entry, original), "score": score, "metadata": metadata})
        if score < MIN_SCORE:
            landed.notes.append(
                f"The corrected answer to {original.place} scores {score:.3f}: with a min_score of {MIN_SCORE:g} it is "
                "left out of training, and so is the old one."
            )


def _correct_cases(layout: Layout, entries: Sequence[Entry], landed: Landed) -> list[bytes]:
    """The lines of the evaluation cases with the corrections, all others to the byte."""
    try:
        cases = {case.case_id: case for case in read_eval_cases(layout.eval_cases)} if entries else {}
    except UserError as error:
        landed.faults.append(str(error).removesuffix("."))
        return []
    changed: dict[str, dict[str, str]] = {}
    for entry in entries:
        if entry.identifier not in cases:
            landed.faults.append(f"there is no case {shown(entry.identifier)}")
            continue
        name = f"reference of case {shown(entry.identifier)}"
        if not (normalized := _corrected(entry, entry_of_case(cases[entry.identifier]), name, landed)):
            continue
        status = normalized["status"]
        if entry.status not in ("", status):
            landed.faults.append(
                f"the corrected {name} is not valid: its REVIEW says status {status!r}, the entry's own field `status` "
                f"says {entry.status!r}; set `status: {status}` in the entry, or correct the REVIEW"
            )
        changed[entry.identifier] = {
            "reference_vision_yaml": entry.vision.strip(),
            "reference_review_yaml": entry.review.strip(),
            "status": status,
        }
    landed.cases += changed
    if not changed:
        return []
    if layout.eval_cases.suffix != ".jsonl":
        landed.faults.append(
            f"{str(layout.eval_cases)!r} is YAML, which is not rewritten: correct {', '.join(changed)} there, and take "
            "the entries out of the review file"
        )
        return []
    return [
        orjson.dumps(_own_form(orjson.loads(line), case) | changed[case.case_id]) if case.case_id in changed else line
        for line, case in zip(case_lines(layout.eval_cases), cases.values(), strict=True)
    ]


def _own_form(row: dict[str, Any], case: EvalCase) -> dict[str, Any]:
    """The row itself where it has the form of cases; a row of a record format in that form."""
    own = {"case_id", "reference_review_yaml"} <= row.keys()
    return row if own else {key: value for key in COLUMNS if (value := getattr(case, key))}


def _corrected(entry: Entry, original: Entry, name: str, landed: Landed) -> dict[str, Any] | None:
    """The normalized row that a corrected answer makes; None where nothing was corrected, or is not sound."""
    landed.faults += [
        f"the {part} of {original.place} was changed; only answers are corrected here"
        for part in ("concept", "requirements")
        if getattr(entry, part).split() != getattr(original, part).split()
    ]
    same = all(plain(getattr(entry, part)) == plain(getattr(original, part)) for part in ("vision", "review"))
    if not same and entry.written not in ("", original.key[2]):
        if entry.key[2] == entry.written and not entry.verdict:
            landed.untouched += 1
        else:
            landed.faults.append(
                f"the answer of {original.place} has changed since this file was written: correct it there, and take "
                "the entry out"
            )
        return None
    if same and entry.status in ("", original.status):
        if entry.verdict == RIGHT:
            landed.approved.append(entry.key)
        else:
            landed.untouched += 1
        return None
    if entry.verdict == RIGHT:
        landed.faults.append(
            f"the answer of {original.place} was changed, and its verdict is {RIGHT!r}: undo the change, or leave "
            "`verdict` empty"
        )
    try:
        normalized = as_landed(_landing_row(entry, original))
        reason = "" if normalized["valid"] else normalized["invalid_reason"]
    except Rejected as rejected:  # the row that it replaces would be trained on as before
        normalized, reason = None, rejected.detail
    if reason:
        landed.faults.append(f"the corrected {name} is not valid: {reason}")
    return None if reason else normalized


def _landing_row(entry: Entry, original: Entry) -> dict[str, Any]:
    return {
        "concept": original.concept,
        "requirements_yaml": original.requirements,
        "teacher_product_vision": entry.vision.strip(),
        "teacher_product_owner_review": entry.review.strip(),
    }
