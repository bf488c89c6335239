"""The key/value cache of the decode loop: written in place, rows can leave, padding can be cut off.

transformers' own `DynamicCache` copies the whole cache with every token (`torch.cat`), which on a CPU takes a fifth of
the time at batch 20; its `StaticCache` attends over the longest possible answer from the first token on. This one grows
by small blocks, and hands out whole blocks, which are contiguous: batched products over them need no copy.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

BLOCK = 64
"""Positions allocated at a time: on average half of it is attended over in vain, and once in so many tokens copied."""


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
    """One `BlockLayer` per layer of the model."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=BlockLayer)

    def keep(self, rows: torch.Tensor, first_position: int = 0) -> None:
        """Keep only these rows (indices), and drop the positions before `first_position`, which are padding."""
        for layer in self.layers:
            layer.keep(rows, first_position)


def _allocated(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


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
