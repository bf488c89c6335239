"""What a landed row says: its parts, how they are read, and what has to be said of them.

Each format fills one record (`formats`). What a chat's messages mean belongs to `messages`; whether the parts are good
YAML, and what they score, to `normalization`.
"""

import contextlib
import re
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
_NOTHING = frozenset(("", "null", "none", "nan", "<na>", "n/a", "#n/a", "undefined"))
"""Texts that exports write for a value that is absent."""
_NO_VISION = re.compile(
    r"|null|n/a|~|empty|none[.,;][^\n:]{0,60}|(?:there (?:is|was) )?(?:no|none|not|nothing|nil|ninguna|keine|aucune)"
    r"(?:\b[^\n:]{0,60}\b(?:visi[o\u00f3]n|yet|so far|available|provided|given|defined|specified|applicable|exists?)\b"
    r"[^\n:]{0,60})?",
    re.IGNORECASE,
)


@dataclass
class TeacherRecord:
    """The parts of one row, as text, and what has to be said of them; whether they are any good is not judged yet."""

    concept: str = ""
    requirements_yaml: str = ""
    vision_yaml: str = ""
    review_yaml: str = ""
    existing_vision_yaml: str = ""
    """A vision that the product has already: part of the input, empty where there is none."""
    declared_score: Any = None
    concept_id: str | None = None
    tier: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    vision_in_prompt: bool = False
    """The prompt gave away a vision that the answer must contain."""
    notes: list[str] = field(default_factory=list)
    """What had to be decided about the row; goes into the ledger."""
    rejected: Rejected | None = None
    read: set[str] = field(default_factory=set)
    """Keys of the row that were read."""
    unread: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    missing_answer: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def fault(self, *, answer_needed: bool) -> Rejected | None:
        """Everything that keeps the row from being used, as one rejection."""
        missing = self.missing + (self.missing_answer if answer_needed else [])
        if self.rejected or not missing + self.wrong:
            return self.rejected
        if missing:  # perhaps it stands under a key that nobody knows
            return Rejected(Reason.MISSING_PART, "; ".join([*missing, *self.wrong, *filter(None, [self.unread_said])]))
        return Rejected(Reason.SCHEMA, "; ".join(self.wrong))

    def take_columns(
        self, asked: Row, answered: Row | str, answer: tuple[str, str], asked_in: str = "", answered_in: str = ""
    ) -> None:
        """Take the parts of a row that has a key for each; the places are named before the keys.

        `answered` may be a finished answer instead, with both blocks in it.
        """
        self.concept = self._text(asked, "concept", asked_in, self.missing)
        requirements = self._text(asked, "requirements_yaml", asked_in, self.missing)
        if (existing := asked.get(EXISTING_VISION, "")) and not isinstance(existing, str):
            self.wrong.append(f"{asked_in}{EXISTING_VISION} must be a string, got {existing!r:.60}")
        self.existing_vision_yaml = existing_vision(existing)
        if isinstance(answered, str):
            self._take_answer(answered)
        else:
            vision, review = (self._text(answered, key, answered_in, self.missing_answer) for key in answer)
            self.vision_yaml, self.review_yaml = self._document("VISION", vision), self._document("REVIEW", review)
        self.requirements_yaml = self._document("REQUIREMENTS", requirements)

    def answer_of(self, row: Row, keys: tuple[str, ...]) -> list[Message]:
        """The answer under the first of these keys that holds one."""
        key = next((key for key in keys if is_text(row, key)), "")
        self.read.add(key)
        return text_or_messages(row.get(key), key, "assistant")

    def take_exchange(self, exchange: Exchange) -> None:
        """Take the parts of a finished prompt and its answer.

        A prompt of the template generation shows the vision and no concept. Its concept is then the vision's own name
        and summary: all that is known about the product before the answer.
        """
        asked, system_note = _asked(exchange)
        self.notes += [*system_note, *exchange.notes, *asked.notes]
        self.concept, self.requirements_yaml = asked.concept or "", asked.requirements_yaml or ""
        self.existing_vision_yaml = existing_vision(asked.existing_vision_yaml)
        self.vision_in_prompt = asked.vision_yaml is not None
        if asked.vision_yaml and not self.concept:
            vision = read_yaml(asked.vision_yaml).value
            parts = [vision.get("product_name"), vision.get("product_summary")]
            self.concept = ": ".join(" ".join(part.split()) for part in parts if isinstance(part, str) and part.strip())
            self.metadata["concept_from"] = "vision"
            self.notes.append(
                "the prompt has no CONCEPT; it was made from product_name and product_summary of its VISION"
            )
        if asked.vision_yaml:
            self.notes.append("the prompt holds a VISION, which is part of the answer; it was left out of the prompt")
        roles = f" (roles found: {', '.join(exchange.roles) or 'none'})"
        if exchange.question is None:
            self.missing += [] if self.missing else [f"there is no question of a user{roles}"]
        else:
            tried = " and no vision to take it from" if self.metadata else ""
            gaps = [] if self.concept.strip() else [f"the prompt has no CONCEPT section{tried}"]
            gaps += [] if asked.requirements_yaml else ["the prompt has no REQUIREMENTS"]
            said = "; ".join([*gaps, *exchange.notes, *asked.notes])
            self.missing += [f"{said}; it must name {PROMPT_FORM}"] if gaps else []
        if exchange.answer is None:
            self.missing_answer.append(f"there is no answer{roles}")
        else:
            self._take_answer(exchange.answer)

    def metadata_of(self, row: Row, place: str = "") -> dict[str, Any]:
        """The row's metadata, which may be JSON written as text."""
        value = row.get("metadata", {})
        if isinstance(value, str):
            with contextlib.suppress(orjson.JSONDecodeError):
                value = orjson.loads(value)
        if isinstance(value, dict):
            return dict(value)
        if is_there(row, "metadata") and present(value):
            self.notes.append(f"{place}metadata must be an object, got {row['metadata']!r:.60}; it was not read")
        return {}

    def name_unread(self, row: Row, known: Iterable[str], place: str = "") -> None:
        """Name the keys that nothing reads, with what stands there if it is short; empty ones are not worth a word."""
        for key, value in row.items():
            if key not in known and (is_there(row, key) or value in (0, False)):
                short = isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _SHOWN)
                self.unread.append(f"{place}{key[:_SHOWN]}" + (f" {value!r}" if short else ""))

    @property
    def unread_said(self) -> str:
        """What was not read, in words; empty where everything was."""
        more = [f"and {len(self.unread) - _NAMED} more"] if len(self.unread) > _NAMED else []
        return f"not read: {', '.join(self.unread[:_NAMED] + more)}" if self.unread else ""

    def _take_answer(self, text: str) -> None:
        """VISION and REVIEW of a finished answer, empty where one is missing."""
        read = parse_answer(text)
        self.notes += read.notes
        if read.missing:
            reasoning = "what its reasoning marks (such as </think>) close, or open, is not the answer"
            beside = [reasoning if note == NOTE_OF_REASONING else note for note in read.notes]
            self.missing_answer.append(f"in the answer {'; '.join([*read.missing, *beside])}")
        self.vision_yaml, self.review_yaml = read.vision_yaml or "", read.review_yaml or ""

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
    """A JSON value without what is null or holds nothing but nulls, byte-order marks, and line ends but line feeds."""
    if isinstance(value, str):
        value = value.removeprefix("\ufeff")
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
    return value.strip().lower() not in _NOTHING if isinstance(value, str) else bool(value)


def is_text(row: Row, key: str) -> bool:
    """Whether a text, or messages, or one message, stand under the key."""
    return is_there(row, key) and not (isinstance(row[key], dict) and {"role", "from"}.isdisjoint(row[key]))


def is_answer(row: Row, key: str) -> bool:
    """Whether a text stands under the key."""
    return isinstance(row.get(key), str) and is_there(row, key)


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
        # Where the question names nothing, an answer beside the sections tells that they are an example.
        example = both.vision_yaml and not (asked.concept or asked.requirements_yaml)
        if both.concept and both.requirements_yaml and not example:
            return both, ["the sections stand in the system message, which was read with the user's"]
    return asked, ["the system message was left out of the prompt"]


def existing_vision(vision_yaml: object) -> str:
    """An existing vision, empty where the text says that there is none."""
    text = present(vision_yaml).strip() if isinstance(vision_yaml, str) else ""
    said = text.strip("()[]{}<>.-#*_` ")
    return "" if said.lower() in _NOTHING or _NO_VISION.fullmatch(said) else text


def label(value: object) -> str | None:
    """An identifier or tier as text; whatever else stands there is no label."""
    if isinstance(value, str):
        return value.strip()[:200] or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None
