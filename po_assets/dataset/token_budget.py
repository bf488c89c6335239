"""How many tokens a training row has, by the tokenizer and chat template that training uses, and how many it may have.

Tokenizing itself belongs to `base_model`.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from po_assets.model import BaseModel, ChatFormat, ensure_tokenizer, load_tokenizer
from po_assets.storage import Layout

_MOST_REMEMBERED = 1 << 17
"""Rows; some 20 MB."""


@dataclass(frozen=True)
class TokenBudget:
    """The longest row that fits, and the function that counts the tokens of rows."""

    model: str
    max_length: int
    row_lengths: Callable[[Sequence[tuple[str, str]]], list[int]]
    """From prompts and responses to the tokens of the training rows, with chat template and end of sequence."""


def token_budget(base_model: BaseModel, layout: Layout) -> TokenBudget:
    """The budget of the configured base model.

    Raises:
        UserError: the base model's settings are wrong, or it cannot be had.
    """
    spec = base_model.resolved()
    return TokenBudget(spec.name, spec.max_length, _row_lengths(ensure_tokenizer(spec, layout)))


@lru_cache(maxsize=2)
def _row_lengths(folder: Path) -> "RememberedLengths":
    """The asset and its checks share a process and would each load the same tokenizer, which takes seconds."""
    return RememberedLengths(ChatFormat(load_tokenizer(folder)).row_lengths)


class RememberedLengths:
    """Token counts, remembered by the digests of the texts: a check meets the asset's rows again."""

    def __init__(self, count: Callable[[Sequence[tuple[str, str]]], list[int]]) -> None:
        self._count = count
        self._known: dict[bytes, int] = {}

    def __call__(self, rows: Sequence[tuple[str, str]]) -> list[int]:
        """The tokens of each row (prompt, response)."""
        if len(self._known) > _MOST_REMEMBERED:
            self._known.clear()
        digests = [_digest(*row) for row in rows]
        new = {digest: row for digest, row in zip(digests, rows, strict=True) if digest not in self._known}
        self._known.update(zip(new, self._count(list(new.values())), strict=True))
        return [self._known[digest] for digest in digests]


def _digest(prompt: str, response: str) -> bytes:
    texts = f"{len(prompt)} {prompt}{response}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(texts, digest_size=16).digest()
