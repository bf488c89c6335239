"""The decode loop: many prompts answered side by side by one model, deterministic, finished rows leave the batch.

It knows tokens only: no cases, no files, no scores. Any causal language model of transformers fits (and anything that
is called like one, which is how the tests fake a model).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from po_assets.evaluation.settings import Decoding
from po_assets.model.cpu.kv_cache import BlockCache

FinishReason = Literal["stop", "length"]


class Constraint(Protocol):
    """What one answer may go on with; follows the answer token by token."""

    def permits(self, token: int) -> bool:
        """Whether the token may come next (cheap)."""

    def permitted(self) -> torch.Tensor:
        """Bool tensor, shape (vocabulary,): every token that may come next."""

    def advance(self, token: int) -> None:
        """Take the token."""

    @property
    def complete(self) -> bool:
        """Whether the answer is finished and nothing more may come."""


@dataclass
class Request:
    """One prompt to answer; `seed` decides the draws where tokens are sampled."""

    key: str
    prompt_ids: list[int]
    constraint: Constraint | None = None
    seed: int = 0


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
    rows = [_new_row(request, decoding) for request in requests]
    device = model.device
    input_ids, attention = _left_padded([row.request.prompt_ids for row in rows])
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


def _new_row(request: Request, decoding: Decoding) -> _Row:
    generator = None if decoding.greedy else torch.Generator().manual_seed(request.seed)
    return _Row(request, generator=generator)


def _left_padded(prompts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
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
        return [_sample(row_logits, row, decoding) for row_logits, row in zip(logits, rows, strict=True)]
    best = logits.max(-1).indices.tolist()  # also the first on a tie, and in bfloat16 four times as fast as `argmax`
    # Most of the time the favourite is permitted, which is a far cheaper question than what all is permitted.
    return [
        token if _permits(row, token, decoding) else int(_masked(logits[index], row, decoding).argmax())
        for index, (row, token) in enumerate(zip(rows, best, strict=True))
    ]


def _permits(row: _Row, token: int, decoding: Decoding) -> bool:
    return token not in _repeating(row, decoding) and (
        row.request.constraint is None or row.request.constraint.permits(token)
    )


def _masked(logits: torch.Tensor, row: _Row, decoding: Decoding) -> torch.Tensor:
    """The row's logits, shape (vocabulary,), with -inf for what may not come next."""
    logits = logits.float()
    if row.request.constraint is not None:
        permitted = row.request.constraint.permitted().to(logits.device)
        logits = logits[: len(permitted)].masked_fill(~permitted[: len(logits)], float("-inf"))
    if repeating := _repeating(row, decoding):
        fresh = logits.clone()
        fresh[list(repeating)] = float("-inf")
        # Where the grammar leaves only the repetition (a key, a fence), it is no repetition of the model's.
        if bool(torch.isfinite(fresh).any()):
            logits = fresh
    return logits


def _sample(logits: torch.Tensor, row: _Row, decoding: Decoding) -> int:
    probabilities = torch.softmax(_masked(logits, row, decoding) / decoding.temperature, dim=-1)
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
    if len(row.tokens) >= decoding.max_new_tokens:
        row.finish_reason = "length"
