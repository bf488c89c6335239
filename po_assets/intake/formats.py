"""The formats in which rows land, one small class each, detected per row, and the row that comes of each.

A format says which rows are its own (`matches`, by values that are there) and reads one (`convert`). To add a format,
add a class and name it in `FORMATS`. What a chat's messages mean belongs to `messages`; whether the parts are good
YAML, and what they score, to `normalization`. Evaluation cases are read here, too: they may lack an answer.
"""
# ruff: noqa: D102 - what a format's methods do is said at `RecordFormat`

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import orjson

from po_assets.intake.lines import Reason, Rejected
from po_assets.intake.messages import Exchange, Message, exchange_of, refuse_flags, text_or_messages
from po_assets.product_owner import parse_answer, read_yaml, split_prompt
from po_assets.product_owner.answer import NOTE_OF_REASONING, column_document

Row = Mapping[str, Any]
DOCUMENTS = ("REQUIREMENTS", "VISION", "REVIEW")
_SHOWN = 40
_NAMED = 12
MISSING: Any = object()
"""Stands for a declared score that the row does not have."""
EXISTING_VISION = "existing_vision_yaml"
"""Key in a normalized row's metadata: the vision that was given as part of the input."""
_ABOUT = frozenset(("score", "concept_id", "tier", "metadata", "finish_reason", "stop_reason"))
"""Keys that are read in every format."""


@dataclass(frozen=True)
class TeacherRecord:
    """The parts of one row, as text; nothing about them is judged yet."""

    concept: str
    requirements_yaml: str
    vision_yaml: str
    review_yaml: str
    existing_vision_yaml: str = ""
    """A vision that the product has already: part of the input, empty where there is none."""
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
    reads: frozenset[str]
    """The row's keys that it reads, beside those of every format."""

    def matches(self, row: Row) -> bool:
        """Whether the row has what an answer of this format stands in."""

    def asks(self, row: Row) -> bool:
        """Whether the row has at least the question of this format; asked when no format matches."""

    def convert(self, row: Row, parts: "_Parts") -> TeacherRecord:
        """The row's parts; what is missing, and what has to be said, is noted in `parts`."""


class TeacherFormat:
    """The first teacher script's rows: one key for each part."""

    name = "teacher"
    looks_like = "concept, requirements_yaml, teacher_product_vision, teacher_product_owner_review, score, metadata"
    _answer = ("teacher_product_vision", "teacher_product_owner_review")
    reads = frozenset(("concept", "requirements_yaml", EXISTING_VISION, *_answer))

    def matches(self, row: Row) -> bool:
        return any(_is_there(row, key) for key in self._answer)

    def asks(self, row: Row) -> bool:
        return "requirements_yaml" in row

    def convert(self, row: Row, parts: "_Parts") -> TeacherRecord:
        return parts.of_columns(row, row, self._answer)


class NestedFormat:
    """The second teacher script's rows: `input` and `output` objects."""

    name = "nested"
    looks_like = (
        "input {concept_id, concept, requirements_yaml, tier, metadata}, "
        "output {product_vision, product_owner_review}, score"
    )
    reads = frozenset(("input", "output"))
    _answer = ("product_vision", "product_owner_review")
    _asked = frozenset(("concept_id", "concept", "requirements_yaml", "tier", "metadata", EXISTING_VISION))

    def matches(self, row: Row) -> bool:
        return all(isinstance(row.get(key), dict) and row[key] for key in ("input", "output"))

    def asks(self, row: Row) -> bool:
        return isinstance(row.get("input"), dict)

    def convert(self, row: Row, parts: "_Parts") -> TeacherRecord:
        asked, answered = row["input"], row.get("output", {})
        parts.note_unread(asked, self._asked, "input.")
        parts.note_unread(answered, self._answer, "output.")
        record = parts.of_columns(asked, answered, self._answer, "input.", "output.")
        return replace(record, metadata=parts.metadata(asked, "input."), tier=_label(asked.get("tier")))


class PromptFormat:
    """A finished prompt and its answer, each a text or a list of messages."""

    def __init__(self, name: str, prompt: str, answer: str, also: tuple[str, ...] = ()) -> None:
        self.name, self.looks_like = name, ", ".join((prompt, answer, *also))
        self.reads = frozenset((prompt, answer))
        self._prompt, self._answer = prompt, answer

    def matches(self, row: Row) -> bool:
        return self.asks(row) and _is_there(row, self._answer) and not isinstance(row[self._answer], dict)

    def asks(self, row: Row) -> bool:
        return _is_there(row, self._prompt) and not isinstance(row[self._prompt], dict)

    def convert(self, row: Row, parts: "_Parts") -> TeacherRecord:
        asked = text_or_messages(row.get(self._prompt), self._prompt, "user")
        answered = text_or_messages(row.get(self._answer), self._answer, "assistant")
        given = [message for message in answered if message.role != "assistant"]
        return parts.of_exchange(exchange_of(answered if given else [*asked, *answered]))


class AlpacaFormat:
    """Instruction tuning rows: the prompt is `instruction`, followed by `input`."""

    name = "alpaca"
    looks_like = "instruction, input, output"
    reads = frozenset(("instruction", "input", "output"))

    def matches(self, row: Row) -> bool:
        return self.asks(row) and isinstance(row.get("output"), str)

    def asks(self, row: Row) -> bool:
        return isinstance(row.get("instruction"), str) or isinstance(row.get("input"), str)

    def convert(self, row: Row, parts: "_Parts") -> TeacherRecord:
        asked = [m for key in ("instruction", "input") for m in text_or_messages(row.get(key) or None, key, "user")]
        answer = text_or_messages(row.get("output"), "output", "assistant")
        return parts.of_exchange(exchange_of([*asked, *answer]))


class ChatFormat:
    """Rows for fine-tuning services and chat trainers: a list of messages."""

    def __init__(self, name: str, key: str, looks_like: str) -> None:
        self.name, self.looks_like, self.reads = name, looks_like, frozenset((key,))
        self._key = key

    def matches(self, row: Row) -> bool:
        return _is_there(row, self._key)

    def asks(self, row: Row) -> bool:
        return self._key in row

    def convert(self, row: Row, parts: "_Parts") -> TeacherRecord:
        return parts.of_exchange(exchange_of(text_or_messages(row[self._key], self._key)))


class BatchFormat:
    """Lines of hosted services' batch files, and logged calls: a request and the service's response.

    An output file has no request: put the request of the same `custom_id` into it, as `body`.
    """

    name = "batch"
    looks_like = "custom_id, body {messages}, response {body {choices}}"
    reads = frozenset(
        ("id", "custom_id", "method", "url", "body", "request", "params", "response", "result", "choices", "error")
    )

    def matches(self, row: Row) -> bool:
        return "custom_id" in row or isinstance(row.get("response"), dict) or _is_there(row, "choices")

    def asks(self, row: Row) -> bool:
        return "custom_id" in row

    def convert(self, row: Row, parts: "_Parts") -> TeacherRecord:
        request = _first_object(row, "body", "request", "params") or row
        request = _first_object(request, "body") or request
        response = _first_object(row, "response", "result") or row
        if (error := row.get("error") or response.get("error")) or response.get("status_code", 200) != 200:
            said = error or response["status_code"]
            raise Rejected(Reason.MISSING_PART, f"the service gave no answer but an error: {said!r:.100}")
        answer = self._answer(_first_object(response, "body") or response)
        asked = text_or_messages(request.get("messages", request.get("prompt")), "the request's messages", "user")
        exchange = exchange_of([*asked, *answer])
        if exchange.question is None:
            way_out = "put the body of the same custom_id from the input file into this line, as body"
            parts.missing.append(f"the line has no request (body.messages): {way_out}")
        return parts.of_exchange(exchange)

    @staticmethod
    def _answer(body: object) -> list[Message]:
        if not isinstance(body, dict):
            return []
        choices = body.get("choices") or ([body] if "message" in body or "content" in body else [])
        answers: list[list[Message]] = []
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict):
                message = choice.get("message") or choice.get("text") or choice
                refuse_flags(choice, "the answer's ")
                answers.append(text_or_messages(message, "the answer", "assistant"))
        if any(other != answers[0] for other in answers[1:]):
            raise Rejected(Reason.AMBIGUOUS, f"the response holds {len(answers)} different choices; leave one of them")
        return answers[0] if answers else []


FORMATS: tuple[RecordFormat, ...] = (
    TeacherFormat(),
    NestedFormat(),
    PromptFormat("prompt/output", "prompt", "output", ("score", "concept_id", "tier")),
    PromptFormat("pair", "prompt", "response"),
    PromptFormat("prompt/completion", "prompt", "completion"),
    PromptFormat("preference", "prompt", "chosen", ("rejected",)),
    ChatFormat("chat", "messages", "messages [{role, content}, …]"),
    ChatFormat("sharegpt", "conversations", "conversations [{from, value}, …]"),
    AlpacaFormat(),
    BatchFormat(),
)
"""In the order of detection: the first that can read the row does, unless another reads a different answer in it."""


def read_record(row: Row, *, answer_needed: bool = True) -> tuple[str, TeacherRecord]:
    """The format of a row and its parts.

    Args:
        row: the JSON object; a key whose value is null, or holds nothing but nulls, counts as absent.
        answer_needed: False for evaluation cases, whose answer may be missing; its texts are then empty.

    Raises:
        Rejected: no format matches, a part is missing or not a string, two answers differ, or the row says itself that
            it is not to be trained on.
    """
    row = _present(row)
    matching = _matching(row)
    try:
        refuse_flags(row)
        read = [(known, *_read(known, row)) for known in matching]
        found = [one for one in read if one[2].fault(answer_needed=answer_needed) is None] or read
        known, record, parts = found[0]
        for other, second, _ in read:
            _refuse_second_answer(known, record, other, second)
        if fault := parts.fault(answer_needed=answer_needed):
            raise fault
        refuse_flags(record.metadata, "metadata.")
    except Rejected as rejected:
        raise Rejected(rejected.reason, rejected.detail, format_name=matching[0].name) from None
    parts.note_unread(row, known.reads | _ABOUT)
    return known.name, replace(record, notes=parts.all_notes())


def _matching(row: Row) -> list[RecordFormat]:
    found = [known for known in FORMATS if known.matches(row)] or [known for known in FORMATS if known.asks(row)][:1]
    if found:
        return found
    keys = ", ".join(str(key)[:40] for key in list(row)[:12]) or "no keys at all"
    formats = "; ".join(f"{known.name} ({known.looks_like})" for known in FORMATS)
    raise Rejected(Reason.UNKNOWN_FORMAT, f"the row has {keys}; known formats are {formats}")


def _read(known: RecordFormat, row: Row) -> tuple[TeacherRecord, "_Parts"]:
    parts = _Parts()
    try:
        record = known.convert(row, parts)
    except Rejected as rejected:
        parts.rejected = rejected
        return TeacherRecord("", "", "", ""), parts
    metadata = record.metadata | parts.metadata(row)
    if record.existing_vision_yaml:
        metadata[EXISTING_VISION] = record.existing_vision_yaml
    return replace(
        record,
        declared_score=row.get("score", MISSING),
        concept_id=record.concept_id or _label(row.get("concept_id")),
        tier=record.tier or _label(row.get("tier")),
        metadata=metadata,
    ), parts


def _refuse_second_answer(
    known: RecordFormat, first: TeacherRecord, other: RecordFormat, second: TeacherRecord
) -> None:
    """A row in which two formats read different answers is ambiguous; what only one of them reads is no conflict."""
    pairs = ((first.vision_yaml, second.vision_yaml), (first.review_yaml, second.review_yaml))
    if any(one.strip() != two.strip() for one, two in pairs if one and two):
        raise Rejected(
            Reason.AMBIGUOUS,
            f"the row holds two answers that differ, as {known.name} ({known.looks_like}) and as {other.name} "
            f"({other.looks_like}); leave one of them",
        )


class _Parts:
    """What a format found missing or wrong in a row, and what has to be said about it."""

    def __init__(self) -> None:
        self.rejected: Rejected | None = None
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
        existing = asked.get(EXISTING_VISION, "")
        return TeacherRecord(
            concept,
            *(self._document(name, text) for name, text in zip(DOCUMENTS, (requirements, vision, review), strict=True)),
            existing_vision_yaml=_existing(existing if isinstance(existing, str) else ""),
            concept_id=_label(asked.get("concept_id")),
        )

    def of_exchange(self, exchange: Exchange) -> TeacherRecord:
        """The record of a finished prompt and its answer.

        A prompt of the template generation shows the vision and no concept. Its concept is then the vision's own name
        and summary: all that is known about the product before the answer.
        """
        asked = split_prompt(exchange.question or "")
        self.notes += [*exchange.notes, *asked.notes]
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
            if not concept.strip():
                tried = " and no vision to take it from" if metadata else ""
                self.missing.append(f"the prompt has no CONCEPT section{tried}")
            if not asked.requirements_yaml:
                self.missing.append("the prompt has no REQUIREMENTS")
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
            existing_vision_yaml=_existing(asked.existing_vision_yaml or ""),
            metadata=metadata,
            vision_in_prompt=asked.vision_yaml is not None,
        )

    def metadata(self, row: Row, place: str = "") -> dict[str, Any]:
        """The row's metadata, which may be JSON written as text."""
        value = row.get("metadata", {})
        if isinstance(value, str) and value.strip():
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError:
                value = None
        if isinstance(value, dict):
            return dict(value)
        if value != "":
            self.notes.append(f"{place}metadata must be an object; it was not read")
        return {}

    def note_unread(self, row: Row, known: Iterable[str], place: str = "") -> None:
        """Name the keys that nothing reads, with what stands there if it is short; empty ones are not worth a word."""
        for key, value in row.items():
            if key not in known and value not in ("", [], {}, False):
                said = repr(value) if not isinstance(value, dict | list) else ""
                self._unread.append(f"{place}{key[:_SHOWN]}" + (f" {said}" if 0 < len(said) <= _SHOWN else ""))

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


def _present(value: Any) -> Any:
    """A JSON value without what is null or holds nothing but nulls, and with line feeds for every end of line."""
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("\r", "\n") if "\r" in value else value
    if isinstance(value, dict):
        there = {key: item if key == "metadata" else _present(item) for key, item in value.items() if item is not None}
        return {key: item for key, item in there.items() if item is not None}
    if isinstance(value, list):
        return [item for item in map(_present, value) if item is not None]
    return value


def _is_there(row: Row, key: str) -> bool:
    """Whether something stands under the key: neither nothing, nor a blank text, nor an empty list or object."""
    value = row.get(key)
    return bool(value.strip() if isinstance(value, str) else value)


def _first_object(row: Row, *keys: str) -> Row:
    return next((row[key] for key in keys if isinstance(row.get(key), dict)), {})


def _existing(vision_yaml: str) -> str:
    """An existing vision, empty where the text says that there is none."""
    text = vision_yaml.strip()
    return "" if text.strip("()[]{}<>.-").lower() in {"", "none", "null", "n/a", "~"} else text


def _concept_of_vision(vision_yaml: str) -> str:
    vision = read_yaml(vision_yaml).value
    parts = [vision.get("product_name"), vision.get("product_summary")]
    return ": ".join(" ".join(part.split()) for part in parts if isinstance(part, str) and part.strip())


def _label(value: object) -> str | None:
    """An identifier or tier as text; whatever else stands there is no label."""
    if isinstance(value, str):
        return value.strip()[:200] or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None
