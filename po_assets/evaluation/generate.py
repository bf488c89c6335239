"""The decode loop: many prompts answered side by side by one model, deterministic, each within its grammar.

It knows tokens only: no cases, no files, no scores. Any causal language model of transformers fits (and anything that
is called like one, which is how the tests fake a model). What a grammar says is in `product_owner.grammar`; here tokens
meet it, by llguidance.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

from po_assets.errors import UserError
from po_assets.evaluation.settings import Decoding
from po_assets.model.cpu import BlockCache

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from transformers import PreTrainedTokenizerBase

FinishReason = Literal["stop", "length"]
Bits: TypeAlias = NDArray[np.uint8]

_CANDIDATES = 64
"""Likeliest tokens that are tried one by one (0.01 ms each) before the grammar's whole mask is made (0.4 ms)."""


class GrammarConstraint:
    """Follows one answer; where only one text can follow, only its own tokenization is permitted."""

    def __init__(self, tokenizer: "LLTokenizer", grammar: str) -> None:
        """Start before the first token.

        Raises:
            UserError: the grammar is wrong.
        """
        from llguidance import LLMatcher

        self._vocabulary = tokenizer.vocab_size
        self._matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)
        self._forced: list[int] = []
        self._raise_on_error()
        self._look_ahead()

    def permits(self, token: int) -> bool:
        """Whether the token may come next (far cheaper than all that may)."""
        if self._forced:
            return token == self._forced[0]
        permitted = bool(self._matcher.validate_tokens([token]) == 1)
        self._raise_on_error()
        return permitted

    def permitted_bits(self) -> Bits:
        """Every token that may come next, a bit each, lowest first: shape (vocabulary / 8, rounded up)."""
        length = (self._vocabulary + 7) // 8
        if self._forced:
            only: Bits = np.zeros(length, dtype=np.uint8)
            only[self._forced[0] // 8] = 1 << self._forced[0] % 8
            return only
        mask = self._matcher.compute_bitmask()
        self._raise_on_error()
        bits: Bits = np.frombuffer(mask, dtype=np.uint8)[:length]  # it may have a word more than the vocabulary needs
        return bits

    def permitted(self) -> torch.Tensor:
        """Bool tensor, shape (vocabulary,): every token that may come next."""
        return _unpacked(self.permitted_bits()[None])[0, : self._vocabulary]

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
            raise UserError(f"The answer grammar does not work: {self._matcher.get_error()[:500]}.")


def grammar_tokenizer(tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> "LLTokenizer":
    """The fast tokenizer as llguidance sees it; `vocabulary` is the model's number of logits (about half a second)."""
    import llguidance.hf

    return cast("LLTokenizer", llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary))


@dataclass
class Request:
    """One prompt to answer; `seed` decides the draws where tokens are sampled."""

    key: str
    prompt_ids: list[int]
    constraint: GrammarConstraint | None = None
    seed: int = 0
    max_new_tokens: int | None = None
    """Of this answer; None: as the decoding has it."""


@dataclass(frozen=True)
class Completion:
    """One finished answer. `token_ids` are without end-of-sequence token; `seconds` is its share of the computing."""

    key: str
    token_ids: list[int]
    finish_reason: FinishReason
    seconds: float


@dataclass
class _Row:
    request: Request
    tokens: list[int] = field(default_factory=list)
    seen: dict[tuple[int, ...], set[int]] = field(default_factory=dict)
    generator: torch.Generator | None = None
    finish_reason: FinishReason | None = None
    seconds: float = 0.0


def batches_by_length(requests: Sequence[Request], batch_size: int) -> list[list[Request]]:
    """Batches of prompts of similar length, longest first, so that padding and the first memory peak are small.

    The order depends on nothing but the requests: an interrupted evaluation that goes on with the rest forms the same
    remaining batches.
    """
    ordered = sorted(requests, key=lambda request: (-len(request.prompt_ids), request.key))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


@torch.inference_mode()  # type: ignore[untyped-decorator]
def complete_batch(
    model: Any,
    requests: Sequence[Request],
    decoding: Decoding,
    eos_ids: Sequence[int],
    on_step: Callable[[int], None] = lambda _rows: None,
) -> Iterator[Completion]:
    """Answer the requests, yielding each as soon as it is finished.

    Greedy decoding takes the most likely permitted token, the lowest id on a tie. Results depend on which prompts share
    a batch only through rounding of the model's number format. `on_step` is told after each forward pass how many rows
    got a token.

    Raises:
        ValueError: a prompt has no token.
    """
    if empty := [request.key for request in requests if not request.prompt_ids]:
        raise ValueError(f"no prompt tokens for {', '.join(empty)}: nothing can be generated from an empty prompt")
    rows = [
        _Row(request, generator=None if decoding.greedy else torch.Generator().manual_seed(request.seed))
        for request in requests
    ]
    device = model.device
    input_ids, attention = left_padded([row.request.prompt_ids for row in rows])
    input_ids, attention = input_ids.to(device), attention.to(device)
    position_ids = (attention.cumsum(1) - 1).clamp(min=0)
    cache = BlockCache()
    while rows:
        started = time.perf_counter()
        output = model(
            input_ids=input_ids,
            attention_mask=attention,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens = _choose(output.logits[:, -1], rows, decoding)
        for row, token in zip(rows, tokens, strict=True):
            _take(row, token, decoding, eos_ids)
        share = (time.perf_counter() - started) / len(rows)
        for row in rows:
            row.seconds += share
            if row.finish_reason:
                yield Completion(row.request.key, row.tokens, row.finish_reason, row.seconds)
        on_step(len(rows))
        alive = [index for index, row in enumerate(rows) if row.finish_reason is None]
        if not alive:
            return
        last_positions = position_ids[:, -1:]
        if len(alive) < len(rows):
            kept = torch.tensor(alive, device=device)
            attention, last_positions = attention[kept], last_positions[kept]
            padding = int((attention.sum(0) == 0).long().cumprod(0).sum())  # columns that are padding in every row left
            cache.keep(kept, padding)
            attention = attention[:, padding:]
            rows = [rows[index] for index in alive]
            tokens = [tokens[index] for index in alive]
        input_ids = torch.tensor(tokens, device=device)[:, None]
        attention = torch.cat([attention, attention.new_ones(len(rows), 1)], dim=1)
        position_ids = last_positions + 1


def left_padded(prompts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (rows, longest prompt): real tokens end at the right edge.

    The padding is token 0, whatever that is: the mask hides it.
    """
    longest = max(map(len, prompts))
    input_ids = torch.zeros((len(prompts), longest), dtype=torch.long)
    attention = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        attention[row, longest - len(prompt) :] = 1
    return input_ids, attention


def _choose(logits: torch.Tensor, rows: Sequence[_Row], decoding: Decoding) -> list[int]:
    """The next token of each row; `logits` is (rows, vocabulary)."""
    if not decoding.greedy:
        masked = _masked(logits, rows, decoding)
        return [_sample(row_logits, row, decoding) for row_logits, row in zip(masked, rows, strict=True)]
    # The first on a tie; in bfloat16 four times as fast as `argmax`.
    favourites: list[int] = logits.max(-1).indices.tolist()
    best: dict[int, int | None] = dict(enumerate(favourites))
    # Whether one token is permitted is a far cheaper question than what all is: mostly the favourite is, else one of
    # the next; only after them the whole mask is made.
    if wrong := [index for index, token in enumerate(favourites) if not _permits(rows[index], token, decoding)]:
        values, tokens = logits[wrong].topk(min(_CANDIDATES, logits.shape[1]))
        for index, some, of in zip(wrong, tokens.tolist(), values.tolist(), strict=True):
            best[index] = _best_candidate(rows[index], some, of, decoding)
    if left := [index for index, token in best.items() if token is None]:
        masked = _masked(logits[left], [rows[index] for index in left], decoding)
        best |= dict(zip(left, masked.argmax(-1).tolist(), strict=True))
    return [token for token in best.values() if token is not None]


def _best_candidate(row: _Row, tokens: list[int], values: list[float], decoding: Decoding) -> int | None:
    """The likeliest permitted of these, the lowest id on a tie; None where a token beyond them might come first."""
    for position, (value, token) in enumerate(zip(values, tokens, strict=True)):
        if value == values[-1]:
            return None  # a token that is not among the candidates may have this value too
        if _permits(row, token, decoding):
            equal = [other for other, of in zip(tokens[position:], values[position:], strict=True) if of == value]
            return min(other for other in equal if _permits(row, other, decoding))
    return None


def _permits(row: _Row, token: int, decoding: Decoding) -> bool:
    return token not in _repeating(row, decoding) and (
        row.request.constraint is None or row.request.constraint.permits(token)
    )


def _masked(logits: torch.Tensor, rows: Sequence[_Row], decoding: Decoding) -> torch.Tensor:
    """The rows' logits in float32, with -inf for what may not come next; the masks go to the device in one piece."""
    logits = logits.float()
    bits = [None if row.request.constraint is None else row.request.constraint.permitted_bits() for row in rows]
    given = next((one for one in bits if one is not None), None)
    if given is not None:
        packed = np.stack([np.full_like(given, 255) if one is None else one for one in bits])
        permitted = _unpacked(packed, logits.device)
        width = min(logits.shape[1], permitted.shape[1])
        logits = logits[:, :width].masked_fill(~permitted[:, :width], float("-inf"))
    for index, row in enumerate(rows):
        if repeating := _repeating(row, decoding):
            fresh = logits[index].clone()
            fresh[list(repeating)] = float("-inf")
            # Where the grammar leaves only the repetition (a key, a fence), it is no repetition of the model's.
            if bool(torch.isfinite(fresh).any()):
                logits[index] = fresh
    return logits


def _unpacked(packed: Bits, device: torch.device | str = "cpu") -> torch.Tensor:
    """Bool tensor, shape (rows, 8 * bytes), of the bits of `packed`, shape (rows, bytes), lowest bit first."""
    if torch.device(device).type == "cpu":  # 0.06 ms for 50,000 tokens, a sixth of what torch takes
        return torch.from_numpy(np.unpackbits(packed, axis=1, bitorder="little").view(np.bool_))
    places = torch.arange(8, dtype=torch.uint8, device=device)
    return ((torch.from_numpy(packed).to(device)[..., None] >> places) & 1).bool().flatten(1)


def _sample(logits: torch.Tensor, row: _Row, decoding: Decoding) -> int:
    probabilities = torch.softmax(logits / decoding.temperature, dim=-1)
    sorted_probabilities, order = probabilities.sort(descending=True)
    # A token stays when the more likely ones together have not reached top_p (nucleus sampling, Holtzman et al. 2020).
    outside = sorted_probabilities.cumsum(0) - sorted_probabilities >= decoding.top_p
    nucleus = sorted_probabilities.masked_fill(outside, 0.0).cpu()
    return int(order[torch.multinomial(nucleus, 1, generator=row.generator)])


def _repeating(row: _Row, decoding: Decoding) -> set[int]:
    """The tokens that would complete a sequence of `no_repeat_ngram` tokens which the answer holds already."""
    size = decoding.no_repeat_ngram
    if not size or len(row.tokens) < size:
        return set()
    return row.seen.get(tuple(row.tokens[1 - size :]), set())


def _take(row: _Row, token: int, decoding: Decoding, eos_ids: Sequence[int]) -> None:
    """Add the token to the row's answer and see whether that ends it."""
    if token in eos_ids:
        row.finish_reason = "stop"
        return
    row.tokens.append(token)
    if size := decoding.no_repeat_ngram:
        row.seen.setdefault(tuple(row.tokens[-size:-1]), set()).add(token)
    constraint = row.request.constraint
    if constraint is not None:
        constraint.advance(token)
        if constraint.complete:
            row.finish_reason = "stop"
            return
    limit = row.request.max_new_tokens or decoding.max_new_tokens
    if limit and len(row.tokens) >= limit:
        row.finish_reason = "length"
