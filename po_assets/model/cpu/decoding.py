"""Making a loaded model decode faster on a CPU, with the same results: packed weights, attention by matrix products.

One token of a batch is a matrix of few rows, for which two of PyTorch's defaults are slow (`benchmarks/generation.py`
measures both): a bfloat16 `nn.Linear` puts its weights into the blocked layout of oneDNN anew in every call, and the
flash attention of the CPU takes twice the time of plain batched products, for a prompt as for one new token.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "po_assets_decode"
QUERY_BLOCK = 64
"""Queries at a time. Smaller blocks look at fewer keys in vain, larger ones make larger products."""
_FAMILIES = ("llama", "qwen2", "mistral")
"""Models whose attention is plain: scaled dot product, grouped heads, no cap and no bias."""


def prepare_for_decoding(model: "PreTrainedModel") -> list[str]:
    """Change a model for decoding on this CPU, in place; says in words what was done.

    The model cannot be trained or saved afterwards. On a GPU, and for models of other families, nothing is done.
    """
    done: list[str] = []
    if model.device.type != "cpu":
        return done
    if model.config.model_type in _FAMILIES and not getattr(model.config, "sliding_window", None):
        _register_attention()
        model.set_attn_implementation(ATTENTION)
        done.append("attention by matrix products")
    if model.dtype == torch.bfloat16 and (packed := pack_linears(model)):
        done.append(f"{packed} weight matrices packed")
    return done


class PackedLinear(nn.Module):  # type: ignore[misc]
    """A linear layer without gradient whose weight stays in oneDNN's blocked layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # Not public, but what `torch.compile` itself puts in the place of a linear layer on a CPU.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)  # noqa: SLF001
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`: (..., in) to (..., out)."""
        operator = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
        return operator(states, self._weight, self._bias, "none", [], "")


def pack_linears(model: nn.Module) -> int:
    """Replace the model's plain linear layers by packed ones where this PyTorch can; returns how many."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return 0
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.device.type == "cpu"
    ]
    with torch.inference_mode():
        for parent, name, linear in places:
            setattr(parent, name, PackedLinear(linear))
    return len(places)


def grouped_attention(
    _module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention, block of queries by block: batched products with a softmax between them.

    Shapes as transformers has them: query (rows, heads, length, size), key and value (rows, key heads, positions,
    size), mask (rows, 1, length, positions), added to the scores; returns (rows, length, heads, size).
    """
    rows, heads, length, size = query.shape
    key_heads, positions = key.shape[1:3]
    groups = (query * (scaling or size**-0.5)).view(rows, key_heads, heads // key_heads, length, size)
    found = torch.empty_like(groups)
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        block = groups[:, :, :, start:end].reshape(rows, key_heads, -1, size)
        # Nothing after its last query concerns a block: all of `query` stands at the end of the positions, or (one new
        # position) before room that the mask hides.
        seen = positions - length + end
        scores = torch.matmul(block, key[:, :, :seen].transpose(-1, -2)).unflatten(2, (-1, end - start))
        if attention_mask is not None:
            scores += attention_mask[:, :, None, start:end, :seen]
        weights = torch.softmax(scores, dim=-1).flatten(2, 3)
        found[:, :, :, start:end] = torch.matmul(weights, value[:, :, :seen]).unflatten(2, (-1, end - start))
    return found.view(rows, heads, length, size).transpose(1, 2), None


def _register_attention() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(ATTENTION, grouped_attention)
    AttentionMaskInterface.register(ATTENTION, eager_mask)
