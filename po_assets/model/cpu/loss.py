"""Cross-entropy of the answer tokens without ever holding all their logits.

With a vocabulary of 49,152 the float32 logits of 300 answer tokens and their gradient take 120 MB, most of the time of
which is moving them. Here a few dozen tokens at a time go through the frozen output layer, and since that layer gets no
gradient, the gradient of the hidden states is known right away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 64  # tokens; 64 float32 rows of logits are 12 MB, which a CPU's last cache holds


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum over tokens of -log softmax(hidden @ weight^T)[target], in float32.

    `hidden` is (tokens, size), `weight` the frozen (vocabulary, size), `targets` (tokens,).
    """
    result: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets)
    return result


class _LinearCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        for start in range(0, hidden.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            logits = functional.linear(hidden[part], weight).float()
            wanted = targets[part].unsqueeze(1)
            top = logits.amax(dim=1, keepdim=True)
            chosen = logits.gather(1, wanted) - top
            exponentials = logits.sub_(top).exp_()
            sums = exponentials.sum(dim=1, keepdim=True)
            total += (sums.log() - chosen).sum()
            probabilities = exponentials.div_(sums)
            probabilities.scatter_add_(1, wanted, torch.full_like(sums, -1.0))
            torch.mm(probabilities.to(weight.dtype), weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None
