"""Changing one description in a requirements document and nothing else: its form stays to the character."""

import re
from typing import Any

import yaml

from po_assets.product_owner import read_yaml
from po_assets.product_owner.documents import REQUIREMENT_SECTIONS

_WIDTHS = (80, 1_000_000)
"""Columns after which lines are wrapped: PyYAML, which writes most such documents, takes 80; others wrap nothing."""


def with_description(requirements_yaml: str, identifier: str, description: str) -> str | None:
    """The document with another description of one requirement; None where its YAML style cannot be kept."""
    node = _description_node(requirements_yaml, identifier)
    if node is None or node.style not in (None, "'", '"'):
        return None
    start, end = node.start_mark.index, node.end_mark.index
    before, scalar, after = requirements_yaml[:start], requirements_yaml[start:end], requirements_yaml[end:]
    quote = node.style or ""
    if quote and re.search(r"['\"\\]", description):
        return None
    column = start - (before.rfind("\n") + 1)
    old, new = (f"{quote}{text}{quote}" for text in (node.value, description))
    # In every way of wrapping that could have made the old text, the new one must come out the same.
    ways = {_wrapped(new, column, scalar, width) for width in _WIDTHS if _wrapped(old, column, scalar, width) == scalar}
    if len(ways) != 1:
        return None
    changed = before + ways.pop() + after
    return changed if _differs_only_there(requirements_yaml, changed, identifier, description) else None


def _wrapped(text: str, column: int, like: str, width: int) -> str:
    """The text as PyYAML wraps it: a line ends with the first word that reaches beyond the width."""
    second = like.split("\n")[1] if "\n" in like else ""
    indent = len(second) - len(second.lstrip(" "))
    lines, line = [], ""
    for word in text.split(" "):
        if line and column + len(line) > width:
            lines.append(line)
            line, column = "", indent
        line = f"{line} {word}" if line else word
    return f"\n{' ' * indent}".join([*lines, line])


def _description_node(text: str, identifier: str) -> yaml.ScalarNode | None:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    entries = [
        entry
        for section in _values(root, REQUIREMENT_SECTIONS)
        for entry in (section.value if isinstance(section, yaml.SequenceNode) else [])
        if [node.value for node in _values(entry, ("id",))] == [identifier]
    ]
    found = [node for entry in entries for node in _values(entry, ("description",))]
    # An id or an alias that stands twice would change twice.
    return found[0] if len(entries) == len(found) == 1 and isinstance(found[0], yaml.ScalarNode) else None


def _values(node: Any, keys: tuple[str, ...]) -> list[Any]:
    if not isinstance(node, yaml.MappingNode):
        return []
    return [value for key, value in node.value if key.value in keys]


def _differs_only_there(text: str, changed: str, identifier: str, description: str) -> bool:
    one, other = read_yaml(text).value, read_yaml(changed).value
    if not one or one.keys() != other.keys():
        return False
    for key, value in one.items():
        if key not in REQUIREMENT_SECTIONS or not isinstance(value, list):
            if other[key] != value:
                return False
            continue
        wanted = [
            {**entry, "description": description}
            if isinstance(entry, dict) and entry.get("id") == identifier
            else entry
            for entry in value
        ]
        if other[key] != wanted:
            return False
    return True
