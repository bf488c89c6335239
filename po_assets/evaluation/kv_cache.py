"""The key/value cache of the decode loop: written in place, rows can leave, padding can be cut off.

transformers' own `DynamicCache` copies the whole cache with every token (`torch.cat`), which on a CPU takes a fifth of
the time at batch 20; its `StaticCache` attends over the whole allocated length. This one does neither.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

_GROWTH = 256
"""Positions allocated at a time; growing copies once in so many tokens."""


class InPlaceLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, shape (rows, heads, positions, head size), in a buffer with room at the end."""

    def __init__(self) -> None:
        super().__init__()
        self._key_buffer: torch.Tensor | None = None
        self._value_buffer: torch.Tensor | None = None
        self._length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new positions in place and return views of all positions so far."""
        if self._key_buffer is None or self._value_buffer is None:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
        end = self._length + key_states.shape[-2]
        self._key_buffer = _with_room(self._key_buffer, key_states, self._length, end)
        self._value_buffer = _with_room(self._value_buffer, value_states, self._length, end)
        self._key_buffer[:, :, self._length : end] = key_states
        self._value_buffer[:, :, self._length : end] = value_states
        self._length = end
        self.keys, self.values = self._key_buffer[:, :, :end], self._value_buffer[:, :, :end]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Positions held."""
        return self._length

    def keep(self, rows: torch.Tensor, first_position: int) -> None:
        """Keep only these rows, and only positions from `first_position` on."""
        if self._key_buffer is None or self._value_buffer is None:
            return
        self._key_buffer = self._key_buffer[rows, :, first_position:]
        self._value_buffer = self._value_buffer[rows, :, first_position:]
        self._length -= first_position
        self.keys, self.values = self._key_buffer[:, :, : self._length], self._value_buffer[:, :, : self._length]


class InPlaceCache(Cache):  # type: ignore[misc]
    """One `InPlaceLayer` per layer of the model."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=InPlaceLayer)

    def keep(self, rows: torch.Tensor, first_position: int = 0) -> None:
        """Keep only these rows (indices), and drop the positions before `first_position`, which are padding."""
        for layer in self.layers:
            layer.keep(rows, first_position)


def _with_room(buffer: torch.Tensor | None, new: torch.Tensor, length: int, end: int) -> torch.Tensor:
    if buffer is not None and end <= buffer.shape[2]:
        return buffer
    rows, heads, _, size = new.shape
    larger = new.new_empty((rows, heads, end + _GROWTH, size))
    if buffer is not None:
        larger[:, :, :length] = buffer[:, :, :length]
    return larger
