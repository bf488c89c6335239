"""The record that every format gives, and what its parts are read with: texts, documents, prompts, metadata, notes.

Which keys hold what belongs to `formats`.
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from po_assets.intake.lines import Reason, Rejected
from po_assets.intake.messages import Exchange, Message, text_or_messages
from po_assets.product_owner import PromptParts, parse_answer, read_yaml, split_prompt
from po_assets.product_owner.answer import NOTE_OF_REASONING, column_document
from po_assets.product_owner.prompt_parts import PROMPT_FORM

Row = Mapping[str, Any]
EXISTING_VISION = "existing_vision_yaml"
"""Key in a normalized row's metadata: the vision that was given as part of the input."""
_SHOWN = 40
_NAMED = 12


@dataclass
class TeacherRecord:
    """The parts of one row, as text; nothing about them is judged yet."""

    concept: str
    requirements_yaml: str
    vision_yaml: str
    review_yaml: str
    existing_vision_yaml: str = ""
    """A vision that the product has already: part of the input, empty where there is none."""
    declared_score: Any = None
    concept_id: str | None = None
    tier: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    vision_in_prompt: bool = False
    """The prompt gave away a vision that the answer must contain."""
    notes: tuple[str, ...] = ()
    """What had to be decided about the row; goes into the ledger."""


class Parts:
    """What a format found missing or wrong in a row, and what has to be said about it."""

    def __init__(self) -> None:
        self.rejected: Rejected | None = None
        self.read: set[str] = set()
        self.missing: list[str] = []
        self.missing_answer: list[str] = []
        self.wrong: list[str] = []
        self.notes: list[str] = []
        self._unread: list[str] = []

    def fault(self, *, answer_needed: bool) -> Rejected | None:
        """Everything that keeps the row from being used, as one rejection."""
        missing = self.missing + (self.missing_answer if answer_needed else [])
        if self.rejected or not missing + self.wrong:
            return self.rejected
        return Rejected(Reason.MISSING_PART if missing else Reason.SCHEMA, "; ".join(missing + self.wrong))

    def of_columns(
        self, asked: Row, answered: Row, answer: tuple[str, str], asked_in: str = "", answered_in: str = ""
    ) -> TeacherRecord:
        """The record of a row that has a key for each part; the places are named before the keys."""
        concept = self._text(asked, "concept", asked_in, self.missing)
        requirements = self._text(asked, "requirements_yaml", asked_in, self.missing)
        vision, review = (self._text(answered, key, answered_in, self.missing_answer) for key in answer)
        return TeacherRecord(
            concept,
            self._document("REQUIREMENTS", requirements),
            self._document("VISION", vision),
            self._document("REVIEW", review),
            existing_vision_yaml=existing_vision(asked.get(EXISTING_VISION)),
        )

    def answer(self, row: Row, keys: tuple[str, ...]) -> list[Message]:
        """The answer under the first of these keys that holds one."""
        key = next((key for key in keys if is_text(row, key)), "")
        self.read.add(key)
        return text_or_messages(row.get(key), key, "assistant")

    def of_exchange(self, exchange: Exchange) -> TeacherRecord:
        """The record of a finished prompt and its answer.

        A prompt of the template generation shows the vision and no concept. Its concept is then the vision's own name
        and summary: all that is known about the product before the answer.
        """
        asked, system_note = _asked(exchange)
        self.notes += [*system_note, *exchange.notes, *asked.notes]
        concept, metadata = asked.concept or "", {}
        if not concept and asked.vision_yaml:
            concept = _concept_of_vision(asked.vision_yaml)
            metadata["concept_from"] = "vision"
            self.notes.append(
                "the prompt has no CONCEPT; it was made from product_name and product_summary of its VISION"
            )
        if asked.vision_yaml:
            self.notes.append("the prompt holds a VISION, which is part of the answer; it was left out of the prompt")
        roles = f" (roles found: {', '.join(exchange.roles) or 'none'})"
        if exchange.question is None:
            self.missing += [] if self.missing else [f"there is no question of a user{roles}"]
        else:
            tried = " and no vision to take it from" if metadata else ""
            gaps = [] if concept.strip() else [f"the prompt has no CONCEPT section{tried}"]
            gaps += [] if asked.requirements_yaml else ["the prompt has no REQUIREMENTS"]
            self.missing += [f"{'; '.join(gaps)}; it must name {PROMPT_FORM}"] if gaps else []
        answered = parse_answer(exchange.answer or "")
        self.notes += answered.notes
        self.missing_answer += (
            [f"there is no answer{roles}"]
            if exchange.answer is None
            else [f"in the answer {gap}" for gap in answered.missing]
        )
        return TeacherRecord(
            concept,
            asked.requirements_yaml or "",
            answered.vision_yaml or "",
            answered.review_yaml or "",
            existing_vision_yaml=existing_vision(asked.existing_vision_yaml),
            metadata=metadata,
            vision_in_prompt=asked.vision_yaml is not None,
        )

    def metadata(self, row: Row, place: str = "") -> dict[str, Any]:
        """The row's metadata, which may be JSON written as text."""
        value = row.get("metadata", {})
        if isinstance(value, str):
            with contextlib.suppress(orjson.JSONDecodeError):
                value = orjson.loads(value)
        if isinstance(value, dict):
            return dict(value)
        if value and present(value):
            self.notes.append(f"{place}metadata must be an object, got {row['metadata']!r:.60}; it was not read")
        return {}

    def note_unread(self, row: Row, known: Iterable[str], place: str = "") -> None:
        """Name the keys that nothing reads, with what stands there if it is short; empty ones are not worth a word."""
        for key, value in row.items():
            if key not in known and value not in ("", [], {}, False):
                short = isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _SHOWN)
                self._unread.append(f"{place}{key[:_SHOWN]}" + (f" {value!r}" if short else ""))

    def all_notes(self) -> tuple[str, ...]:
        """Everything to be said, what was not read last."""
        more = [f"and {len(self._unread) - _NAMED} more"] if len(self._unread) > _NAMED else []
        unread = [f"not read: {', '.join(self._unread[:_NAMED] + more)}"] if self._unread else []
        return (*self.notes, *unread)

    def _text(self, row: Row, key: str, place: str, missing: list[str]) -> str:
        value = row.get(key)
        if isinstance(value, str) and value.strip():
            return value
        if value is None or isinstance(value, str):
            missing.append(f"{place}{key} is {'missing' if value is None else 'blank'}")
        else:
            self.wrong.append(f"{place}{key} must be a string, got {value!r:.60}")
        return ""

    def _document(self, name: str, text: str) -> str:
        """The document of a column that should hold nothing else."""
        try:
            document, notes = column_document(text)
        except ValueError as error:
            self.wrong.append(f"{name}: {error}")
            return ""
        if NOTE_OF_REASONING in notes:
            self.wrong.append(
                f"{name}: it holds a model's reasoning (such as <think>…</think>); take it out of the column"
            )
        self.notes += [f"{name}: {note}" for note in notes]
        return document


def present(value: Any) -> Any:
    """A JSON value without what is null or holds nothing but nulls, and with line feeds for every end of line."""
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("\r", "\n") if "\r" in value else value
    if isinstance(value, dict):
        items = ((key, item if key == "metadata" else present(item)) for key, item in value.items())
        return {key: item for key, item in items if item is not None} or ({} if not value else None)
    if isinstance(value, list):
        return [item for item in map(present, value) if item is not None] or ([] if not value else None)
    return value


def is_there(row: Row, key: str) -> bool:
    """Whether something stands under the key: neither nothing, nor a blank text, nor an empty list or object."""
    value = row.get(key)
    return bool(value.strip() if isinstance(value, str) else value)


def is_text(row: Row, key: str) -> bool:
    """Whether a text, or messages, stand under the key."""
    return is_there(row, key) and not isinstance(row[key], dict)


def object_of(row: Row, *keys: str) -> Row:
    """The first object under these keys, an empty one where there is none."""
    return next((row[key] for key in keys if isinstance(row.get(key), dict)), {})


def _asked(exchange: Exchange) -> tuple[PromptParts, list[str]]:
    """The parts of the question, or of system text and question together where only so both sections are there."""
    asked = split_prompt(exchange.question or "")
    if not exchange.system.strip():
        return asked, []
    if not (asked.concept and asked.requirements_yaml):
        both = split_prompt(f"{exchange.system}\n\n{exchange.question}")
        if both.concept and both.requirements_yaml:
            return both, ["the sections stand in the system message, which was read with the user's"]
    return asked, ["the system message was left out of the prompt"]


def existing_vision(vision_yaml: object) -> str:
    """An existing vision, empty where the text says that there is none."""
    text = vision_yaml.strip() if isinstance(vision_yaml, str) else ""
    return "" if text.strip("()[]{}<>.-").lower() in {"", "none", "null", "n/a", "~"} else text


def _concept_of_vision(vision_yaml: str) -> str:
    vision = read_yaml(vision_yaml).value
    parts = [vision.get("product_name"), vision.get("product_summary")]
    return ": ".join(" ".join(part.split()) for part in parts if isinstance(part, str) and part.strip())


def label(value: object) -> str | None:
    """An identifier or tier as text; whatever else stands there is no label."""
    if isinstance(value, str):
        return value.strip()[:200] or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None
