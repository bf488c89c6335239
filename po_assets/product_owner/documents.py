"""Reading the documents of a Product Owner: requirements, vision and review in YAML, and what a concept states.

Language models write this YAML, so reading never raises: what cannot be read is an empty mapping and a reason. A
document is bounded in size, nesting and expansion before anything walks through it, so that no text can make memory or
time explode (an alias bomb of 300 bytes expands to gigabytes). A concept is read by sentence forms that are common
there: empty where none is found, never a guess.
"""

import contextlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import yaml

from po_assets.product_owner.contract import ALIGNMENT_KEYS, REQUIREMENT_SECTIONS, STATUS_ALIASES
from po_assets.product_owner.fast_yaml import UNSURE, is_disputed, read_plain

MAX_DOCUMENT_CHARACTERS = 50_000
"""About twenty times a real document of 1 to 3 kB, and far more than any model here is trained with."""
MAX_NESTING = 40
"""Real documents nest three deep; PyYAML's composer recurses once a level."""
MAX_EXPANDED_CHARACTERS = MAX_DOCUMENT_CHARACTERS
"""Characters after every alias has been followed: what is repeated weighs as much as what is written out."""

# libyaml reads ten times faster than PyYAML's own parser, with the same resolver and constructor.
_C_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FENCE = re.compile(r"```(?:yaml|yml)?", re.IGNORECASE)
_ASKED = re.compile(r"\b(?:must|shall|should|has to|have to|is to) (?!not\b)([^.;:]+)")
_EXCLUDED = re.compile(r"\b(?:does|do|will|shall|must|should|is to) not (\w[^.,;:\n]+)")
_REQUIREMENT_ID = re.compile(r"\b(?:NFR|FR|REQ|CON|C)[0-9]{2,}\b", re.IGNORECASE)
_ENDLESS_BASE_60 = re.compile(r"[0-9](?::[0-5]?[0-9]){20}")
_ODD_SPACES = "\u00a0\u1680\u2000-\u200b\u202f\u205f\u2060\u3000\ufeff"
# Before a key or an item only: in running text they stand rightly.
_ODD_INDENTATION = re.compile(
    rf"\n[ \t]*([{_ODD_SPACES}])[ \t{_ODD_SPACES}]*(?:-[ \t]|[A-Za-z_\"'][^\n:]{{0,60}}:(?:[ \t\n]|\Z))"
)
_INVISIBLE = re.compile(rf"[\u0085\u00ad\u200c-\u200f\u2028-\u202e{_ODD_SPACES}]")
_NO_COLON = re.compile(r"[\ufe55\uff1a\ua789\u2236](?=\s)")
_PROSE_ABOVE = re.compile(r"^([A-Za-z<(][^:\n]*)\n(?:[ \t]*\n)*[^\n]*\Z", re.MULTILINE)
"""A line at the margin without a colon, above the line where a text ends."""
_SHOWN = 60
# Nesting needs flow brackets, indicators on one line ("- - - x") or deep indentation; without them it cannot be deep.
_MAY_NEST_DEEPLY = re.compile(r"(?:[-?:][ \t]+){8}|^[ \t]{40}", re.MULTILINE)


@dataclass(frozen=True)
class YamlReading:
    """What a YAML text holds: a mapping, empty when it could not be read, and then the reason."""

    value: dict[Any, Any] = field(default_factory=dict)
    error: str | None = None
    doubt: str | None = None
    """Why a document that was read is still refused where keys must be unique."""


@dataclass(frozen=True)
class RequirementEntry:
    """One entry of a requirements document; `id` and `description` are empty where they are missing."""

    id: str
    description: str
    section: str


def strip_fences(text: str) -> str:
    """The text without code fences, leading `]` characters and surrounding white space."""
    return (_FENCE.sub("", text) if "```" in text else text).strip().lstrip("]")


def read_yaml(text: str | None, *, unique_keys: bool = True) -> YamlReading:
    """Read one YAML mapping as PyYAML's safe loader types it; never raises.

    The last few documents are remembered, since metric, validator and selection ask about the same ones in turn: do not
    change what `value` holds.

    Args:
        text: the document; code fences and leading brackets are not read.
        unique_keys: refuse a key that a mapping has twice, and lines indented with what only looks like a space. The
            metric reads without it, as PyYAML does: the last one counts.
    """
    reading = _read(text or "")
    return YamlReading(error=reading.doubt) if unique_keys and reading.doubt else reading


@lru_cache(maxsize=16)
def _read(text: str) -> YamlReading:
    bare = strip_fences(text)
    if not bare.strip():
        return YamlReading(error="it is empty")
    if len(bare) > MAX_DOCUMENT_CHARACTERS:
        return YamlReading(error=f"it has {len(bare):,} characters, at most {MAX_DOCUMENT_CHARACTERS:,} are read")
    value, doubt = read_plain(bare, MAX_NESTING), _odd_indentation(bare)
    if value is not UNSURE:  # ryaml refuses a key that comes twice, so there is none
        return YamlReading(value, doubt=doubt)
    try:
        kind = yaml.SafeLoader if is_disputed(bare) else _C_LOADER
        if problem := _too_large(bare, kind):
            return YamlReading(error=problem)
        loader = _noticing(kind)(bare)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        fences = "; it was read without the code fences in it, as the metric reads it" if "```" in text else ""
        return YamlReading(error=_reason(error, bare) + _invisible(bare) + fences)
    except Exception as error:  # noqa: BLE001 - PyYAML's constructors raise many kinds for odd dates and integers
        return YamlReading(error=f"it holds a value that YAML cannot read: {str(error)[:200]}")
    if not isinstance(value, dict):
        return YamlReading(error=f"it must be a mapping of keys to values, got {_kind(value)}")
    return YamlReading(value, doubt=loader.twice or doubt)


def read_status(review_yaml: str | None) -> str | None:
    """The review's status in lower case, or None where it has none that is text."""
    status = read_yaml(review_yaml).value.get("status")
    return status.strip().lower() if isinstance(status, str) else None


def read_alignment(review_yaml: str | None) -> dict[str, list[Any]]:
    """The lists `aligned`, `gaps` and `conflicts` of a review, empty where it has none."""
    alignment = read_yaml(review_yaml).value.get("requirements_alignment")
    return {key: as_list(alignment.get(key) if isinstance(alignment, dict) else None) for key in ALIGNMENT_KEYS}


def canonical_status(status: str, aliases: Mapping[str, str] = STATUS_ALIASES) -> str:
    """The status in the data's own words: lower case, joined by underscores, and what an alias stands for."""
    plain = status.strip().lower()
    joined = re.sub(r"[ -]", "_", plain)
    return aliases.get(plain) or aliases.get(joined, joined)


def with_status(review_yaml: str, status: str) -> str:
    """The review with another status, and every other character as it was.

    Raises:
        ValueError: the review cannot be read, has no status, or shares it by an alias with another place.
    """
    wanted = read_yaml(review_yaml).value | {"status": status}
    node = _top_level(review_yaml, "status")
    if node is None:
        raise ValueError("the REVIEW has no status that could be rewritten")
    quote = node.style if node.style in {"'", '"'} else ""
    line_end = "\n" if node.style in {"|", ">"} else ""
    start, end = node.start_mark.index, node.end_mark.index
    text = f"{review_yaml[:start]}{quote}{status}{quote}{line_end}{review_yaml[end:]}"
    if read_yaml(text).value != wanted:
        raise ValueError(f"the REVIEW's status cannot be rewritten as {status!r}: write it as plain text")
    return text


def written_value(text: str, key: str) -> str:
    """What stands in the text as the value of a top-level key (`no`, where PyYAML reads False), in one line."""
    node = _top_level(text, key)
    return " ".join(text[node.start_mark.index : node.end_mark.index].split()) if node else ""


def cited_ids(text: str) -> list[str]:
    """Requirement ids that the text names (FR001, NFR02, REQ10, C01, CON01), upper-cased, in order, each once."""
    return list(dict.fromkeys(match.group().upper() for match in _REQUIREMENT_ID.finditer(text)))


def requirement_entries(requirements: str | dict[Any, Any]) -> list[RequirementEntry]:
    """The mappings in the three requirement lists that have an id or a description, in document order."""
    document = read_yaml(requirements).value if isinstance(requirements, str) else requirements
    return [
        RequirementEntry(id=to_text(item.get("id")), description=to_text(item.get("description")), section=section)
        for section in REQUIREMENT_SECTIONS
        for item in as_list(document.get(section))
        if isinstance(item, dict) and (item.get("id") or item.get("description"))
    ]


def stated_needs(concept: str) -> list[str]:
    """What the product must do: the verb phrases of the first sentence of the form "must …, … and …", in order."""
    asked = _ASKED.search(concept)
    return [need.strip() for need in re.split(r", and |, | and ", asked[1]) if need.strip()] if asked else []


def stated_exclusion(concept: str) -> str:
    """What the product will not do: the verb phrase after "does not", "will not" and the like; empty without one."""
    excluded = _EXCLUDED.search(concept)
    return excluded[1].strip() if excluded else ""


def write_yaml(document: Mapping[str, Any]) -> str:
    """A document as YAML text: keys in their order, one line for each value."""
    return yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=100_000).strip()


def as_list(value: object) -> list[Any]:
    """The value itself when it is a list, else an empty list."""
    return value if isinstance(value, list) else []


def to_text(value: object) -> str:
    """`str(value)`, empty for None and for integers that Python refuses to print (over 4,300 digits)."""
    if value is None:
        return ""
    try:
        return str(value)
    except ValueError:
        return ""


@cache
def _noticing(kind: Any) -> Any:
    """A loader that reads as `kind` does and notices a key that a mapping has twice."""

    class NoticingLoader(kind):  # type: ignore[misc]
        def __init__(self, stream: str) -> None:
            super().__init__(stream)
            self.twice: str | None = None
            self._seen: set[int] = set()

        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            # Before merge keys put the pairs of other mappings into this one.
            if id(node) not in self._seen and self.twice is None:
                self._seen.add(id(node))
                self.twice = _key_twice(node)
            super().flatten_mapping(node)

    return NoticingLoader


def _key_twice(node: yaml.MappingNode) -> str | None:
    keys: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in keys:
                return f"it has the key {key.value[:60]!r} twice (line {key.start_mark.line + 1})"
            keys.add((key.tag, key.value))
    return None


def _top_level(text: str, key: str) -> yaml.ScalarNode | None:
    """The scalar of a top-level key, by PyYAML's own parser, whose marks count characters."""
    if read_yaml(text).error:
        return None
    root = None
    # Code fences, which `read_yaml` leaves out, stay or become as many spaces, so that the marks fit the text.
    for written in dict.fromkeys((text, _FENCE.sub(lambda fence: " " * len(fence[0]), text))):
        with contextlib.suppress(yaml.YAMLError):  # also a leading bracket, which it leaves out too
            root = root or yaml.compose(written, Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    found = [value for name, value in pairs if isinstance(name, yaml.ScalarNode) and name.value == key]
    return found[0] if found and isinstance(found[0], yaml.ScalarNode) else None


def _odd_indentation(text: str) -> str | None:
    match = None if text.isascii() else _ODD_INDENTATION.search(text)
    if match is None:
        return None
    return f"line {_line(text, match.start(1))} is indented with {named(match[1])}, which only looks like a space"


def _invisible(text: str) -> str:
    match = None if text.isascii() else _INVISIBLE.search(text)
    if match:
        return f"; line {_line(text, match.start())} holds {named(match[0])}, which cannot be seen"
    if match := None if text.isascii() else _NO_COLON.search(text):
        return f"; line {_line(text, match.start())} holds {named(match[0])}, which is no colon in YAML"
    if "\n" not in text and "\\n" in text:
        return r"; its line ends are written as \n (two characters): it was escaped once too often"
    return ""


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def named(character: str) -> str:
    """A character by its code point and name: `U+200B (zero width space)`."""
    return f"U+{ord(character):04X} ({unicodedata.name(character, 'a control character').lower()})"


def _too_large(text: str, loader: Any) -> str | None:
    """Why a document must not be built, before it is: what libyaml reads in little time may grow without bound.

    Aliases and merge keys repeat what they name, merge keys already while the document is built; base-60 integers
    (`1:59:59…`) take quadratic time.
    """
    if (text.count("[") + text.count("{") >= MAX_NESTING or _MAY_NEST_DEEPLY.search(text)) and any(
        depth > MAX_NESTING for depth in _depths(text, loader)
    ):
        return f"it nests more than {MAX_NESTING} levels deep"
    if "*" in text and _expanded_size(yaml.compose(text, Loader=loader)) > MAX_EXPANDED_CHARACTERS:
        return f"its aliases expand to more than {MAX_EXPANDED_CHARACTERS:,} characters"
    if _ENDLESS_BASE_60.search(text):
        return "it holds a base-60 integer of more than 20 digits; put it into quotation marks"
    return None


def _depths(text: str, loader: Any) -> Iterator[int]:
    depth = 0
    for event in yaml.parse(text, Loader=loader):  # events come from a state machine, not from recursion
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            yield depth
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _expanded_size(node: yaml.Node | None, known: dict[int, int] | None = None) -> int:
    """Characters of a composed document after every alias has been followed, and one for each node."""
    known = {} if known is None else known
    if not isinstance(node, yaml.CollectionNode):
        return 1 + len(node.value if node else "")
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = (
        MAX_EXPANDED_CHARACTERS + 1
    )  # stands while its children are counted: an alias to itself is endless
    children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    known[id(node)] = 1 + sum(_expanded_size(child, known) for child in children)
    return known[id(node)]


def _reason(error: yaml.YAMLError, text: str) -> str:
    if isinstance(error, yaml.reader.ReaderError) and (place := text.find(chr(error.character))) >= 0:
        return f"line {_line(text, place)} holds {named(text[place])}, which YAML does not allow"
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    context = getattr(error, "context", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    begun, shown = getattr(error, "context_mark", None), ""
    if begun and problem == "could not find expected ':'" and (rest := text.splitlines()[begun.line :]):
        shown = f"; line {begun.line + 1} is neither a key nor an item: {rest[0][:_SHOWN]!r}"
    elif mark and problem.startswith("mapping values") and (prose := _PROSE_ABOVE.search(text[: mark.index])):
        shown = f"; line {_line(text, prose.start(1))} is neither a key nor an item: {prose[1][:_SHOWN]!r}"
    elif mark and "\n" not in problem and (lines := text.splitlines()[mark.line : mark.line + 1]):
        shown = f"; the line is {lines[0].strip()[:_SHOWN]!r}"
    return f"{where}{problem}{f' ({context})' if context else ''}{shown}"


def _kind(value: object) -> str:
    if isinstance(value, str):
        return f"plain text {value[:_SHOWN]!r}"
    names = {list: "a list", type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")
