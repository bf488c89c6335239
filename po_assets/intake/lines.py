"""One landed line: from its bytes to a JSON object, bounded in size and nesting, or the reason why not.

The line is read strictly: what a lenient reader would silently repair (duplicate keys, NaN, half a character) is a
rejection that a person can act on. What the object means belongs to `formats`; worker processes import this, so neither
Dagster nor pandas may be imported here.
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

MAX_ROW_BYTES = 1 << 20
"""A landed row may have 1 MiB: two hundred times a real row of 5 kB."""

MAX_JSON_NESTING = 64
"""Levels of objects and arrays; real rows nest three deep."""

MAX_LINE_BYTES = 16 << 20
"""A longer line is never held in memory as a whole: of it, only this many bytes are read."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_KEY = re.compile(rb'"\s*:')
_SNIPPET = 40
_AS_LINES = "write it as JSON lines, with pandas to_json(…, orient='records', lines=True)"
_LAND = "and land the *.jsonl in it"
_BINARY = (
    ((b"\x1f\x8b",), f"compressed with gzip; unpack it (gunzip) {_LAND}"),
    ((b"(\xb5/\xfd",), f"compressed with zstd; unpack it (zstd -d) {_LAND}"),
    ((b"PK\x03\x04",), f"a zip archive; unpack it (unzip) {_LAND}; of a workbook (xlsx), JSON lines"),
    ((b"PK\x05\x06",), "an empty zip archive"),
    ((b"7z\xbc\xaf\x27\x1c",), f"a 7z archive; unpack it (7z x) {_LAND}"),
    ((b"Rar!",), f"a rar archive; unpack it (unrar x) {_LAND}"),
    ((b"\x04\x22\x4d\x18",), f"compressed with lz4; unpack it (lz4 -d) {_LAND}"),
    ((b"x\x01", b"x\x9c", b"x\xda"), f"compressed with zlib; unpack it {_LAND}"),
    ((b"BZh",), f"compressed with bzip2; unpack it (bunzip2) {_LAND}"),
    ((b"\xfd7zXZ",), f"compressed with xz; unpack it (unxz) {_LAND}"),
    ((b"PAR1",), f"Parquet (PAR1); {_AS_LINES}"),
    ((b"ARROW1", b"\xff\xff\xff\xff"), f"Arrow; {_AS_LINES}"),
    ((b"FEA1",), f"Feather; {_AS_LINES}"),
    ((b"ORC",), f"ORC; {_AS_LINES}"),
    ((b"Obj\x01",), f"Avro; {_AS_LINES}"),
    ((b"\x89HDF",), f"HDF5; {_AS_LINES}"),
    ((b"\xd0\xcf\x11\xe0",), f"an Excel workbook (xls); {_AS_LINES}"),
    ((b"SQLite format 3",), f"an SQLite database; {_AS_LINES}"),
    ((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), "a Python pickle; write it as JSON lines (json.dumps)"),
    ((b"%PDF",), "a PDF document; land JSON lines"),
    ((b"version https://",), "a pointer of Git LFS; fetch the file (git lfs pull)"),
    ((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"), "UTF-32; save it as UTF-8 (iconv -f UTF-32 -t UTF-8)"),
    ((b"\xff\xfe", b"\xfe\xff"), "UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
)
"""How files begin that are not JSON lines, what they are, and the way out."""
_ARRAY = "the file is a JSON array; write one object a line (jq -c '.[]')"
_PRINTED = {
    "[": _ARRAY,
    "[{": _ARRAY,
    "{": "the file is JSON printed over several lines; write one object a line (jq -c .)",
}
"""What the first line of a file tells about lines that are not JSON."""
_PYTHON = "it is written as Python prints it; write it with json.dumps"
_OTHER_FORMS = (
    (("<<<<<<<", "=======", ">>>>>>>"), "a mark of a merge in git that is not finished; choose one of its sides"),
    ("<", "the file is HTML or XML, perhaps the page of an error; land JSON lines"),
    (("---", "- "), "the file looks like YAML; land JSON lines"),
    (("//", "#"), "JSON has no comments; delete the line"),
    ("{'", _PYTHON),
    (("data:", "event:"), "a line of a service's stream; land the object behind data:"),
    ("```", "a code fence is no JSON; delete the line"),
)
"""How lines begin that are not JSON, and the way out."""
_OTHER_FILES = (
    (re.compile(r'(?:"?\w[\w .-]{0,40}"?)?[,;\t|] ?"?\w'), f"the file looks like a table (CSV); {_AS_LINES}"),
    (re.compile(r"(?:---|-|[\w-]+:)(?:\s|\Z)"), "the file looks like YAML; land JSON lines"),
)
"""How files begin that are not JSON lines, but text, and the way out."""
_PYTHON_WORD = re.compile(r"(?:None|True|False)\b")
_ODD = re.compile(
    "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u00a0\\u00ad\\u034f\\u061c\\u115f\\u180e\\u2000-\\u200f"
    "\\u2028-\\u202f\\u205f-\\u206f\\u3000\\ufeff\\ufff9-\\ufffd]"
)
"""Characters that a person does not see, or takes for a space."""
_NAMES = {"\x00": "NUL", "\x0b": "vertical tab", "\x0c": "form feed", "\r": "carriage return", "\x85": "next line"}


class Reason(StrEnum):
    """Short reasons of a rejection, by which rows are counted; the sentence about the row is `Rejected.detail`."""

    BLANK_LINE = "blank line"
    LINE_TOO_LONG = "line too long"
    NOT_UTF8 = "not UTF-8"
    NOT_JSON = "not JSON"
    NOT_AN_OBJECT = "not a JSON object"
    NESTED_TOO_DEEP = "nested too deep"
    DUPLICATE_KEY = "duplicate JSON key"
    UNKNOWN_FORMAT = "unknown format"
    MISSING_PART = "missing part"
    AMBIGUOUS = "ambiguous"
    ANSWER_CUT = "answer cut"
    WEIGHT_0 = "weight 0"
    BAD_SCORE = "unusable score"
    BAD_YAML = "YAML does not parse"
    SCHEMA = "schema"
    UNEXPECTED = "unexpected error"


class Rejected(Exception):  # noqa: N818  it is a finding about a row, not an error of the program
    """A landed line that cannot be used; `detail` says in a sentence what stands where and what is expected."""

    def __init__(self, reason: Reason, detail: str, *, format_name: str | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.format_name = format_name


@dataclass(frozen=True)
class Line:
    """One landed line: its bytes (the first `MAX_LINE_BYTES` of them) and its full length, without its newline."""

    file: str
    number: int
    data: bytes
    length: int
    opening: bytes = b""
    """How its file begins, which tells a reader of a line that is not JSON what kind of file it is."""


def read_object(line: bytes, length: int | None = None, opening: bytes = b"") -> dict[str, Any]:
    """The JSON object that one landed line holds.

    Args:
        line: the line's bytes; its line ending may still be there.
        length: the line's full length in bytes where `line` is only its beginning.
        opening: how the file begins; the line itself where nothing is said.

    Raises:
        Rejected: the line is blank, too long, not UTF-8, not JSON, not an object, nests too deep or names a key twice.
    """
    opening = opening or line
    if binary := next((kind for magics, kind in _BINARY if opening.startswith(magics)), ""):
        raise Rejected(Reason.NOT_JSON, f"the file is {binary}")
    length = len(line) if length is None else length
    if length > MAX_ROW_BYTES:
        detail = f"the line has {length:,} bytes, a row may have {MAX_ROW_BYTES:,}; split or shorten it"
        raise Rejected(Reason.LINE_TOO_LONG, detail)
    text = line.removeprefix(_BYTE_ORDER_MARK).removeprefix(_BYTE_ORDER_MARK).strip()
    if not text:
        raise Rejected(Reason.BLANK_LINE, "the line holds nothing but white space; delete it")
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _unreadable(text, opening, error) from None
    if not isinstance(row, dict):
        hint = f"; {_ARRAY}" if isinstance(row, list) and row and isinstance(row[0], dict) else ""
        if isinstance(row, str) and row.lstrip().startswith("{"):
            hint = "; it was written as JSON twice; undo it once (jq -c fromjson)"
        found = repr(text[:_SNIPPET].decode(errors="replace"))
        raise Rejected(Reason.NOT_AN_OBJECT, f"the line holds {_kind(row)}, a row is a JSON object: {found}{hint}")
    depth, keys = _shape(row)
    if depth > MAX_JSON_NESTING:
        raise Rejected(Reason.NESTED_TOO_DEEP, f"the object nests more than {MAX_JSON_NESTING} levels deep")
    # Every key of the text is followed by a colon, so as many colons as keys proves that no key was overwritten.
    if len(_KEY.findall(text)) != keys:
        _refuse_duplicate_keys(text)
    return row


def _unreadable(text: bytes, opening: bytes, error: orjson.JSONDecodeError) -> Rejected:
    """The most telling reason for a line that is not JSON."""
    if b"\x00" in text:
        wide = max(text[0::2].count(0), text[1::2].count(0)) > len(text) // 4
        hint = "is the file UTF-16? Save it as UTF-8" if wide else "remove it; a file that is not text cannot be read"
        hint = f"the file is a tar archive; unpack it (tar xf) {_LAND}" if b"ustar" in text[:300] else hint
        where = text.index(b"\x00") + 1
        return Rejected(Reason.NOT_JSON, f"the line holds a NUL byte (byte {where}); {hint}")
    try:
        decoded = text.decode()
    except UnicodeDecodeError as fault:
        bad = f"byte {fault.start + 1} (0x{text[fault.start]:02x})"
        return Rejected(Reason.NOT_UTF8, f"{bad} is not UTF-8 ({fault.reason}); save the file as UTF-8")
    if "depth limit" in error.msg:  # orjson's own limit lies far above ours
        return Rejected(Reason.NESTED_TOO_DEEP, f"the object nests more than {MAX_JSON_NESTING} levels deep")
    if rejected := _unusable_numbers(decoded):
        return rejected
    start = max(0, error.pos - _SNIPPET // 2)
    place = f"{error.msg.split(':')[0]} at character {error.pos + 1}: {decoded[start : start + _SNIPPET]!r}"
    start_of_file = opening.removeprefix(_BYTE_ORDER_MARK).lstrip().decode(errors="replace")
    hint = _PRINTED.get(start_of_file[:2].rstrip(), "")
    if text.startswith(b"{") and text.endswith(b"},"):
        hint = f"a comma follows the object, as in an array: {_ARRAY}"
    elif error.msg.startswith("unexpected content after document") and text[error.pos : error.pos + 1] == b"{":
        hint = "several objects stand in one line; write one object a line (jq -c .)"
    elif _PYTHON_WORD.match(decoded, error.pos):
        hint = _PYTHON
    hint = hint or next((way_out for start, way_out in _OTHER_FORMS if decoded.startswith(start)), "")
    if not hint and not decoded.startswith(("{", "[")):
        hint = next((way_out for start, way_out in _OTHER_FILES if start.match(start_of_file)), "")
    if not hint and error.msg.startswith("unexpected end of data"):
        hint = r"the line ends within its object: it was cut, or a line end in a text is not written as \n"
    odd = odd_characters(decoded[max(0, error.pos - 1) : error.pos + 1], letters=True)
    return Rejected(Reason.NOT_JSON, "; ".join(filter(None, (place, f"there stands {odd}" if odd else "", hint))))


class _UnusableNumber(str):
    """What stands in place of a number and is none that JSON or a float can hold, in words."""

    __slots__ = ()


def _unusable_numbers(text: str) -> Rejected | None:
    """The rejection of a line in which nothing but such values is wrong; it names the score before any other."""
    found: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.extend(f"{key[:_SNIPPET]} {fault}" for key, value in pairs for fault in _unusable_in(value))
        return dict(pairs)

    def bounded(number: str, said: str) -> _UnusableNumber | None:
        finite = math.isfinite(float(number))
        return None if finite else _UnusableNumber(f"{said}, which is more than a number can hold")

    try:
        row = json.loads(
            text,
            parse_constant=lambda name: _UnusableNumber(f"{name}, which is not a JSON number"),
            parse_int=lambda digits: bounded(digits, f"an integer of {len(digits.lstrip('-')):,} digits"),
            parse_float=lambda number: bounded(number, number[:_SNIPPET]),
            object_pairs_hook=note,
        )
    except (ValueError, RecursionError):
        return None
    score = row.get("score") if isinstance(row, dict) else None
    if isinstance(score, _UnusableNumber):
        return Rejected(Reason.BAD_SCORE, f"score is {score}; leave the value out or make it a number")
    found += [f"it {fault}" for fault in _unusable_in(row)]
    return Rejected(Reason.NOT_JSON, f"{found[0]}; leave the value out or make it a number") if found else None


def _unusable_in(value: object) -> Iterator[str]:
    """Such values in a value, and in the arrays in it."""
    if isinstance(value, _UnusableNumber):
        yield f"is {value}"
    while isinstance(value, list):
        yield from (f"holds {item}" for item in value if isinstance(item, _UnusableNumber))
        value = [child for item in value if isinstance(item, list) for child in item] or None


def _refuse_duplicate_keys(text: bytes) -> None:
    repeated: list[str] = []

    def note(pairs: list[tuple[str, object]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                repeated.append(key)
            seen.add(key)

    json.loads(text, object_pairs_hook=note)
    if repeated:
        names = ", ".join(f'"{key[:_SNIPPET]}"' for key in dict.fromkeys(repeated[:5]))
        raise Rejected(Reason.DUPLICATE_KEY, f"{names} stands more than once in one object; leave one of them")


def _shape(value: object) -> tuple[int, int]:
    """How many levels of objects and arrays, and how many keys; level by level, so that depth costs no recursion."""
    level, depth, keys = [value], 0, 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        keys += sum(len(item) for item in level if isinstance(item, dict))
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth, keys


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def odd_characters(text: str, *, letters: bool = False) -> str:
    """The first few characters of a text that a person does not see, with their lines where there are several.

    With `letters` also those that look like others: whatever is not ASCII.
    """
    if text.isascii() and not _ODD.search(text):
        return ""
    found = dict.fromkeys(char for char in text if _ODD.match(char) or (letters and ord(char) > 127))
    said = []
    for char in list(found)[:3]:
        name = _NAMES.get(char) or unicodedata.name(char, "no name").lower()
        line = text.count("\n", 0, text.index(char)) + 1
        said.append(f"U+{ord(char):04X} ({name})" + (f" in line {line}" if "\n" in text else ""))
    return ", ".join(said)
