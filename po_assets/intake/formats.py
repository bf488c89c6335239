"""The formats in which rows land, one small class each, detected per row.

A format says which rows are its own (`matches`, by values that are there) and reads one (`convert`). To add a format,
add a class and name it in `FORMATS`. How parts are read, and what is said of them, belongs to `record`; what a chat's
messages mean, to `messages`; whether the parts are good YAML, and what they score, to `normalization`. Evaluation cases
are read here, too: they may lack an answer.
"""
# ruff: noqa: D102 - what a format's methods do is said at `RecordFormat`

from typing import Protocol

from po_assets.intake.lines import Reason, Rejected
from po_assets.intake.messages import (
    choice_of,
    exchange_of,
    is_nothing,
    refuse_flags,
    refuse_nested_ends,
    text_or_messages,
)
from po_assets.intake.record import (
    EXISTING_VISION,
    Row,
    TeacherRecord,
    existing_vision,
    is_answer,
    is_text,
    is_there,
    label,
    object_of,
    present,
)
from po_assets.product_owner import ParsedAnswer, parse_answer
from po_assets.text import shown

_QUESTION = ("concept", "requirements_yaml", EXISTING_VISION)
FINISHED = ("output", "response", "completion", "answer")
"""Keys of an answer with both blocks, beside the columns of a question."""
_ABOUT = ("score", "concept_id", "tier", "metadata", "finish_reason", "stop_reason")
"""Keys that are read in every format."""
_INSTRUCTIONS = ("system", "instructions", "system_instruction", "systemInstruction")
"""Where a service's request has the system text, if not among its messages."""
_REQUEST = ("body", "request", "params", "modelInput", "input", "inputs")
_RESPONSE = ("response", "result", "modelOutput", "message", "output", "outputs")
"""Where services and loggers put what was asked, and what came back."""
_ASKED = ("messages", "contents", "input", "prompt")
_ENVELOPE = ("id", "custom_id", "recordId", "method", "url", "choices", "candidates", "error")


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
        finished = next((key for key in FINISHED if is_answer(row, key)), "") if not self.matches(row) else ""
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
            messages += record.answer_of(row, (*FINISHED, "chosen"))
        record.take_exchange(exchange_of(messages))


class BatchFormat:
    """Lines of hosted services' batch files, and logged calls: a request and the service's response.

    An output file has no request: put the request of the same `custom_id` into it, as `body`.
    """

    name = "batch"
    looks_like = "custom_id, body {messages}, response {body {choices}}"
    signs = frozenset(("custom_id", "choices", "candidates", *_REQUEST, *_RESPONSE))

    def matches(self, row: Row) -> bool:
        if "custom_id" in row or is_there(row, "choices") or is_there(row, "candidates"):
            return True
        if object_of(row, "response", "message") or "message" in object_of(row, "output"):
            return True
        return not {"messages", "contents"}.isdisjoint(object_of(row, *_REQUEST))

    def asks(self, row: Row) -> bool:
        return "custom_id" in row

    def convert(self, row: Row, record: TeacherRecord) -> None:
        asked_in, answered_in = (
            next((key for key in keys if isinstance(row.get(key), dict)), "") for keys in (_REQUEST, _RESPONSE)
        )
        request, response = row.get(asked_in) or row, row.get(answered_in) or row
        request = object_of(request, "body") or request
        if (error := row.get("error") or response.get("error")) or response.get("status_code", 200) != 200:
            said = error or response["status_code"]
            raise Rejected(Reason.MISSING_PART, f"the service gave no answer but an error: {said!r:.100}")
        key = next((key for key in _ASKED if key in request), "messages")
        record.read.update((*_ENVELOPE, asked_in, answered_in, key))
        told = [
            m for name in _INSTRUCTIONS for m in text_or_messages(request.get(name), f"the request's {name}", "system")
        ]
        answer = choice_of(object_of(response, "body") or response) or record.answer_of(row, FINISHED)
        if not answer and answered_in:
            record.name_unread(response, (), f"{answered_in}.")
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
            if record.rejected and record.rejected.reason in {Reason.WEIGHT_0, Reason.ANSWER_CUT, Reason.AMBIGUOUS}:
                raise record.rejected
        faults = [record.fault(answer_needed=answer_needed) for _, record in records]
        first = faults.index(None) if None in faults else 0
        known, record = records[first]
        for other, second in records:
            _refuse_second_answer(known, record, f"as {other.name} ({other.looks_like})", second)
        if fault := faults[first]:
            raise fault
        # A whole answer under a key that the row's format does not read is a second one, too.
        for key in (*FINISHED, "chosen"):
            if key not in record.read and is_answer(row, key) and not (answer := parse_answer(row[key])).missing:
                _refuse_second_answer(known, record, f"in {key}", answer)
        refuse_flags(record.metadata, "metadata.")
        for key, value in (row | {"metadata": record.metadata}).items():
            if isinstance(value, dict) and key not in {*record.read, "rejected"}:
                refuse_nested_ends(value, key)
        _refuse_bad_answer(row)
    except Rejected as rejected:
        rejected.format_name = matching[0].name
        raise
    record.notes += filter(None, [record.unread_said])
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
    record.name_unread(row, record.read | {*_ABOUT})
    return record


def _refuse_bad_answer(row: Row) -> None:
    """A `completion` may have a `label`, for trainers that learn from bad answers, too."""
    if "completion" in row and is_nothing(row.get("label")):
        said = f"label is {row['label']!r}: the row says that its answer is a bad one; delete the line"
        raise Rejected(Reason.WEIGHT_0, said)


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
