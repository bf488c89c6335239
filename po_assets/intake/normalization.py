"""One landed line becomes one normalized row, or the reason why it cannot be used.

Everything about a row that can be said from the row alone is said here: its parts, its score, whether its answer is
valid, and the digests by which it is the same as another, however it was written down. What depends on other rows or on
settings belongs to `dataset`; how alike two different inputs are, to `dataset.holdout`.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from po_assets.intake.formats import MISSING, TeacherRecord, detect_format
from po_assets.intake.lines import Line, Reason, Rejected, read_object
from po_assets.product_owner import (
    STATUSES,
    read_yaml,
    score_product_owner,
    strip_fences,
    validate_answer,
)
from po_assets.product_owner.documents import to_text

COLUMNS: dict[str, tuple[str, str]] = {
    "record_id": ("string", "Digest of the landed line; the same line has the same id wherever it lands."),
    "file": ("string", "Landed file."),
    "line": ("int", "Line number in the landed file, from 1."),
    "format": ("string", "Record format that the row was read as."),
    "concept_id": ("string", "The teacher's own id of the concept, if it gave one."),
    "tier": ("string", "simple, medium or corporate, if the row says so."),
    "concept": ("string", "The product concept: first part of the input."),
    "requirements_yaml": ("string", "The requirements document as the teacher wrote it: second part of the input."),
    "vision_yaml": ("string", "The product vision as the teacher wrote it, without code fences."),
    "review_yaml": ("string", "The review as the teacher wrote it, without code fences."),
    "status": ("string", f"What the review says: {', '.join(STATUSES)}."),
    "score": ("float", "Declared score, or the metric's where none was declared; 0 to 1."),
    "score_source": ("string", "Where `score` comes from: declared or metric."),
    "declared_score": ("float", "The score that the row declared, if any; 0 to 1."),
    "metric_score": ("float", "The score that this project's metric gives the row; 0 to 1."),
    "valid": ("bool", "Whether the answer passes the validator that students' answers must pass."),
    "invalid_reason": ("string", "The validator's first reason why not; empty for a valid answer."),
    "vision_in_prompt": ("bool", "Whether the landed prompt gave away a vision."),
    "input_digest": ("string", "Digest of concept and requirements, blind to case, white space and YAML style."),
    "metadata": ("json", "Whatever else the teacher said about the row."),
}

REPLACES = "replaces"
"""Key in a row's metadata: the record id of the row that it corrects and takes the place of."""

_RECORD_ID = re.compile(r"[0-9a-f]{16}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""A number written as text. (Python's own `float` also takes 0.8_5, and digits of other scripts.)"""

_HUGE_INTEGER = re.compile(r"it holds .* value has ([0-9]+) digits.*", re.DOTALL)
"""Python's words for an integer that it does not convert, with advice to programmers."""
_HUGE_INTEGER_PLAINLY = r"it holds an integer of \1 digits; put it in quotes or correct it"

_DOCUMENTS = ("REQUIREMENTS", "VISION", "REVIEW")


@dataclass(frozen=True)
class Normalized:
    """A readable row, as a mapping of `COLUMNS`, and what had to be decided about it."""

    row: dict[str, Any]
    notes: str


def normalize(line: Line) -> Normalized:
    """The normalized row of one landed line.

    Raises:
        Rejected: the line cannot be used; says why, and as which format it was read as far as that is known.
    """
    row = read_object(line.data, line.length)
    known = detect_format(row)
    try:
        record = known.convert(row)
        _refuse_control_characters(record)
        declared, note = read_score(record.declared_score)
        documents = [strip_fences(text) for text in (record.requirements_yaml, record.vision_yaml, record.review_yaml)]
        requirements, status = _read_documents(documents)
    except Rejected as rejected:
        raise Rejected(rejected.reason, rejected.detail, format_name=known.name) from None
    metric = score_product_owner(*documents).total
    verdict = validate_answer(documents[1], documents[2])
    notes = [*record.notes, *([note] if note else [])]
    if declared is None:
        notes.append(f"no score was declared; the metric gives {metric:.3f}")
    return Normalized(
        row={
            "record_id": line_id(line.data),
            "file": line.file,
            "line": line.number,
            "format": known.name,
            "concept_id": record.concept_id,
            "tier": record.tier,
            "concept": record.concept.strip(),
            "requirements_yaml": documents[0],
            "vision_yaml": documents[1],
            "review_yaml": documents[2],
            "status": status,
            "score": metric if declared is None else declared,
            "score_source": "metric" if declared is None else "declared",
            "declared_score": declared,
            "metric_score": metric,
            "valid": verdict.ok,
            "invalid_reason": verdict.reason,
            "vision_in_prompt": record.vision_in_prompt,
            "input_digest": input_digest(record.concept, requirements),
            "metadata": record.metadata,
        },
        notes="; ".join(notes),
    )


def read_score(value: Any) -> tuple[float | None, str]:
    """A declared score and what to note about it; None where the row declares none.

    A number written as text is read and noted. Anything else that is no number from 0 to 1 is refused: a wrong score
    must not pass for a missing one.

    Raises:
        Rejected: the value is no number from 0 to 1.
    """
    if value is MISSING or value is None:
        return None, ""
    note = ""
    number = value
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value.strip()):
            raise _bad_score(value)
        number = float(value)
        note = f"the declared score is text ({value!r:.40}) and was read as a number"
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise _bad_score(value)
    if not 0 <= number <= 1:  # neither is NaN
        raise _bad_score(value)
    return float(number), note


def _bad_score(value: object) -> Rejected:
    return Rejected(
        Reason.BAD_SCORE, f"the declared score is {value!r:.60}, a number from 0 to 1 is expected; correct or remove it"
    )


def _read_documents(documents: list[str]) -> tuple[dict[Any, Any], str]:
    """The parsed requirements and the review's status; every document that does not read is named."""
    readings = [read_yaml(text) for text in documents]
    errors = [
        f"{name}: {_HUGE_INTEGER.sub(_HUGE_INTEGER_PLAINLY, reading.error)}"
        for name, reading in zip(_DOCUMENTS, readings, strict=True)
        if reading.error
    ]
    if errors:
        raise Rejected(Reason.BAD_YAML, "; ".join(errors))
    status = readings[2].value.get("status")
    plain = status.strip().lower() if isinstance(status, str) else status
    if plain not in STATUSES:
        raise Rejected(
            Reason.SCHEMA,
            f"the REVIEW's status is {'missing' if status is None else repr(to_text(status)[:60])}, expected is "
            f"{', '.join(STATUSES[:-1])} or {STATUSES[-1]}",
        )
    return readings[0].value, plain


def _refuse_control_characters(record: TeacherRecord) -> None:
    # YAML refuses control characters by itself; in a concept a NUL would pass every reader but some tokenizers.
    if "\x00" in record.concept:
        raise Rejected(Reason.SCHEMA, "the concept holds a NUL character; remove it")


def line_id(line: bytes) -> str:
    """The record id of a landed line: a digest of its bytes, so that it is the same wherever the line lands."""
    return hashlib.blake2b(line.strip(), digest_size=8).hexdigest()


def replaced_record(metadata: Mapping[str, Any]) -> str | None:
    """The record id of the row that a row with this metadata replaces, None where it names none."""
    value = metadata.get(REPLACES)
    return value if isinstance(value, str) and _RECORD_ID.fullmatch(value) else None


def input_digest(concept: str, requirements: str | dict[Any, Any]) -> str:
    """A digest of what the model is asked; case, white space, key order and YAML serialization do not change it."""
    document = read_yaml(requirements).value if isinstance(requirements, str) else requirements
    # A document that does not parse stands for its own text, lest all unreadable documents look alike.
    canonical = [_plain(concept), _canonical(document) if document else _plain(str(requirements))]
    return _digest(orjson.dumps(canonical, option=orjson.OPT_SORT_KEYS))


def content_digest(
    concept: str, requirements_yaml: str, vision_yaml: str, review_yaml: str, *, key: bytes = b""
) -> bytes:
    """8 bytes that depend on a row's four texts (and the key) alone, not on where and in which format they landed."""
    texts = (concept, requirements_yaml, vision_yaml, review_yaml)
    joined = "\x00".join(text.strip() for text in texts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=8, key=key).digest()


def _canonical(value: object) -> object:
    if isinstance(value, dict):
        return {_scalar(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return _scalar(value)


def _scalar(value: object) -> str:
    """A scalar as text, so that `1`, `"1"` and `1 ` are one and the same."""
    if value is None:
        return ""
    try:
        return _plain(str(value))
    except ValueError:  # an integer of more digits than Python prints
        return "huge number"


def _plain(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
