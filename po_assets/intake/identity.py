"""What makes two rows the same: digests of a row's input and of its content, blind to how they were written down.

How alike two different inputs are belongs to `dataset.holdout`.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import orjson

from po_assets.product_owner import read_yaml

_DIGEST_BYTES = 16
_RECORD_ID = re.compile(r"[0-9a-f]{16}")

REPLACES = "replaces"
"""Key in a row's metadata: the record id of the row that it corrects and takes the place of."""


def line_id(line: bytes) -> str:
    """The record id of a landed line: a digest of its bytes, so that it is the same wherever the line lands."""
    return hashlib.blake2b(line.strip(), digest_size=8).hexdigest()


def replaced_record(metadata: Mapping[str, Any]) -> str | None:
    """The record id of the row that a row with this metadata replaces, None where it names none."""
    value = metadata.get(REPLACES)
    return value if isinstance(value, str) and _RECORD_ID.fullmatch(value) else None


def input_digest(concept: str, requirements: str | dict[Any, Any]) -> str:
    """A digest of what the model is asked; case, white space, key order and YAML serialization do not change it."""
    document = read_yaml(requirements).value if isinstance(requirements, str) else requirements
    # A document that does not parse stands for its own text, lest all unreadable documents look alike.
    canonical = [_plain(concept), _canonical(document) if document else _plain(str(requirements))]
    return _digest(orjson.dumps(canonical, option=orjson.OPT_SORT_KEYS))


def content_digest(
    concept: str, requirements_yaml: str, vision_yaml: str, review_yaml: str, *, key: bytes = b""
) -> bytes:
    """8 bytes that depend on a row's four texts (and the key) alone, not on where and in which format they landed."""
    texts = (concept, requirements_yaml, vision_yaml, review_yaml)
    joined = "\x00".join(text.strip() for text in texts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=8, key=key).digest()


def _canonical(value: object) -> object:
    if isinstance(value, dict):
        return {_scalar(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return _scalar(value)


def _scalar(value: object) -> str:
    """A scalar as text, so that `1`, `"1"` and `1 ` are one and the same."""
    if value is None:
        return ""
    try:
        return _plain(str(value))
    except ValueError:  # an integer of more digits than Python prints
        return "huge number"


def _plain(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
