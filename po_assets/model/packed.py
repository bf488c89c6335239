"""Attention of rows that stand one behind the other in one sequence, each seeing only itself; it imports torch.

Hooked into transformers' attention interface under `PACKED`. Which rows there are comes with the model's call, under
the names that transformers gives them (`cu_seq_lens_q`, `max_length_q`).
"""

import inspect
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

PACKED = "po_packed"
# Decoders whose layers mix tokens in attention only, through transformers' interface, and whose logits are the plain
# product of the last hidden state with the output layer.
_FAMILY = ("llama", "qwen2", "qwen3", "mistral")
# Before PyTorch 2.13 the kernel shares heads unasked, and has no word for it.
_SHARED_HEADS = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def packing_problem(model: PreTrainedModel) -> str | None:
    """Why this model's rows cannot be packed, or None."""
    config: Any = model.config
    head = model.get_output_embeddings()
    if config.model_type not in _FAMILY:
        return f"the model type {config.model_type!r} is none of {', '.join(_FAMILY)}"
    if getattr(config, "attention_dropout", 0.0):
        return "it has attention dropout"
    if type(head) is not torch.nn.Linear or head.bias is not None or head.weight.requires_grad:
        return "its output layer is not plain and frozen"
    return None


@contextmanager
def packed_rows(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's attention is that of packed rows, backward passes included."""
    before = model.config._attn_implementation  # noqa: SLF001 - it has a public setter only
    model.set_attn_implementation(PACKED)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def has_kernel(query: Tensor) -> bool:
    """Whether one kernel computes all rows: flash attention, in 16 bits and on a GPU from Ampere on."""
    fits = query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] in range(8, 257, 8)
    return query.is_cuda and fits and torch.cuda.get_device_capability(query.device) >= (8, 0)


def packed_attention(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_options: Any,
) -> tuple[Tensor, None]:
    """Causal attention (1, tokens, heads, size) of rows that begin at `cu_seq_lens_q` (int32, rows + 1).

    `query` is (1, heads, tokens, size); `key` and `value` may have fewer heads, each shared by a group.
    """
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))  # (tokens, heads, size)
    if has_kernel(query):
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        out = varlen_attn(
            q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q,
            scale=scaling, window_size=window, **_SHARED_HEADS,
        )  # fmt: skip
        return out[None], None
    edges = itertools.pairwise(cu_seq_lens_q.tolist())
    rows = [
        _one_row(query[..., a:b, :], key[..., a:b, :], value[..., a:b, :], scaling, sliding_window) for a, b in edges
    ]
    return torch.cat(rows, dim=2).transpose(1, 2), None


def _one_row(q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None) -> Tensor:
    length, mask = q.shape[2], None
    if window is not None and window < length:
        mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril().triu(1 - window)
    if q.is_cuda:  # in float32 no kernel there knows shared heads: all scores of a row would lie in memory
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=not q.is_cuda
    )


AttentionInterface.register(PACKED, packed_attention)
