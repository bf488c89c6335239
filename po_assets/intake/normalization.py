"""One landed line becomes one normalized row, or the reason why it cannot be used.

Everything about a row that can be said from the row alone is said here: its parts, its score, whether its answer is
valid, and the digests by which it is the same as another, however it was written down. What depends on other rows or on
settings belongs to `dataset`; how alike two different inputs are, to `dataset.holdout`.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from po_assets.intake.formats import read_record
from po_assets.intake.lines import Line, Reason, Rejected, odd_characters, read_object
from po_assets.intake.record import TeacherRecord
from po_assets.product_owner import STATUSES, cited_ids, read_yaml, score_product_owner, validate_answer
from po_assets.product_owner.blocks import strip_reasoning
from po_assets.product_owner.contract import REQUIREMENT_SECTIONS, STATUS_ALIASES
from po_assets.product_owner.documents import as_list, canonical_status, to_text, with_status, written_value

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

_LATIN_LOOK_ALIKES = str.maketrans(
    "АВЕКМНОРСТУХІЈЅаеорсухіјѕ" + "вкмнтгпиһԁԛԝӏ" + "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαονριικτυωη" + "օսոցհɡı",
    "ABEKMHOPCTYXIJSaeopcyxijs" + "bkmhtrnuhdqwl" + "ABEZHIKMNOPTYXaovpiiktuwn" + "ounghgi",
)
"""Cyrillic, Greek and Armenian letters that look like Latin ones, which hide a text from every comparison."""
_OF_PROMPT = re.compile(r"rules|instructions|guidelines|(?:output|answer|response)[_ ]format")
"""Keys in small letters that are no part of a requirements document."""
_NOTHING = re.compile(
    r"|\W{0,5}(?:none|n/?a|tb[ad]|todo|null|nothing|unknown|pending|no requirements(?: yet)?"
    r"|to be (?:defined|determined|done))?\W{0,5}|<[^<>\n]{0,60}>",
    re.IGNORECASE,
)
_ABOUT_ENTRY = frozenset(("id", "priority", "type", "category", "status"))
"""Keys of a requirement that ask for nothing by themselves."""
_CUT_MARK = re.compile(
    r"(?:[\[<](?:output |text )?(?:cut off|to be continued"
    r"|truncated(?:[ :,]{1,2}(?:(?:at )?[0-9]|(?:after|because|by|due|for)\b)[^\[\]<>\n]{0,60})?)[\]>]"
    r"|\[(?:\.\.\.|\u2026)\])['\"]?\s*\Z",
    re.IGNORECASE,
)
_RECORD_ID = re.compile(r"[0-9a-f]{16}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""A number written as text. (Python's own `float` also takes 0.8_5, and digits of other scripts.)"""

_SHOWN = 60
_UNSEEN_ONES = r"\u0085\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\ufeff"
_UNSEEN = re.compile(f"[{_UNSEEN_ONES}]")
"""Characters that nobody sees and that no language needs inside a line."""
_HIDING = re.compile(
    rf"[{_UNSEEN_ONES}\u115f\u1160\u180b-\u180f\u200c\u200d\u2065-\u206f\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)
"""Those, and what some languages and emoji do need: joiners, isolates, variation selectors, fillers, tags."""
_LOOK_ALIKES = re.compile(r"[\u0370-\u03ff\u0400-\u052f]")
_MIXED_WORD = re.compile(r"\b(?=\w*[A-Za-z])(?=\w*[\u0370-\u03ff\u0400-\u052f])\w+")

_HUGE_INTEGER = re.compile(r"it holds .* value has ([0-9]+) digits.*", re.DOTALL)
"""Python's words for an integer that it does not convert, with advice to programmers."""
_HUGE_INTEGER_PLAINLY = r"it holds an integer of \1 digits; put it in quotes or correct it"


class Normalized(NamedTuple):
    """A readable row, as a mapping of `COLUMNS`, and what had to be decided about it."""

    row: dict[str, Any]
    notes: str


def normalize(line: Line, status_aliases: Mapping[str, str] = STATUS_ALIASES) -> Normalized:
    """The normalized row of one landed line; `status_aliases` are other words for a review's status.

    Raises:
        Rejected: the line cannot be used; says why, and as which format it was read as far as that is known.
    """
    format_name, record = read_record(read_object(line.data, line.length, line.opening))
    try:
        declared, score_note = read_score(record.declared_score)
        requirements, status, status_note = _read_documents(record, status_aliases)
    except Rejected as rejected:
        rejected.format_name = format_name
        raise
    metric = score_product_owner(record.requirements_yaml, record.vision_yaml, record.review_yaml).total
    verdict = validate_answer(record.vision_yaml, record.review_yaml)
    notes = [*record.notes, score_note, status_note, *_doubts(requirements, record)]
    if declared is None:
        notes.append(f"no score was declared; the metric gives {metric:.3f}")
    row = {
        "record_id": line_id(line.data),
        "file": line.file,
        "line": line.number,
        "format": format_name,
        "concept_id": record.concept_id,
        "tier": record.tier,
        "concept": record.concept.strip(),
        "requirements_yaml": record.requirements_yaml,
        "vision_yaml": record.vision_yaml,
        "review_yaml": record.review_yaml,
        "status": status,
        "score": metric if declared is None else declared,
        "score_source": "metric" if declared is None else "declared",
        "declared_score": declared,
        "metric_score": metric,
        "valid": verdict.ok,
        "invalid_reason": verdict.reason,
        "vision_in_prompt": record.vision_in_prompt,
        "input_digest": input_digest(record.concept, requirements, record.existing_vision_yaml),
        "metadata": record.metadata,
    }
    return Normalized(row, "; ".join(filter(None, notes)))


def as_landed(row: Mapping[str, Any]) -> dict[str, Any]:
    """The normalized row that this row becomes when it has landed: who pays for an answer, or corrects one, asks first.

    Raises:
        Rejected: it would be rejected; its detail says why.
    """
    try:
        line = orjson.dumps(row)
    except TypeError:  # orjson's word for half a surrogate pair
        raise Rejected(Reason.NOT_UTF8, "it holds half of a character, which no UTF-8 file can hold") from None
    return normalize(Line("", 1, line, len(line))).row


def read_score(value: Any) -> tuple[float | None, str]:
    """A declared score and what to note about it; None where the row declares none.

    A number written as text is read and noted. Anything else that is not a number from 0 to 1 is refused: a wrong score
    must not pass for a missing one.

    Raises:
        Rejected: the value is not a number from 0 to 1.
    """
    if value is None:
        return None, ""
    number, note = value, ""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        number, note = float(value), f"the declared score is text ({value!r:.40}) and was read as a number"
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:  # neither is NaN
        said = f"the declared score is {value!r:.60}, a number from 0 to 1 is expected; correct or remove it"
        raise Rejected(Reason.BAD_SCORE, said)
    return float(number), note


def _read_documents(record: TeacherRecord, aliases: Mapping[str, str]) -> tuple[dict[Any, Any], str, str]:
    """The parsed requirements, the status, and what to note about it; the review then says it in our words.

    Raises:
        Rejected: names every document that does not read, or what is wrong with the status or the requirements.
    """
    if "\x00" in record.concept:  # YAML refuses control characters by itself; in a concept some tokenizers trip over it
        raise Rejected(Reason.SCHEMA, "the concept holds a NUL character; remove it")
    texts = {"REQUIREMENTS": record.requirements_yaml, "VISION": record.vision_yaml, "REVIEW": record.review_yaml}
    read = {name: read_yaml(text) for name, text in texts.items()}
    errors = [
        f"{name}: {_HUGE_INTEGER.sub(_HUGE_INTEGER_PLAINLY, reading.error)}"
        for name, reading in read.items()
        if reading.error
    ]
    if errors:
        raise Rejected(Reason.BAD_YAML, "; ".join(errors))
    if cut := next((name for name in ("VISION", "REVIEW") if _CUT_MARK.search(texts[name][-100:])), ""):
        raise Rejected(Reason.ANSWER_CUT, f"the {cut} ends in {texts[cut].strip()[-20:]!r}; ask for it again")
    requirements, review = read["REQUIREMENTS"].value, read["REVIEW"].value
    if not holds_anything(requirements):
        raise Rejected(Reason.SCHEMA, f"the REQUIREMENTS {record.requirements_yaml[:_SHOWN]!r} ask for nothing")
    said = review.get("status")
    status = canonical_status(said, aliases) if isinstance(said, str) else ""
    if status not in STATUSES:
        found, keys = "missing", f"; its keys are {', '.join(repr(to_text(key))[:_SHOWN] for key in list(review)[:6])}"
        if "status" in review:
            found, keys = _status_as_written(record.review_yaml, said), ""
        wanted = f"{', '.join(STATUSES[:-1])} or {STATUSES[-1]}"
        raise Rejected(Reason.SCHEMA, f"the REVIEW's status is {found}, expected is {wanted}{keys}")
    plain = str(said).strip().lower()
    if plain == status:
        return requirements, status, ""
    try:
        record.review_yaml = with_status(record.review_yaml, status)
    except ValueError as error:
        raise Rejected(Reason.SCHEMA, str(error)) from None
    return requirements, status, f"status {plain!r} was read as {status!r}"


def _status_as_written(review_yaml: str, status: object) -> str:
    """A status as it stands in the text (`no`, not the False that YAML makes of it), odd characters by code point."""
    written = "" if isinstance(status, str) else written_value(review_yaml, "status")
    text = (written or to_text(status))[:_SHOWN]
    odd = odd_characters(text, letters=True)
    return repr(text) + (f", which holds {odd}" if odd else "")


def _doubts(requirements: Mapping[Any, Any], record: TeacherRecord) -> Iterator[str]:
    """Notes on what may have got into the texts by mistake: characters nobody sees or tells apart, keys, prose."""
    answer = {"VISION": record.vision_yaml, "REVIEW": record.review_yaml}
    for name, text in ({"concept": record.concept} | answer).items():  # look-alikes hide a text from every comparison
        if not text.isascii() and _LOOK_ALIKES.search(text) and (found := _MIXED_WORD.search(text)):
            odd = odd_characters(found[0], letters=True)
            yield f"the {name} mixes two scripts in one word ({found[0][:_SHOWN]!r}: {odd})"
    for name, text in ({"concept": record.concept, "REQUIREMENTS": record.requirements_yaml} | answer).items():
        if not text.isascii() and (unseen := dict.fromkeys(_UNSEEN.findall(text))):
            yield f"in the {name} stands {odd_characters(''.join(unseen))}, which cannot be seen"
    for name, text in answer.items():
        if foreign := [key for key in map(to_text, read_yaml(text).value) if key[:1].isupper() or " " in key]:
            yield f"the {name} has keys that no answer has: {', '.join(foreign[:3])[:_SHOWN]!r}"
    for name, text in (("concept", record.concept), ("EXISTING_VISION", record.existing_vision_yaml)):
        if strip_reasoning(text)[1]:
            yield f"the {name} holds marks as of a model's reasoning (such as <think>)"
    keys = [to_text(key) for key in requirements]
    small = any(key[:1].islower() for key in keys)
    of_prompt = (
        key for key in keys if (small and key[:1].isupper() and not cited_ids(key)) or _OF_PROMPT.fullmatch(key)
    )
    if odd := next(of_prompt, ""):
        yield f"the REQUIREMENTS have the key {odd[:_SHOWN]!r}, which may be text of the prompt"
    for section in REQUIREMENT_SECTIONS:
        entries = as_list(requirements.get(section))
        plain = [to_text(entry) for entry in entries if not isinstance(entry, dict)]
        if 0 < len(plain) < len(entries):
            yield f"one of the {section} is plain text beside entries with an id: {plain[0][:_SHOWN]!r}"
    others = {key: value for key, value in requirements.items() if key not in REQUIREMENT_SECTIONS}
    if not (any(holds_anything(requirements.get(key)) for key in REQUIREMENT_SECTIONS) or cited_ids(to_text(others))):
        yield "the REQUIREMENTS name no requirement by an id (such as FR001)"


def holds_anything(value: object) -> bool:
    """Whether a document says anything; an id or a priority alone says nothing, nor does *none* or *tbd*."""
    if isinstance(value, dict):
        return any(
            holds_anything(item)
            for key, item in value.items()
            if key not in _ABOUT_ENTRY or isinstance(item, dict | list)
        )
    if isinstance(value, list):
        return any(map(holds_anything, value))
    return not _NOTHING.fullmatch(to_text(value).strip())


def line_id(line: bytes) -> str:
    """The record id of a landed line: a digest of its bytes, so that it is the same wherever the line lands."""
    return hashlib.blake2b(line.strip(), digest_size=8).hexdigest()


def replaced_record(metadata: Mapping[str, Any]) -> str | None:
    """The record id of the row that a row with this metadata replaces, None where it names none."""
    value = metadata.get(REPLACES)
    return value if isinstance(value, str) and _RECORD_ID.fullmatch(value) else None


def input_digest(concept: str, requirements: str | dict[Any, Any], existing_vision_yaml: str = "") -> str:
    """A digest of what the model is asked; case, white space, key order and YAML serialization do not change it."""
    document = read_yaml(requirements).value if isinstance(requirements, str) else requirements
    # A document that does not parse stands for its own text, lest all unreadable documents look alike.
    canonical = [folded(concept), _canonical(document) if document else folded(str(requirements))]
    if existing_vision_yaml.strip():
        existing = read_yaml(existing_vision_yaml).value
        canonical.append(_canonical(existing) if existing else folded(existing_vision_yaml))
    return hashlib.blake2b(orjson.dumps(canonical, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def content_digest(concept: str, requirements_yaml: str, vision_yaml: str, review_yaml: str, key: bytes) -> bytes:
    """8 bytes that depend on a row's four texts (and the key) alone, not on where and in which format they landed."""
    texts = (concept, requirements_yaml, vision_yaml, review_yaml)
    joined = "\x00".join(text.strip() for text in texts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=8, key=key).digest()


def _canonical(value: object) -> object:
    """A document as texts, so that `1`, `"1"` and `1 ` are one and the same."""
    if isinstance(value, dict):
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    try:
        return "" if value is None else folded(str(value))
    except ValueError:  # an integer of more digits than Python prints
        return "huge number"


def folded(text: str) -> str:
    """A text without what hides that it is the same: case, white space, Unicode forms, look-alike letters."""
    if not text.isascii():
        seen = _HIDING.sub(lambda match: " " if match[0].isspace() else "", text)
        text = unicodedata.normalize("NFKC", seen).translate(_LATIN_LOOK_ALIKES)
    return " ".join(text.casefold().split())
