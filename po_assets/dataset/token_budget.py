"""How many tokens a training row has, by the tokenizer and chat template that training uses, and how many it may have.

Tokenizing itself belongs to `base_model`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from po_assets.base_model import BaseModel, ChatFormat, ensure_tokenizer, load_tokenizer
from po_assets.storage import Layout


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
        BaseModelError: the base model's settings are wrong, or it cannot be had.
    """
    spec = base_model.resolved()
    return TokenBudget(spec.name, spec.max_length, _chat_format(ensure_tokenizer(spec, layout)).row_lengths)


@lru_cache(maxsize=2)
def _chat_format(folder: Path) -> ChatFormat:
    """The asset and its checks share a process and would each load the same tokenizer, which takes seconds."""
    return ChatFormat(load_tokenizer(folder))
