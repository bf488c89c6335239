"""A grammar as a constraint on decoding, with llguidance.

What the grammar says is in `grammar`; here tokens meet it.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from transformers import PreTrainedTokenizerBase


class GrammarConstraint:
    """Follows one answer; where only one text can follow, only its own tokenization is permitted."""

    def __init__(self, tokenizer: "LLTokenizer", grammar: str) -> None:
        """Start before the first token.

        Raises:
            ValueError: the grammar is wrong.
        """
        from llguidance import LLMatcher

        self._vocabulary = tokenizer.vocab_size
        self._matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)
        self._forced: list[int] = []
        self._raise_on_error()
        self._look_ahead()

    def permits(self, token: int) -> bool:
        """Whether the token may come next."""
        if self._forced:
            return token == self._forced[0]
        permitted = bool(self._matcher.validate_tokens([token]) == 1)
        self._raise_on_error()
        return permitted

    def permitted(self) -> torch.Tensor:
        """Bool tensor, shape (vocabulary,): every token that may come next."""
        if self._forced:
            only = torch.zeros(self._vocabulary, dtype=torch.bool)
            only[self._forced[0]] = True
            return only
        mask = self._matcher.compute_bitmask()
        self._raise_on_error()
        bits = torch.frombuffer(bytearray(mask), dtype=torch.uint8)
        return _bit_table()[bits.long()].flatten()[: self._vocabulary]

    def advance(self, token: int) -> None:
        """Take the token.

        Raises:
            ValueError: it was not permitted.
        """
        if not self._matcher.consume_token(token):
            raise ValueError(f"token {token} is not permitted here: {self._matcher.get_error()}")
        if self._forced and self._forced[0] == token:
            del self._forced[0]
        else:
            self._forced = []
        if not self._forced:
            self._look_ahead()

    @property
    def complete(self) -> bool:
        """Whether the answer is finished and nothing more may come."""
        return bool(self._matcher.is_stopped())

    def _look_ahead(self) -> None:
        # Without this a model may spell a key in odd pieces, which it has never seen and continues badly.
        self._forced = [] if self._matcher.is_stopped() else list(self._matcher.compute_ff_tokens())

    def _raise_on_error(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"the answer grammar does not work: {self._matcher.get_error()[:500]}")


def grammar_tokenizer(tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> "LLTokenizer":
    """The fast tokenizer as llguidance sees it; `vocabulary` is the model's number of logits (about half a second)."""
    import llguidance.hf

    return cast("LLTokenizer", llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary))


@lru_cache(maxsize=1)
def _bit_table() -> torch.Tensor:
    """Shape (256, 8): the bits of a byte, lowest first."""
    return (torch.arange(256)[:, None] >> torch.arange(8)[None, :]) & 1 == 1
