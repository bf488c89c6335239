"""Making a loaded model decode faster on a CPU, with the same results: packed weights, attention, key/value cache.

One token of a batch is a matrix of few rows, for which two of PyTorch's defaults are slow (`benchmarks/generation.py`
measures both): a bfloat16 `nn.Linear` puts its weights into the blocked layout of oneDNN anew in every call, and the
flash attention of the CPU takes twice the time of plain batched products, for a prompt as for one new token.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "po_assets_decode"
QUERY_BLOCK = 64
"""Queries at a time. Smaller blocks look at fewer keys in vain, larger ones make larger products."""
CACHE_BLOCK = 64
"""Positions allocated at a time: on average half of it is attended over in vain, and once in so many tokens copied."""
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


class BlockLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, shape (rows, heads, allocated positions, head size)."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self.is_initialized = False
        self._length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new positions in place.

        One new position gets all allocated ones to look at, of which the mask hides the empty; several (the prompt) get
        those that are held, as transformers expects before there is a first layer.
        """
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        end = self._length + key_states.shape[-2]
        self.keys = _with_room(self.keys, key_states, self._length, end)
        self.values = _with_room(self.values, value_states, self._length, end)
        self.keys[:, :, self._length : end] = key_states
        self.values[:, :, self._length : end] = value_states
        self._length = end
        shown = self.keys.shape[2] if key_states.shape[-2] == 1 else end
        return self.keys[:, :, :shown], self.values[:, :, :shown]

    def get_seq_length(self) -> int:
        """Positions held."""
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that the next `update` returns, from which transformers builds the mask."""
        end = self._length + query_length
        held = 0 if self.keys is None else self.keys.shape[2]
        return (max(held, _allocated(end)) if query_length == 1 else end), 0

    def keep(self, rows: torch.Tensor, first_position: int) -> None:
        """Keep only these rows, and only positions from `first_position` on."""
        end = self._length
        self._length -= first_position
        self.keys = _cut(self.keys, rows, first_position, end)
        self.values = _cut(self.values, rows, first_position, end)


class BlockCache(Cache):  # type: ignore[misc]
    """The cache of the decode loop, one `BlockLayer` per layer: written in place, rows and padding can be cut off.

    `DynamicCache` of transformers copies the whole cache with every token (a fifth of the time at batch 20), and
    `StaticCache` attends over the longest possible answer from the first token on. This one grows by small
    blocks and hands out whole blocks, which are contiguous: batched products over them need no copy.
    """

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=BlockLayer)

    def keep(self, rows: torch.Tensor, first_position: int = 0) -> None:
        """Keep only these rows (indices), and drop the positions before `first_position`, which are padding."""
        for layer in self.layers:
            layer.keep(rows, first_position)


def _allocated(length: int) -> int:
    return -(-length // CACHE_BLOCK) * CACHE_BLOCK


def _with_room(buffer: torch.Tensor | None, new: torch.Tensor, length: int, end: int) -> torch.Tensor:
    if buffer is not None and end <= buffer.shape[2]:
        return buffer
    rows, heads, _, size = new.shape
    # Zeros, since hidden positions are still multiplied (by a weight of zero): what is not a number would spread.
    larger = new.new_zeros((rows, heads, _allocated(end), size))
    if buffer is not None:
        larger[:, :, :length] = buffer[:, :, :length]
    return larger


def _cut(buffer: torch.Tensor, rows: torch.Tensor, start: int, end: int) -> torch.Tensor:
    kept = buffer[rows, :, start:end]
    return _with_room(None, kept, 0, end - start).index_copy_(2, torch.arange(end - start, device=kept.device), kept)
