"""PyYAML's own results at two to three times its speed, for the plain documents that language models write.

ryaml parses with the same parser as PyYAML's C loader (libyaml, translated to Rust), so both see the same structure and
the same scalar texts. They differ in what a plain scalar *means* (`yes`, `1:30`, `0o7`, dates, merge keys), in tags, in
repeated keys and in errors. A document is therefore taken from ryaml only where every scalar is text that PyYAML could
not read as anything but text (or a date at the top level, where the source line shows whether it was quoted). For every
other document, and where ryaml is not installed, the answer is "unsure" and PyYAML itself reads it, in C or, where its
two parsers may disagree, in Python.

Bounds on size, nesting and expansion belong to `documents`.
"""

import contextlib
import importlib
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final

import yaml

_parse: Callable[[str], Any] | None = None
with contextlib.suppress(ImportError):  # it only speeds things up: results are the same without it
    _parse = importlib.import_module("ryaml").loads

UNSURE: Final = object()
"""Stands for a document that only PyYAML itself can read as PyYAML does."""

# libyaml and PyYAML's own Python parser disagree on tabs, a late byte-order mark, a bare `!`, a comment that touches a
# block scalar's indicator, and a `?` inside a flow collection, which ends a scalar in Python only (found by comparing
# them on random documents and by fuzzing). The Python parser is the standard.
_DISPUTED_CHARACTERS: Final = ("\t", "\ufeff")
_DISPUTED: Final = re.compile(r"(?:^|[\s\[\]{},?:-])!|[|>][-+0-9]*#", re.MULTILINE)
_FLOW: Final = re.compile(r"[\[{](?!\s*[\]}])")
"""Where a flow collection that is not empty may begin."""

# Where a value may start, an anchor or an alias; and directives and document marks.
_NAMES: Final = re.compile(r"(?:^|[\s\[\]{},?:-])[&*]\S", re.MULTILINE)
_MARKS: Final = ("%", "---", "...")

# PyYAML's own table: by a plain scalar's first character, the patterns that make it something else than text.
_PATTERNS: Final[dict[str, list[Callable[[str], object]]]] = {
    first: [pattern.match for _, pattern in resolvers]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if first
}
_LONGEST_WORD: Final = 5
"""`false` is the longest word that PyYAML takes for something else; what is longer and does so begins with none of the
letters that such words begin with."""
_FIRSTS: Final = frozenset(_PATTERNS) - frozenset("yYnNtTfFoO")
_TIMESTAMP_TAG: Final = "tag:yaml.org,2002:timestamp"
_TIMESTAMP: Final = next(  # the constructor's own pattern takes 2024-10-1 too, which no document is read by
    pattern.match for tag, pattern in yaml.SafeLoader.yaml_implicit_resolvers["2"] if tag == _TIMESTAMP_TAG
)
_SIMPLE_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def read_plain(text: str, max_nesting: int) -> Any:
    """The mapping that `yaml.load` with a safe loader gives, or `UNSURE`; also for what nests deeper than allowed."""
    if _parse is None or is_disputed(text) or _has_marks(text):
        return UNSURE
    try:
        value = _parse(text)
    except Exception:  # noqa: BLE001 - whatever is wrong, PyYAML says it in its own words
        return UNSURE
    if type(value) is not dict:
        return UNSURE
    dates: dict[str, Any] = {}
    for key, item in value.items():
        if type(item) is str and _TIMESTAMP(item):
            dates[key] = date = _read_date(text, key, item)
            if date is UNSURE:
                return UNSURE
    rest = (item for key, item in value.items() if key not in dates)
    if not (_are_text(value) and _are_sure(rest, max_nesting - 1)):
        return UNSURE
    value.update(dates)
    return value


def is_disputed(text: str) -> bool:
    """Whether PyYAML's parser in C and the one in Python may read the document differently."""
    if any(character in text for character in _DISPUTED_CHARACTERS):
        return True
    if ("!" in text or "#" in text) and _DISPUTED.search(text):
        return True
    last = text.rfind("?")
    return last > 0 and _FLOW.search(text, 0, last) is not None


def _has_marks(text: str) -> bool:
    """Whether there may be anchors, aliases, directives or document marks."""
    if ("&" in text or "*" in text) and _NAMES.search(text):
        return True
    return text.startswith(_MARKS) or any(f"\n{mark}" in text for mark in _MARKS)


def _are_sure(values: Iterable[Any], levels: int) -> bool:
    """Whether PyYAML gives these very values: text that means nothing else, None, and collections of such."""
    for value in values:
        kind = type(value)
        if kind is str:
            # Spelt out, since this runs for every scalar of every row: nearly all are long and begin with a letter.
            if (value[:1] in _FIRSTS if len(value) > _LONGEST_WORD else value[:1] in _PATTERNS) and not _is_text(value):
                return False
        elif kind is list:
            if levels == 0 or not _are_sure(value, levels - 1):
                return False
        elif kind is dict:
            if levels == 0 or not _are_text(value) or not _are_sure(value.values(), levels - 1):
                return False
        elif value is not None:
            return False
    return True


def _are_text(keys: Iterable[Any]) -> bool:
    return all(type(key) is str and _is_text(key) for key in keys)


@lru_cache(maxsize=1024)  # documents share their keys
def _is_text(scalar: str) -> bool:
    """Whether PyYAML reads this scalar as text, quoted or not."""
    patterns = _PATTERNS.get(scalar[:1])
    return patterns is None or not any(match(scalar) for match in patterns)


def _read_date(text: str, key: Any, item: str) -> Any:
    """A date of the top level as PyYAML reads it: a date where it stands bare, the text where it is quoted.

    The key stands once in the whole document and nothing is escaped, so the line that begins with it is its own.
    """
    if type(key) is not str or not _SIMPLE_KEY.fullmatch(key) or text.count(key) != 1 or "\\" in text:
        return UNSURE
    line = re.search(rf"^{key}:[ \t]+(\S.*)$", text, re.MULTILINE)
    if line is None:
        return UNSURE
    written = line[1].rstrip(" \t\r")
    if written in (f"'{item}'", f'"{item}"'):
        return item
    if written != item:
        return UNSURE
    try:
        return yaml.constructor.SafeConstructor().construct_yaml_timestamp(yaml.ScalarNode(_TIMESTAMP_TAG, item))
    except ValueError:  # the 99th of May, for example
        return UNSURE
