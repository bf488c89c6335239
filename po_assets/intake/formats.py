"""The formats in which rows land, one small class each, detected per row, and the row that comes of each.

A format says which rows are its own (`matches`, by values that are there) and reads one (`convert`). To add a format,
add a class and name it in `FORMATS`. What a chat's messages mean belongs to `messages`; whether the parts are good
YAML, and what they score, to `normalization`. Evaluation cases are read here, too: they may lack an answer.
"""
# ruff: noqa: D102 - what a format's methods do is said at `RecordFormat`

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from po_assets.intake.lines import Reason, Rejected
from po_assets.intake.messages import Exchange, Message, choice_of, exchange_of, refuse_flags, text_or_messages
from po_assets.product_owner import PromptParts, parse_answer, read_yaml, split_prompt
from po_assets.product_owner.answer import NOTE_OF_REASONING, column_document
from po_assets.product_owner.prompt_parts import PROMPT_FORM

Row = Mapping[str, Any]
DOCUMENTS = ("REQUIREMENTS", "VISION", "REVIEW")
_SHOWN = 40
_NAMED = 12
MISSING: Any = object()
"""Stands for a declared score that the row does not have."""
EXISTING_VISION = "existing_vision_yaml"
"""Key in a normalized row's metadata: the vision that was given as part of the input."""
_QUESTION = ("concept", "requirements_yaml", EXISTING_VISION)
_ABOUT = ("score", "concept_id", "tier", "metadata", "finish_reason", "stop_reason")
"""Keys that are read in every format."""


@dataclass
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
    signs: frozenset[str]
    """Keys of which a row of this format has at least one; whoever has none is not asked further."""

    def matches(self, row: Row) -> bool:
        """Whether the row has what an answer of this format stands in."""

    def asks(self, row: Row) -> bool:
        """Whether the row has at least the question of this format; asked when no format matches."""

    def convert(self, row: Row, parts: "_Parts") -> TeacherRecord:
        """The row's parts; what is missing, what was read and what has to be said is noted in `parts`."""


class TeacherFormat:
    """The first teacher script's rows: one key for each part."""

    name = "teacher"
    looks_like = "concept, requirements_yaml, teacher_product_vision, teacher_product_owner_review, score, metadata"
    _answer = ("teacher_product_vision", "teacher_product_owner_review")
    signs = frozenset(_answer)

    def matches(self, row: Row) -> bool:
        return any(_is_there(row, key) for key in self._answer)

    def asks(self, row: Row) -> bool:
        return "requirements_yaml" in row

    def convert(self, row: Row, parts: "_Parts") -> TeacherRecord:
        parts.read.update((*_QUESTION, *self._answer))
        return parts.of_columns(row, row, self._answer)


class NestedFormat:
    """The second teacher script's rows: `input` and `output` objects."""

    name = "nested"
    looks_like = (
        "input {concept_id, concept, requirements_yaml, tier, metadata}, "
        "output {product_vision, product_owner_review}, score"
    )
    _answer = ("product_vision", "product_owner_review")
    signs = frozenset(("output",))

    def matches(self, row: Row) -> bool:
        return all(isinstance(row.get(key), dict) and row[key] for key in ("input", "output"))

    def asks(self, row: Row) -> bool:
        return isinstance(row.get("input"), dict)

    def convert(self, row: Row, parts: "_Parts") -> TeacherRecord:
        asked, answered = row["input"], _object(row, "output")
        parts.read.update(("input", "output"))
        parts.note_unread(asked, (*_QUESTION, "concept_id", "tier", "metadata"), "input.")
        parts.note_unread(answered, self._answer, "output.")
        refuse_flags(answered, "output.")
        record = parts.of_columns(asked, answered, self._answer, "input.", "output.")
        record.concept_id, record.tier = _label(asked.get("concept_id")), _label(asked.get("tier"))
        record.metadata = parts.metadata(asked, "input.")
        return record


class TextFormat:
    """A finished prompt and its answer under a key each; each a text, or a list of messages as trainers have it."""

    def __init__(
        self, name: str, asked: tuple[str, ...], answered: tuple[str, ...], also: tuple[str, ...] = ()
    ) -> None:
        """The prompt stands under all of the keys `asked`, the answer under one of `answered`."""
        self.name, self.looks_like = name, ", ".join((*asked, answered[0], *also))
        self._asked, self._answered, self.signs = asked, answered, frozenset(answered)

    def matches(self, row: Row) -> bool:
        answers = [row[key] for key in self._answered if key in row and _is_text(row, key)]
        return any(self.asks(row) or isinstance(answer, list) for answer in answers)

    def asks(self, row: Row) -> bool:
        return any(_is_text(row, key) for key in self._asked)

    def convert(self, row: Row, parts: "_Parts") -> TeacherRecord:
        asked = [m for key in self._asked for m in text_or_messages(row.get(key) or None, key, "user")]
        parts.read.update(self._asked)
        answered = parts.answer(row, self._answered)
        # A preference row may tell the whole conversation in each of its answers.
        whole = any(message.role != "assistant" for message in answered)
        return parts.of_exchange(exchange_of(answered if whole else [*asked, *answered]))


class ChatFormat:
    """Rows for fine-tuning services and chat trainers: a list of messages, the answer among them or beside them."""

    def __init__(self, name: str, keys: tuple[str, ...], message: str) -> None:
        self.name, self.looks_like = name, f"{keys[0]} [{{{message}}}, …]"
        self._keys, self.signs = keys, frozenset(keys)

    def matches(self, row: Row) -> bool:
        return any(_is_there(row, key) for key in self._keys)

    def asks(self, row: Row) -> bool:
        return any(key in row for key in self._keys)

    def convert(self, row: Row, parts: "_Parts") -> TeacherRecord:
        key = next(key for key in self._keys if key in row)
        messages = text_or_messages(row[key], key)
        parts.read.add(key)
        if not any(message.role == "assistant" for message in messages):
            messages += parts.answer(row, ("response", "completion", "output"))
        return parts.of_exchange(exchange_of(messages))


class BatchFormat:
    """Lines of hosted services' batch files, and logged calls: a request and the service's response.

    An output file has no request: put the request of the same `custom_id` into it, as `body`.
    """

    name = "batch"
    looks_like = "custom_id, body {messages}, response {body {choices}}"
    signs = frozenset(("custom_id", "response", "choices"))
    _envelope = (
        "id",
        "custom_id",
        "method",
        "url",
        "body",
        "request",
        "params",
        "response",
        "result",
        "choices",
        "error",
    )

    def matches(self, row: Row) -> bool:
        return "custom_id" in row or isinstance(row.get("response"), dict) or _is_there(row, "choices")

    def asks(self, row: Row) -> bool:
        return "custom_id" in row

    def convert(self, row: Row, parts: "_Parts") -> TeacherRecord:
        request = _object(row, "body", "request", "params") or row
        request = _object(request, "body") or request
        response = _object(row, "response", "result") or row
        if (error := row.get("error") or response.get("error")) or response.get("status_code", 200) != 200:
            said = error or response["status_code"]
            raise Rejected(Reason.MISSING_PART, f"the service gave no answer but an error: {said!r:.100}")
        key = next((key for key in ("messages", "contents", "input", "prompt") if key in request), "messages")
        parts.read.update((*self._envelope, key))
        answer = choice_of(_object(response, "body") or response)
        exchange = exchange_of([*text_or_messages(request.get(key), f"the request's {key}", "user"), *answer])
        if exchange.question is None:
            way_out = "put the body of the same custom_id from the input file into this line, as body"
            parts.missing.append(f"the line has no request (body.messages): {way_out}")
        return parts.of_exchange(exchange)


FORMATS: tuple[RecordFormat, ...] = (
    TeacherFormat(),
    NestedFormat(),
    TextFormat("prompt/output", ("prompt",), ("output",), ("score", "concept_id", "tier")),
    TextFormat("pair", ("prompt",), ("response",)),
    TextFormat("prompt/completion", ("prompt",), ("completion",)),
    TextFormat("preference", ("prompt",), ("chosen",), ("rejected",)),
    ChatFormat("chat", ("messages", "contents"), "role, content"),
    ChatFormat("sharegpt", ("conversations", "conversation"), "from, value"),
    TextFormat("alpaca", ("instruction", "input"), ("output", "response")),
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
    row = _present(row) or {}
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
    parts.note_unread(row, parts.read | {*_ABOUT})
    record.notes = parts.all_notes()
    return known.name, record


def _matching(row: Row) -> list[RecordFormat]:
    likely = [known for known in FORMATS if not known.signs.isdisjoint(row)]
    found = [known for known in likely if known.matches(row)] or [known for known in FORMATS if known.asks(row)][:1]
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
    record.existing_vision_yaml = record.existing_vision_yaml or _existing(metadata.pop(EXISTING_VISION, ""))
    if record.existing_vision_yaml:
        metadata[EXISTING_VISION] = record.existing_vision_yaml
    record.metadata = metadata
    record.declared_score = row.get("score", MISSING)
    record.concept_id = record.concept_id or _label(row.get("concept_id"))
    record.tier = record.tier or _label(row.get("tier"))
    return record, parts


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
            *(self._document(name, text) for name, text in zip(DOCUMENTS, (requirements, vision, review), strict=True)),
            existing_vision_yaml=_existing(asked.get(EXISTING_VISION)),
        )

    def answer(self, row: Row, keys: tuple[str, ...]) -> list[Message]:
        """The answer under the first of these keys that holds one."""
        key = next((key for key in keys if _is_text(row, key)), "")
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
            existing_vision_yaml=_existing(asked.existing_vision_yaml),
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
        if value and _present(value):
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


def _present(value: Any) -> Any:
    """A JSON value without what is null or holds nothing but nulls, and with line feeds for every end of line."""
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("\r", "\n") if "\r" in value else value
    if isinstance(value, dict):
        items = ((key, item if key == "metadata" else _present(item)) for key, item in value.items())
        return {key: item for key, item in items if item is not None} or ({} if not value else None)
    if isinstance(value, list):
        return [item for item in map(_present, value) if item is not None] or ([] if not value else None)
    return value


def _is_there(row: Row, key: str) -> bool:
    """Whether something stands under the key: neither nothing, nor a blank text, nor an empty list or object."""
    value = row.get(key)
    return bool(value.strip() if isinstance(value, str) else value)


def _is_text(row: Row, key: str) -> bool:
    """Whether a text, or messages, stand under the key."""
    return _is_there(row, key) and not isinstance(row[key], dict)


def _object(row: Row, *keys: str) -> Row:
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


def _existing(vision_yaml: object) -> str:
    """An existing vision, empty where the text says that there is none."""
    text = vision_yaml.strip() if isinstance(vision_yaml, str) else ""
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
