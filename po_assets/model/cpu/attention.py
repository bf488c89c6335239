"""Causal attention of one row by plain matrix products over blocks of queries, rotary embedding included.

PyTorch's scaled-dot-product attention has a backward pass on the CPU that does not use the bfloat16 matrix units, and
the eager form copies keys and values for every query head and computes the half of the scores that causality throws
away. Here each block of queries meets only the keys up to its end, the query heads that share a key head are rows of
one product (grouped-query attention, Ainslie et al. 2023), and the rotary embedding writes straight into the layout
those products want.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

# Queries per block: 128 wastes a ninth of the scores of a row of 560 tokens (256: a quarter), and below it the matrix
# products get slower.
BLOCK = 128


def rotary_causal_attention(  # noqa: PLR0917
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, scaling: float
) -> Tensor:
    """Attention output (tokens, heads, size) of one row.

    `q` is (tokens, heads, size); `k` and `v` are (tokens, key heads, size); `cos` and `sin` are (tokens, size), with
    the two halves equal, as in transformers. Scores are `scaling` * q.k after rotation by RoPE (Su et al. 2021).
    """
    result: Tensor = _RotaryCausalAttention.apply(q, k, v, cos, sin, scaling)
    return result


class _RotaryCausalAttention(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, scaling: float
    ) -> Tensor:
        tokens, heads, size = q.shape
        groups = heads // k.shape[1]  # query heads per key head
        # The scaling goes into the queries' rotation, where it costs nothing.
        queries = _rotate(q.view(tokens, -1, groups, size), cos * scaling, sin * scaling).flatten(1, 2)
        keys = _rotate(k.unsqueeze(2), cos, sin).flatten(1, 2)
        values = v.transpose(0, 1).contiguous()
        output = torch.empty_like(queries)
        probabilities = []
        for start, end in _blocks(tokens):
            rows = slice(start * groups, end * groups)
            scores = queries[:, rows] @ keys[:, :end].transpose(1, 2)
            _mask_future(scores, start, end, groups)
            weights = torch.softmax(scores, dim=-1)  # in float32 inside, rounded once
            torch.bmm(weights, values[:, :end], out=output[:, rows])
            probabilities.append(weights)
        ctx.save_for_backward(queries, keys, values, cos, sin, *probabilities)
        ctx.groups, ctx.scaling = groups, scaling
        return _to_tokens(output, groups).reshape(tokens, heads, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, cos, sin, *probabilities = ctx.saved_tensors
        groups, tokens = ctx.groups, keys.shape[1]
        grad_output = _to_heads(gradients[0], groups)
        grad_q, grad_k, grad_v = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        for (start, end), weights in zip(_blocks(tokens), probabilities, strict=True):
            rows = slice(start * groups, end * groups)
            grad_rows = grad_output[:, rows]
            grad_v[:, :end].baddbmm_(weights.transpose(1, 2), grad_rows)
            grad_weights = grad_rows @ values[:, :end].transpose(1, 2)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)  # noqa: SLF001
            torch.bmm(grad_scores, keys[:, :end], out=grad_q[:, rows])
            grad_k[:, :end].baddbmm_(grad_scores.transpose(1, 2), queries[:, rows])
        # A rotation's gradient is the rotation back.
        back_q = _rotate(_to_tokens(grad_q, groups), cos * ctx.scaling, -sin * ctx.scaling, heads_first=False)
        back_k = _rotate(_to_tokens(grad_k, 1), cos, -sin, heads_first=False)
        return back_q.flatten(1, 2), back_k.flatten(1, 2), grad_v.transpose(0, 1).contiguous(), None, None, None


def _blocks(tokens: int) -> list[tuple[int, int]]:
    """Start and end of each block of queries: as even as can be, none longer than `BLOCK`."""
    count = -(-tokens // BLOCK)
    edges = [tokens * i // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def _mask_future(scores: Tensor, start: int, end: int, groups: int) -> None:
    """Only the last block of keys has any that come after a query of this block."""
    size = end - start
    future = torch.full((size, size), float("-inf"), dtype=scores.dtype, device=scores.device).triu_(1)
    square = scores.view(scores.shape[0], size, groups, end)[..., start:]
    square.add_(future.unsqueeze(1))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, *, heads_first: bool = True) -> Tensor:
    """Rotate x (tokens, key heads, groups, size) by the angles of each token; (key heads, tokens, groups, size) out."""
    half = x.shape[-1] // 2
    cos, sin = cos[:, None, None, :half], sin[:, None, None, :half]
    if heads_first:
        out = torch.empty(x.shape[1], x.shape[0], *x.shape[2:], dtype=x.dtype, device=x.device).transpose(0, 1)
    else:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x1, x2, out1, out2 = x[..., :half], x[..., half:], out[..., :half], out[..., half:]
    torch.mul(x1, cos, out=out1)
    out1.addcmul_(x2, sin, value=-1)
    torch.mul(x2, cos, out=out2)
    out2.addcmul_(x1, sin)
    return out.transpose(0, 1) if heads_first else out


def _to_heads(x: Tensor, groups: int) -> Tensor:
    """(tokens, heads, size) to contiguous (key heads, tokens * groups, size)."""
    tokens, heads, size = x.shape
    return x.view(tokens, heads // groups, groups, size).transpose(0, 1).flatten(1, 2)


def _to_tokens(x: Tensor, groups: int) -> Tensor:
    """(key heads, tokens * groups, size) to a view of (tokens, key heads, groups, size)."""
    return x.view(x.shape[0], -1, groups, x.shape[-1]).transpose(0, 1)
