"""LoRA dropout from a pool of random masks, because drawing a fresh one per layer costs a tenth of a CPU step.

One row of 600 tokens needs 58 million independent draws (every input element of every adapted linear). A pool of a few
million draws is made per row instead, and each layer takes a window of it at a random offset: within a layer the
elements are independent, as dropout asks; between layers the same draws meet other tokens and other features.
"""

from __future__ import annotations

import torch

_ALIGN = 32  # elements; keeps windows on a cache line
_SLACK = 1 << 20  # elements beyond the largest window, which is what the offsets vary over


class DropoutPool:
    """Masks of 0 and 1/(1-p) in the compute type, the same for the same seed."""

    def __init__(self, p: float, largest: int, dtype: torch.dtype, seed: int) -> None:
        """`p` is the share set to zero, `largest` the number of elements of the largest mask that will be taken."""
        self._generator = torch.Generator().manual_seed(seed)
        size = -(-(largest + _SLACK) // _ALIGN) * _ALIGN
        # 16 bits a draw: p is met to 1/65,536, and one 64-bit random number serves four elements.
        bits = torch.empty(size // 4, dtype=torch.int64).random_(-(2**63), None, generator=self._generator)
        threshold = round(p * 65_536) - 32_768
        self._pool = (bits.view(torch.int16) >= threshold).to(dtype).mul_(1.0 / (1.0 - p))

    def window(self, rows: int, columns: int) -> torch.Tensor:
        """A mask of shape (rows, columns): a view of the pool at a random offset."""
        size = rows * columns
        places = (self._pool.numel() - size) // _ALIGN + 1
        offset = int(torch.randint(places, (), generator=self._generator)) * _ALIGN
        return self._pool[offset : offset + size].view(rows, columns)
