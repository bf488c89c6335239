"""Taking corrections back: a corrected teacher row lands and replaces the old one, a corrected case stays a case.

Nothing is written unless every correction is sound. Evaluation cases never go near the landing folder: their reference
is changed in their own file, and their input keeps being held out of training.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from upath import UPath

from po_assets.dataset.cases import read_eval_cases
from po_assets.errors import UserError
from po_assets.intake.lines import Reason, Rejected
from po_assets.intake.normalization import REPLACES
from po_assets.review.found_right import Known, known_by, remember
from po_assets.review.landing import as_landed, land, to_lines
from po_assets.review.review_file import RIGHT, Edited, plain, read_review_file
from po_assets.storage import Layout, atomic_file, read_rows

LEAST_SCORE = 0.82
"""The selection's default; a correction under it lands, and it is said that it will be left out."""


@dataclass
class Landed:
    """What was taken."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    file: str = ""
    """The file in the landing folder; empty where no row was corrected."""
    cases: list[str] = field(default_factory=list)
    right: list[Known] = field(default_factory=list)
    """Unchanged answers of which a person says that they are right."""
    untouched: int = 0
    """Unchanged answers of which nobody says anything."""
    notes: list[str] = field(default_factory=list)


def land_corrections(layout: Layout) -> Landed:
    """Take all corrections of the review file, which is put aside afterwards.

    Raises:
        UserError: the file cannot be read.
        UserError: what was found right earlier cannot be read.
        UserError: a correction is not sound; every fault is listed.
    """
    edited = read_review_file(layout.review_file)
    faults: list[str] = []
    landed = Landed()
    rows = _corrected_rows(layout, [entry for entry in edited if entry.kind == "teacher_row"], landed, faults)
    cases = _corrected_cases(layout, [entry for entry in edited if entry.kind == "evaluation_case"], landed, faults)
    if faults:
        raise UserError(
            f"{len(faults)} fault(s) in {str(layout.review_file)!r}, nothing was taken: " + "; ".join(faults) + "."
        )
    if landed.right:
        remember(layout, landed.right)  # first, since it may find its file broken
    if rows:
        lines = to_lines(rows)
        digest = hashlib.blake2b(b"\n".join(lines), digest_size=5).hexdigest()
        path = layout.incoming / f"corrections-{digest}.jsonl"
        land(path, lines)
        landed.rows, landed.file = rows, path.name
    if cases is not None:
        with atomic_file(layout.eval_cases) as file:
            file.write(cases)
    if rows or cases is not None or landed.right:
        _put_aside(layout.review_file)
    return landed


def _corrected_rows(
    layout: Layout, edited: Sequence[Edited], landed: Landed, faults: list[str]
) -> list[dict[str, Any]]:
    wanted = {entry.identifier for entry in edited}
    if edited and not layout.normalized.exists():
        faults.append(f"there is no {str(layout.normalized)!r}: materialize normalized_teacher")
        return []
    originals = {row["record_id"]: row for row in read_rows(layout.normalized) if row["record_id"] in wanted}
    rows = []
    for entry in edited:
        row = originals.get(entry.identifier)
        if row is None:
            faults.append(f"row {entry.identifier} has not landed, or not any more")
            continue
        place = f"{row['file']}:{row['line']}"
        faults += _changed_input(entry, row, place)
        if _same_answer(entry, row["vision_yaml"], row["review_yaml"]):
            _leave(entry, landed)
            continue
        faults += _right_and_changed(entry, place)
        corrected = _row(entry, row)
        try:
            score = _readable(corrected)["metric_score"]
        except Rejected as rejected:
            faults.append(f"the corrected answer to {place} is not valid: {rejected.detail}")
            continue
        if score < LEAST_SCORE:
            landed.notes.append(
                f"The corrected answer to {place} scores {score:.3f}: with a min_score of {LEAST_SCORE:g} it is left "
                "out of training, and so is the old one."
            )
        rows.append(corrected | {"score": score})
    return rows


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """The row as it will be read.

    Raises:
        Rejected: it would be rejected, and the row that it replaces trained on as before; or its answer is not valid.
    """
    normalized = as_landed(row)
    if not normalized["valid"]:
        raise Rejected(Reason.SCHEMA, normalized["invalid_reason"])
    return normalized


def _row(entry: Edited, original: dict[str, Any]) -> dict[str, Any]:
    """The row that lands, without its score."""
    labels = {key: original[key] for key in ("concept_id", "tier") if original[key]}
    return {
        **labels,
        "concept": original["concept"],
        "requirements_yaml": original["requirements_yaml"],
        "teacher_product_vision": entry.vision_yaml.strip(),
        "teacher_product_owner_review": entry.review_yaml.strip(),
        "score": None,
        "metadata": {
            **original["metadata"],
            REPLACES: entry.identifier,
            "corrected_from": f"{original['file']}:{original['line']}",
        },
    }


def _corrected_cases(layout: Layout, edited: Sequence[Edited], landed: Landed, faults: list[str]) -> bytes | None:
    """The file of evaluation cases with the corrections, all other lines to the byte; None where none is changed."""
    if not edited:
        return None
    try:
        read_eval_cases(layout.eval_cases)
    except UserError as error:
        faults.append(str(error).removesuffix("."))
        return None
    waiting = {entry.identifier: entry for entry in edited}
    lines = layout.eval_cases.read_bytes().splitlines()
    for number, line in enumerate(lines):
        case = orjson.loads(line)
        entry = waiting.pop(case["case_id"], None)
        if entry is None:
            continue
        name = f"case {entry.identifier}"
        faults += _changed_input(entry, case, name)
        same = _same_answer(entry, case["reference_vision_yaml"], case["reference_review_yaml"])
        if same and entry.status in ("", case["status"]):
            _leave(entry, landed)
            continue
        faults += _right_and_changed(entry, name)
        try:
            lines[number] = orjson.dumps(case | _reference(entry, case))
            landed.cases.append(entry.identifier)
        except Rejected as rejected:
            faults.append(f"the corrected reference of {name} is not valid: {rejected.detail}")
    faults += [f"there is no case {name}" for name in waiting]
    return b"".join(line + b"\n" for line in lines) if landed.cases else None


def _reference(entry: Edited, case: Mapping[str, Any]) -> dict[str, str]:
    """What the correction changes of a case.

    Raises:
        Rejected: as a teacher's, the answer would be rejected or not valid; or the status is another than the case's.
    """
    vision, review = entry.vision_yaml.strip(), entry.review_yaml.strip()
    asked = {key: case[key] for key in ("concept", "requirements_yaml")}
    answer = {"teacher_product_vision": vision, "teacher_product_owner_review": review}
    status = _readable(asked | answer)["status"]
    if entry.status not in ("", status):
        raise Rejected(
            Reason.SCHEMA,
            f"its REVIEW says status {status!r}, the entry's own field `status` says {entry.status!r}; set `status: "
            f"{status}` in the entry, or correct the REVIEW",
        )
    return {"reference_vision_yaml": vision, "reference_review_yaml": review, "status": status}


def _leave(entry: Edited, landed: Landed) -> None:
    """An answer that nobody changed: found right, or not looked at."""
    if entry.verdict == RIGHT:
        landed.right.append(known_by(entry.kind, entry.identifier, entry.vision_yaml, entry.review_yaml))
    else:
        landed.untouched += 1


def _right_and_changed(entry: Edited, name: str) -> list[str]:
    if entry.verdict != RIGHT:
        return []
    return [
        f"the answer of {name} was changed, and its verdict is {RIGHT!r}: undo the change, or leave `verdict` empty"
    ]


def _changed_input(entry: Edited, original: dict[str, Any], name: str) -> list[str]:
    return [
        f"the {part} of {name} was changed; only answers are corrected here"
        for part, key in (("concept", "concept"), ("requirements", "requirements_yaml"))
        if " ".join(getattr(entry, key).split()) != " ".join(original[key].split())
    ]


def _same_answer(entry: Edited, vision: str, review: str) -> bool:
    return plain(entry.vision_yaml) == plain(vision) and plain(entry.review_yaml) == plain(review)


def _put_aside(path: UPath) -> None:
    """Rename the file after its content, so that the next candidates get a fresh one and no edit is lost."""
    content = path.read_bytes()
    digest = hashlib.blake2b(content, digest_size=5).hexdigest()
    with atomic_file(path.parent / f"{path.stem}.landed-{digest}{path.suffix}") as file:
        file.write(content)
    path.unlink()
