"""The formats in which teacher rows land, one small class each, detected per row.

A format says which rows are its own (`matches`, by their keys alone) and turns one into a `TeacherRecord` (`convert`).
To add a format, add a class and name it in `FORMATS`. Whether the parts are good YAML, and what they score, belongs to
`normalization`.
"""
# ruff: noqa: D102 - what a format's methods do is said at `RecordFormat`

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from po_assets.intake.lines import Reason, Rejected
from po_assets.product_owner import parse_answer, read_yaml, split_prompt

Row = Mapping[str, Any]
MISSING: Any = object()
"""Stands for a declared score that the row does not have."""


@dataclass(frozen=True)
class TeacherRecord:
    """The parts of one teacher row, as text; nothing about them is judged yet."""

    concept: str
    requirements_yaml: str
    vision_yaml: str
    review_yaml: str
    declared_score: Any = MISSING
    concept_id: str | None = None
    tier: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    vision_in_prompt: bool = False
    """The prompt gave away a vision that the answer must contain."""
    notes: tuple[str, ...] = ()
    """What had to be decided about the row; goes into the ledger."""


class RecordFormat(Protocol):
    """One format of landed rows."""

    name: str
    looks_like: str

    def matches(self, row: Row) -> bool:
        """Whether the row's keys are those of this format."""

    def convert(self, row: Row) -> TeacherRecord:
        """The row's parts; raises `Rejected` naming every part that is missing or not a string."""


class TeacherFormat:
    """The first teacher script's rows: one key for each part."""

    name = "teacher"
    looks_like = "concept, requirements_yaml, teacher_product_vision, teacher_product_owner_review, score, metadata"

    def matches(self, row: Row) -> bool:
        return "teacher_product_vision" in row or "teacher_product_owner_review" in row

    def convert(self, row: Row) -> TeacherRecord:
        concept, requirements, vision, review = _strings(
            (row, ("concept", "requirements_yaml", "teacher_product_vision", "teacher_product_owner_review"))
        )
        return TeacherRecord(concept, requirements, vision, review, **_about(row, row))


class NestedFormat:
    """The second teacher script's rows: `input` and `output` objects."""

    name = "nested"
    looks_like = (
        "input {concept_id, concept, requirements_yaml, tier, metadata}, "
        "output {product_vision, product_owner_review}, score"
    )

    def matches(self, row: Row) -> bool:
        return isinstance(row.get("input"), dict) and isinstance(row.get("output"), dict)

    def convert(self, row: Row) -> TeacherRecord:
        concept, requirements, vision, review = _strings(
            (row["input"], ("concept", "requirements_yaml"), "input."),
            (row["output"], ("product_vision", "product_owner_review"), "output."),
        )
        about = _about(row, row["input"])
        about["metadata"] = _metadata(row["input"]) | about["metadata"]
        return TeacherRecord(concept, requirements, vision, review, **about)


class PromptOutputFormat:
    """Hand-made and template rows: a finished prompt and its answer."""

    name = "prompt/output"
    looks_like = "concept_id, tier, prompt, output, score"

    def matches(self, row: Row) -> bool:
        return "prompt" in row and "output" in row

    def convert(self, row: Row) -> TeacherRecord:
        return _from_texts(*_strings((row, ("prompt", "output"))), row)


class PairFormat:
    """Rows of a supervised dataset that this project wrote, so that an old one can be taken in again."""

    name = "pair"
    looks_like = "prompt, response"

    def matches(self, row: Row) -> bool:
        return "prompt" in row and "response" in row

    def convert(self, row: Row) -> TeacherRecord:
        return _from_texts(*_strings((row, ("prompt", "response"))), row)


class ChatFormat:
    """Rows for hosted fine-tuning services: `messages` with a user turn and the assistant's answer."""

    name = "chat"
    looks_like = "messages [{role, content}, …]"

    def matches(self, row: Row) -> bool:
        return "messages" in row

    def convert(self, row: Row) -> TeacherRecord:
        turns = _turns(row["messages"])
        problems = [
            f"{count} {role} messages" for role in ("user", "assistant") if (count := len(turns.get(role, []))) != 1
        ]
        if problems:
            raise Rejected(
                Reason.MISSING_PART,
                f"the chat has {' and '.join(problems)}; exactly one of the user and one of the assistant is wanted",
            )
        return _from_texts(turns["user"][0], turns["assistant"][0], row)


FORMATS: tuple[RecordFormat, ...] = (TeacherFormat(), NestedFormat(), PromptOutputFormat(), PairFormat(), ChatFormat())


def detect_format(row: Row) -> RecordFormat:
    """The format of a row, by its keys.

    Raises:
        Rejected: no format matches; names the keys found and the known formats.
    """
    for known in FORMATS:
        if known.matches(row):
            return known
    keys = ", ".join(str(key)[:40] for key in list(row)[:12]) or "no keys at all"
    formats = "; ".join(f"{known.name} ({known.looks_like})" for known in FORMATS)
    raise Rejected(Reason.UNKNOWN_FORMAT, f"the row has {keys}; known formats are {formats}")


def _strings(*places: tuple[Row, tuple[str, ...]] | tuple[Row, tuple[str, ...], str]) -> list[str]:
    """The strings under these keys, of one object or several, each with a name to prefix its keys with.

    Raises:
        Rejected: names every part that is missing, blank or not a string.
    """
    texts: list[str] = []
    missing: list[str] = []
    wrong: list[str] = []
    for row, keys, *prefix in places:
        for key in keys:
            value, name = row.get(key), f"{''.join(prefix)}{key}"
            texts.append(value if isinstance(value, str) else "")
            if value is None or (not texts[-1].strip() and isinstance(value, str)):
                missing.append(f"{name} is {'missing' if value is None else 'blank'}")
            elif not isinstance(value, str):
                wrong.append(f"{name} must be a string, got {value!r:.60}")
    if missing or wrong:
        raise Rejected(Reason.MISSING_PART if missing else Reason.SCHEMA, "; ".join(missing + wrong))
    return texts


def _about(row: Row, named: Row) -> dict[str, Any]:
    """What a row says about itself beside its parts; `named` is the object that holds its id and tier."""
    return {
        "declared_score": row.get("score", MISSING),
        "concept_id": _label(named.get("concept_id")),
        "tier": _label(named.get("tier")),
        "metadata": _metadata(row),
    }


def _from_texts(prompt: str, answer: str, row: Row) -> TeacherRecord:
    """The record of a finished prompt and answer.

    A prompt of the template generation shows the vision and no concept. Its concept is then the vision's own name and
    summary: all that is known about the product before the answer.
    """
    asked, answered = split_prompt(prompt), parse_answer(answer)
    problems: list[str] = []
    notes: list[str] = []
    concept = asked.concept or ""
    if not concept and asked.vision_yaml:
        concept = _concept_of_vision(asked.vision_yaml)
        notes.append("the prompt has no CONCEPT; it was made from product_name and product_summary of its VISION")
    if not concept.strip():
        problems.append("the prompt has no CONCEPT section" + (" and no vision to take it from" if notes else ""))
    if asked.vision_yaml:
        notes.append("the prompt holds a VISION, which is part of the answer; it was left out of the prompt")
    if not asked.requirements_yaml:
        problems.append("the prompt has no REQUIREMENTS")
    problems += [f"in the answer {problem}" for problem in answered.missing]
    if problems:
        raise Rejected(Reason.MISSING_PART, "; ".join(problems))
    about = _about(row, row)
    if notes and not asked.concept:
        about["metadata"]["concept_from"] = "vision"
    return TeacherRecord(
        concept=concept,
        requirements_yaml=asked.requirements_yaml or "",
        vision_yaml=answered.vision_yaml or "",
        review_yaml=answered.review_yaml or "",
        vision_in_prompt=asked.vision_yaml is not None,
        notes=tuple(notes),
        **about,
    )


def _concept_of_vision(vision_yaml: str) -> str:
    vision = read_yaml(vision_yaml).value
    parts = [vision.get("product_name"), vision.get("product_summary")]
    return ": ".join(" ".join(part.split()) for part in parts if isinstance(part, str) and part.strip())


def _turns(messages: object) -> dict[str, list[str]]:
    if not isinstance(messages, list):
        raise Rejected(Reason.SCHEMA, f"messages must be an array, got {messages!r:.60}")
    turns: dict[str, list[str]] = {}
    for number, message in enumerate(messages, start=1):
        content = _content(message.get("content")) if isinstance(message, dict) else None
        if content is None or not isinstance(message.get("role"), str):
            raise Rejected(
                Reason.SCHEMA, f"message {number} must have role and content as strings, got {message!r:.60}"
            )
        turns.setdefault(message["role"], []).append(content)
    return turns


def _content(content: object) -> str | None:
    """A message's text; some services split it into parts of type text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    whole = [text for text in texts if isinstance(text, str)]
    return "".join(whole) if len(whole) == len(content) else None


def _label(value: object) -> str | None:
    """An identifier or tier as text; whatever else stands there is no label."""
    if isinstance(value, str):
        return value.strip()[:200] or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _metadata(row: Row) -> dict[str, Any]:
    value = row.get("metadata")
    return dict(value) if isinstance(value, dict) else {}
