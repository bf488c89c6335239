"""YAML files that people write: what a lenient reader would lose or refuse without a word is told."""

from typing import Any

import yaml


def read_strict_yaml(content: bytes | str, *, any_escape: bool = False) -> Any:
    """What the document says.

    Args:
        content: of the file.
        any_escape: also of characters that no UTF-8 file can hold, as rows may bring them; much slower.

    Raises:
        ValueError: it is not YAML, or a key stands twice in it, of which a lenient reader takes the last; one line.
    """
    try:
        return yaml.load(content, _SlowLoader if any_escape else _FastLoader)  # noqa: S506 - safe loaders
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


class _Strict(yaml.constructor.SafeConstructor):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value!r} stands twice")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # a date that is none, say; YAML's own errors, and ours, have their place
            if not isinstance(node, yaml.ScalarNode):
                raise
            place = f"line {node.start_mark.line + 1}: {node.value!r:.60}"
            raise ValueError(f"{place} cannot be read ({error}); quote it to have it as text") from None


class _FastLoader(_Strict, yaml.CSafeLoader):
    pass


class _SlowLoader(_Strict, yaml.SafeLoader):
    pass
