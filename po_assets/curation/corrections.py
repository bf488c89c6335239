"""Taking corrections back: a corrected teacher row lands and replaces the old one, a corrected case stays a case.

Nothing is written unless every correction is sound. Evaluation cases never go near the landing folder: their reference
is changed in their own file, and their input keeps being held out of training.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from upath import UPath

from po_assets.curation.landing import land, to_lines
from po_assets.curation.review_file import Edited, plain, read_review_file
from po_assets.dataset.eval_cases import EvalCasesError, read_eval_cases
from po_assets.product_owner import read_status, score_product_owner, validate_answer
from po_assets.storage import Layout, atomic_file
from po_assets.teacher.identity import REPLACES
from po_assets.teacher.ledger import read_rows

LEAST_SCORE = 0.82
"""The selection's default; a correction under it lands, and it is said that it will be left out."""


class CorrectionError(ValueError):
    """Corrections that cannot be taken. The message lists every fault; nothing was written."""


@dataclass
class Landed:
    """What was taken."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    file: str = ""
    """The file in the landing folder; empty where no row was corrected."""
    cases: list[str] = field(default_factory=list)
    untouched: int = 0
    notes: list[str] = field(default_factory=list)


def land_corrections(layout: Layout) -> Landed:
    """Take all corrections of the review file, which is put aside afterwards.

    Raises:
        ReviewFileError: the file cannot be read.
        CorrectionError: a correction is not sound; every fault is listed.
    """
    edited = read_review_file(layout.review_file)
    faults: list[str] = []
    landed = Landed()
    rows = _corrected_rows(layout, [entry for entry in edited if entry.kind == "teacher_row"], landed, faults)
    cases = _corrected_cases(layout, [entry for entry in edited if entry.kind == "evaluation_case"], landed, faults)
    if faults:
        raise CorrectionError(
            f"{len(faults)} fault(s) in {str(layout.review_file)!r}, nothing was taken: " + "; ".join(faults) + "."
        )
    if rows:
        lines = to_lines(rows)
        digest = hashlib.blake2b(b"\n".join(lines), digest_size=5).hexdigest()
        path = layout.incoming / f"corrections-{digest}.jsonl"
        land(path, lines)
        landed.rows, landed.file = rows, path.name
    if cases is not None:
        with atomic_file(layout.eval_cases) as file:
            file.write(cases)
    if rows or cases is not None:
        _put_aside(layout.review_file)
    return landed


def _corrected_rows(
    layout: Layout, edited: Sequence[Edited], landed: Landed, faults: list[str]
) -> list[dict[str, Any]]:
    wanted = {entry.identifier for entry in edited}
    originals = {row["record_id"]: row for row in read_rows(layout.normalized) if row["record_id"] in wanted}
    rows = []
    for entry in edited:
        row = originals.get(entry.identifier)
        if row is None:
            faults.append(f"row {entry.identifier} has not landed, or not any more")
            continue
        faults += _changed_input(entry, row, f"{row['file']}:{row['line']}")
        if _same_answer(entry, row["vision_yaml"], row["review_yaml"]):
            landed.untouched += 1
            continue
        place = f"{row['file']}:{row['line']}"
        verdict = validate_answer(entry.vision_yaml, entry.review_yaml)
        if not verdict:
            faults.append(f"the corrected answer to {place} is not valid: {verdict.reason}")
            continue
        score = score_product_owner(row["requirements_yaml"], entry.vision_yaml, entry.review_yaml).total
        if score < LEAST_SCORE:
            landed.notes.append(
                f"The corrected answer to {place} scores {score:.3f}: with a min_score of {LEAST_SCORE:g} it is left "
                "out of training, and so is the old one."
            )
        rows.append(_row(entry, row, score))
    return rows


def _row(entry: Edited, original: dict[str, Any], score: float) -> dict[str, Any]:
    labels = {key: original[key] for key in ("concept_id", "tier") if original[key]}
    return {
        **labels,
        "concept": original["concept"],
        "requirements_yaml": original["requirements_yaml"],
        "teacher_product_vision": entry.vision_yaml.strip(),
        "teacher_product_owner_review": entry.review_yaml.strip(),
        "score": score,
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
    waiting = {entry.identifier: entry for entry in edited}
    lines = layout.eval_cases.read_bytes().splitlines()
    for number, line in enumerate(lines):
        case = orjson.loads(line)
        entry = waiting.pop(case["case_id"], None)
        if entry is not None:
            faults += _changed_input(entry, case, f"case {entry.identifier}")
            same = _same_answer(entry, case["reference_vision_yaml"], case["reference_review_yaml"])
            if same and entry.status == case["status"]:
                landed.untouched += 1
            else:
                lines[number] = orjson.dumps(case | _reference(entry))
                landed.cases.append(entry.identifier)
                verdict = validate_answer(entry.vision_yaml, entry.review_yaml)
                if not verdict:
                    faults.append(f"the corrected reference of case {entry.identifier} is not valid: {verdict.reason}")
    faults += [f"there is no case {name}" for name in waiting]
    if not landed.cases:
        return None
    content = b"".join(line + b"\n" for line in lines)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / layout.eval_cases.name
        draft.write_bytes(content)
        try:
            read_eval_cases(UPath(draft))
        except EvalCasesError as error:
            faults.append(str(error))
    return content


def _reference(entry: Edited) -> dict[str, str]:
    review = entry.review_yaml.strip()
    return {
        "reference_vision_yaml": entry.vision_yaml.strip(),
        "reference_review_yaml": review,
        "status": entry.status or read_status(review) or "",
    }


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
