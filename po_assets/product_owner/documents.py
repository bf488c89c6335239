"""Reading the YAML documents of a Product Owner: requirements, vision, review.

Language models write this YAML, so reading never raises: what cannot be read is an empty mapping and a reason. A
document is bounded in size, nesting and expansion before anything walks through it, so that no text can make memory or
time explode (an alias bomb of 300 bytes expands to gigabytes).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import yaml

from po_assets.product_owner.contract import REQUIREMENT_SECTIONS
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
_REQUIREMENT_ID = re.compile(r"\b(?:NFR|FR|REQ|CON|C)[0-9]{2,}\b", re.IGNORECASE)
_ENDLESS_BASE_60 = re.compile(r"[0-9](?::[0-5]?[0-9]){20}")
# Nesting needs flow brackets, indicators on one line ("- - - x") or deep indentation; without them it cannot be deep.
_MAY_NEST_DEEPLY = re.compile(r"(?:[-?:][ \t]+){8}|^[ \t]{40}", re.MULTILINE)


@dataclass(frozen=True)
class YamlReading:
    """What a YAML text holds: a mapping, empty when it could not be read, and then the reason."""

    value: dict[Any, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class RequirementEntry:
    """One entry of a requirements document; `id` and `description` are empty where they are missing."""

    id: str
    description: str
    section: str


def strip_fences(text: str) -> str:
    """The text without code fences, leading `]` characters and surrounding white space."""
    return (_FENCE.sub("", text) if "```" in text else text).strip().lstrip("]")


def read_yaml(text: str | None) -> YamlReading:
    """Read one YAML mapping as PyYAML's safe loader types it; never raises.

    The last few documents are remembered, since metric, validator and selection ask about the same ones in turn: do not
    change what `value` holds.
    """
    return _read(text or "")


@lru_cache(maxsize=16)
def _read(text: str) -> YamlReading:
    bare = strip_fences(text)
    if not bare.strip():
        return YamlReading(error="it is empty")
    if len(bare) > MAX_DOCUMENT_CHARACTERS:
        return YamlReading(error=f"it has {len(bare):,} characters, at most {MAX_DOCUMENT_CHARACTERS:,} are read")
    value = read_plain(bare, MAX_NESTING)
    if value is not UNSURE:
        return YamlReading(value=value)
    try:
        loader = yaml.SafeLoader if is_disputed(bare) else _C_LOADER
        if problem := _too_large(bare, loader):
            return YamlReading(error=problem)
        value = yaml.load(bare, Loader=loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        return YamlReading(error=_reason(error))
    except Exception as error:  # noqa: BLE001 - PyYAML's constructors raise many kinds for odd dates and integers
        return YamlReading(error=f"it holds a value that YAML cannot read: {str(error)[:200]}")
    if not isinstance(value, dict):
        return YamlReading(error=f"it must be a mapping of keys to values, got {_kind(value)}")
    return YamlReading(value=value)


def read_status(review_yaml: str | None) -> str | None:
    """The review's status in lower case, or None where it has none that is text."""
    status = read_yaml(review_yaml).value.get("status")
    return status.strip().lower() if isinstance(status, str) else None


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


def _reason(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    context = getattr(error, "context", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}{problem}{f' ({context})' if context else ''}"


def _kind(value: object) -> str:
    names = {str: "plain text", list: "a list", type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")
