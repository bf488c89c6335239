"""The formats in which rows land, one small class each, detected per row, and the record that each of them fills.

A format says which rows are its own (`matches`, by values that are there) and reads one (`convert`). To add a format,
add a class and name it in `FORMATS`. What a chat's messages mean belongs to `messages`; whether the parts are good
YAML, and what they score, to `normalization`. Evaluation cases are read here, too: they may lack an answer.
"""
# ruff: noqa: D102 - what a format's methods do is said at `RecordFormat`

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from po_assets.intake.lines import Reason, Rejected
from po_assets.intake.messages import (
    Exchange,
    Message,
    choice_of,
    exchange_of,
    refuse_flags,
    refuse_nested_ends,
    text_or_messages,
)
from po_assets.product_owner import ParsedAnswer, PromptParts, parse_answer, read_yaml, split_prompt
from po_assets.product_owner.answer import NOTE_OF_REASONING, column_document
from po_assets.product_owner.prompt_parts import PROMPT_FORM
from po_assets.text import shown

Row = Mapping[str, Any]
EXISTING_VISION = "existing_vision_yaml"
"""Key in a normalized row's metadata: the vision that was given as part of the input."""
_SHOWN = 40
_NAMED = 12
_NOTHING = frozenset(("", "null", "none", "nan", "<na>"))
"""Texts that exports write for a value that is absent."""
_NO_VISION = re.compile(
    r"|none|null|n/a|~|(?:there is )?(?:no|none)(?: (?:existing|current|previous))?(?: product)?(?: vision)?"
    r"(?: yet| so far| exists| available| given)?",
    re.IGNORECASE,
)
_QUESTION = ("concept", "requirements_yaml", EXISTING_VISION)
_FINISHED = ("output", "response", "completion", "answer")
"""Keys of an answer with both blocks, beside the columns of a question."""
_ABOUT = ("score", "concept_id", "tier", "metadata", "finish_reason", "stop_reason")
"""Keys that are read in every format."""
_INSTRUCTIONS = ("system", "instructions", "system_instruction", "systemInstruction")
"""Where a service's request has the system text, if not among its messages."""
_ENVELOPE = (
    *("id", "custom_id", "method", "url", "body", "request", "params", "response", "result", "choices", "error"),
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
        return Rejected(Reason.MISSING_PART if missing else Reason.SCHEMA, "; ".join(missing + self.wrong))

    def take_columns(
        self, asked: Row, answered: Row | str, answer: tuple[str, str], asked_in: str = "", answered_in: str = ""
    ) -> None:
        """Take the parts of a row that has a key for each; the places are named before the keys.

        `answered` may be a finished answer instead, with both blocks in it.
        """
        self.concept = self._text(asked, "concept", asked_in, self.missing)
        requirements = self._text(asked, "requirements_yaml", asked_in, self.missing)
        if not isinstance(existing := asked.get(EXISTING_VISION, ""), str):
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
        if value and present(value):
            self.notes.append(f"{place}metadata must be an object, got {row['metadata']!r:.60}; it was not read")
        return {}

    def name_unread(self, row: Row, known: Iterable[str], place: str = "") -> None:
        """Name the keys that nothing reads, with what stands there if it is short; empty ones are not worth a word."""
        for key, value in row.items():
            if key not in known and value not in ("", [], {}):
                short = isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _SHOWN)
                self.unread.append(f"{place}{key[:_SHOWN]}" + (f" {value!r}" if short else ""))

    def note_unread(self) -> None:
        """Say last what was not read."""
        more = [f"and {len(self.unread) - _NAMED} more"] if len(self.unread) > _NAMED else []
        self.notes += [f"not read: {', '.join(self.unread[:_NAMED] + more)}"] if self.unread else []

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
    """Whether a text, or messages, stand under the key."""
    return is_there(row, key) and not isinstance(row[key], dict)


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
        if both.concept and both.requirements_yaml:
            return both, ["the sections stand in the system message, which was read with the user's"]
    return asked, ["the system message was left out of the prompt"]


def existing_vision(vision_yaml: object) -> str:
    """An existing vision, empty where the text says that there is none."""
    text = vision_yaml.strip() if isinstance(vision_yaml, str) else ""
    return "" if _NO_VISION.fullmatch(text.strip("()[]{}<>.-")) else text


def label(value: object) -> str | None:
    """An identifier or tier as text; whatever else stands there is no label."""
    if isinstance(value, str):
        return value.strip()[:200] or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


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

    def convert(self, row: Row, record: TeacherRecord) -> None:
        """Fill the record with the row's parts; with what is missing, what was read and what has to be said, too."""


class TeacherFormat:
    """The first teacher script's rows: one key for each part."""

    name = "teacher"
    looks_like = "concept, requirements_yaml, teacher_product_vision, teacher_product_owner_review, score, metadata"
    _answer = ("teacher_product_vision", "teacher_product_owner_review")
    signs = frozenset(_answer)

    def matches(self, row: Row) -> bool:
        return any(is_there(row, key) for key in self._answer)

    def asks(self, row: Row) -> bool:
        return "requirements_yaml" in row

    def convert(self, row: Row, record: TeacherRecord) -> None:
        record.read.update((*_QUESTION, *self._answer))
        finished = next((key for key in _FINISHED if is_answer(row, key)), "") if not self.matches(row) else ""
        record.read.add(finished)
        record.take_columns(row, row[finished] if finished else row, self._answer)


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
        asked, answered = row.get("input"), row.get("output")
        return isinstance(asked, dict) and bool(asked and answered) and isinstance(answered, dict | str)

    def asks(self, row: Row) -> bool:
        return isinstance(row.get("input"), dict)

    def convert(self, row: Row, record: TeacherRecord) -> None:
        asked, answered = row["input"], object_of(row, "output")
        record.read.update(("input", "output"))
        record.name_unread(asked, (*_QUESTION, "concept_id", "tier", "metadata"), "input.")
        record.name_unread(answered, self._answer, "output.")
        refuse_flags(asked, "input.")
        refuse_flags(answered, "output.")
        finished = row["output"] if is_answer(row, "output") else answered
        record.take_columns(asked, finished, self._answer, "input.", "output.")
        record.concept_id, record.tier = label(asked.get("concept_id")), label(asked.get("tier"))
        record.metadata = record.metadata_of(asked, "input.")


class TextFormat:
    """A finished prompt and its answer under a key each; each a text, or a list of messages as trainers have it."""

    def __init__(
        self, name: str, asked: tuple[str, ...], answered: tuple[str, ...], also: tuple[str, ...] = ()
    ) -> None:
        """The prompt stands under all of the keys `asked`, the answer under one of `answered`."""
        self.name, self.looks_like = name, ", ".join((*asked, answered[0], *also))
        self._asked, self._answered, self.signs = asked, answered, frozenset(answered)

    def matches(self, row: Row) -> bool:
        answers = [row[key] for key in self._answered if key in row and is_text(row, key)]
        return any(self.asks(row) or isinstance(answer, list) for answer in answers)

    def asks(self, row: Row) -> bool:
        return any(is_text(row, key) for key in self._asked)

    def convert(self, row: Row, record: TeacherRecord) -> None:
        asked = [m for key in self._asked for m in text_or_messages(row.get(key) or None, key, "user")]
        record.read.update(self._asked)
        answered = record.answer_of(row, self._answered)
        # A preference row may tell the whole conversation in each of its answers.
        whole = any(message.role != "assistant" for message in answered)
        record.take_exchange(exchange_of(answered if whole else [*asked, *answered]))


class ChatFormat:
    """Rows for fine-tuning services and chat trainers: a list of messages, the answer among them or beside them."""

    def __init__(self, name: str, keys: tuple[str, ...], message: str) -> None:
        self.name, self.looks_like = name, f"{keys[0]} [{{{message}}}, …]"
        self._keys, self.signs = keys, frozenset(keys)

    def matches(self, row: Row) -> bool:
        return any(is_there(row, key) for key in self._keys)

    def asks(self, row: Row) -> bool:
        return any(key in row for key in self._keys)

    def convert(self, row: Row, record: TeacherRecord) -> None:
        key = next(key for key in self._keys if key in row)
        messages = text_or_messages(row[key], key)
        record.read.add(key)
        if not any(message.role == "assistant" for message in messages):
            messages += record.answer_of(row, ("response", "completion", "output"))
        record.take_exchange(exchange_of(messages))


class BatchFormat:
    """Lines of hosted services' batch files, and logged calls: a request and the service's response.

    An output file has no request: put the request of the same `custom_id` into it, as `body`.
    """

    name = "batch"
    looks_like = "custom_id, body {messages}, response {body {choices}}"
    signs = frozenset(("custom_id", "response", "choices"))

    def matches(self, row: Row) -> bool:
        return "custom_id" in row or isinstance(row.get("response"), dict) or is_there(row, "choices")

    def asks(self, row: Row) -> bool:
        return "custom_id" in row

    def convert(self, row: Row, record: TeacherRecord) -> None:
        request = object_of(row, "body", "request", "params") or row
        request = object_of(request, "body") or request
        response = object_of(row, "response", "result") or row
        if (error := row.get("error") or response.get("error")) or response.get("status_code", 200) != 200:
            said = error or response["status_code"]
            raise Rejected(Reason.MISSING_PART, f"the service gave no answer but an error: {said!r:.100}")
        key = next((key for key in ("messages", "contents", "input", "prompt") if key in request), "messages")
        record.read.update((*_ENVELOPE, key))
        told = [
            m for name in _INSTRUCTIONS for m in text_or_messages(request.get(name), f"the request's {name}", "system")
        ]
        answer = choice_of(object_of(response, "body") or response)
        exchange = exchange_of([*told, *text_or_messages(request.get(key), f"the request's {key}", "user"), *answer])
        if exchange.question is None:
            way_out = "put the body of the same custom_id from the input file into this line, as body"
            record.missing.append(f"the line has no request (body.messages): {way_out}")
        record.take_exchange(exchange)


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
    row = present(row) or {}
    matching = _matching(row)
    try:
        refuse_flags(row)
        records = [(known, _read(known, row)) for known in matching]
        for _, record in records:
            if record.rejected and record.rejected.reason in {Reason.WEIGHT_0, Reason.ANSWER_CUT}:
                raise record.rejected
        faults = [record.fault(answer_needed=answer_needed) for _, record in records]
        first = faults.index(None) if None in faults else 0
        known, record = records[first]
        for other, second in records:
            _refuse_second_answer(known, record, f"as {other.name} ({other.looks_like})", second)
        if fault := faults[first]:
            raise fault
        # A whole answer under a key that the row's format does not read is a second one, too.
        for key in (*_FINISHED, "chosen"):
            if key not in record.read and is_answer(row, key) and not (answer := parse_answer(row[key])).missing:
                _refuse_second_answer(known, record, f"in {key}", answer)
        refuse_flags(record.metadata, "metadata.")
        refuse_nested_ends(record.metadata, "metadata")
        _refuse_bad_answer(row)
    except Rejected as rejected:
        rejected.format_name = matching[0].name
        raise
    record.name_unread(row, record.read | {*_ABOUT})
    record.note_unread()
    return known.name, record


def _matching(row: Row) -> list[RecordFormat]:
    likely = [known for known in FORMATS if not known.signs.isdisjoint(row)]
    found = [known for known in likely if known.matches(row)] or [known for known in FORMATS if known.asks(row)][:1]
    if found:
        return found
    # A table's cell shows all of it: names only, `docs/formats.md` has their keys.
    keys = shown(", ".join(map(str, row)) or "no keys at all", 45)
    formats = ", ".join(known.name for known in FORMATS)
    raise Rejected(Reason.UNKNOWN_FORMAT, f"the row has {keys}; known formats are {formats} (see docs/formats.md)")


def _read(known: RecordFormat, row: Row) -> TeacherRecord:
    record = TeacherRecord()
    try:
        known.convert(row, record)
    except Rejected as rejected:
        return TeacherRecord(rejected=rejected)
    record.metadata |= record.metadata_of(row)
    said = existing_vision(record.metadata.pop(EXISTING_VISION, ""))
    record.existing_vision_yaml = record.existing_vision_yaml or said
    if record.existing_vision_yaml:
        record.metadata[EXISTING_VISION] = record.existing_vision_yaml
    record.declared_score = row.get("score")
    record.concept_id = record.concept_id or label(row.get("concept_id"))
    record.tier = record.tier or label(row.get("tier"))
    return record


def _refuse_bad_answer(row: Row) -> None:
    """A `completion` may have a `label`, for trainers that learn from bad answers, too."""
    if row.get("label") is False and "completion" in row:
        raise Rejected(Reason.WEIGHT_0, "label is False: the row says that its answer is a bad one; delete the line")


def _refuse_second_answer(
    known: RecordFormat, record: TeacherRecord, where: str, other: TeacherRecord | ParsedAnswer
) -> None:
    """A row that holds different answers is ambiguous; a document that stands in only one of them is no conflict."""
    pairs = ((record.vision_yaml, other.vision_yaml), (record.review_yaml, other.review_yaml))
    if any(one.strip() != two.strip() for one, two in pairs if one and two):
        raise Rejected(
            Reason.AMBIGUOUS,
            f"the row holds two answers that differ, as {known.name} ({known.looks_like}) and {where}; "
            "leave one of them",
        )
