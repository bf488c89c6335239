"""Frozen linears with LoRA that share one input, as one autograd step.

PEFT computes each LoRA product by five separate operations in float32 and keeps the input of every one of them. Here
the linears that read the same input (query, key and value; gate and up) share its dropout and one stacked product with
their A matrices, the low-rank result is added to the frozen linear's output by the same matrix product that computes it
(`addmm`), and only the input, the low-rank activations and a view of the dropout mask are kept for the backward pass.

    y_i = x W_i^T + bias_i + scaling * (dropout(x) A_i^T) B_i^T         (Hu et al. 2021, https://arxiv.org/abs/2106.09685)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from po_assets.model.cpu.dropout import DropoutPool


@dataclass
class LoraGroup:
    """Linears with the same input, and copies of their LoRA matrices in the compute type."""

    weights: tuple[Tensor, ...]
    """Frozen (out_i, in)."""
    biases: tuple[Tensor | None, ...]
    a: tuple[nn.Parameter, ...]
    """float32 (rank, in)."""
    b: tuple[nn.Parameter, ...]
    """float32 (out_i, rank)."""
    scaling: float
    a_stacked: Tensor
    """All of `a` in the compute type, (n * rank, in)."""
    b_scaled: tuple[Tensor, ...]
    """scaling * `b` in the compute type."""

    @classmethod
    def of(cls, layers: Sequence[Any], adapter: str = "default") -> LoraGroup:
        """Group PEFT LoRA linears that are called with the same input."""
        base = [layer.get_base_layer() for layer in layers]
        a = tuple(layer.lora_A[adapter].weight for layer in layers)
        b = tuple(layer.lora_B[adapter].weight for layer in layers)
        scalings = {layer.scaling[adapter] for layer in layers}
        if len(scalings) != 1:
            raise ValueError(f"linears with one input have different LoRA scalings: {sorted(scalings)}")
        weights = tuple(linear.weight for linear in base)
        group = cls(weights, tuple(linear.bias for linear in base), a, b, scalings.pop(), torch.empty(0), ())
        group.refresh()
        return group

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def refresh(self) -> None:
        """Copy the float32 matrices anew; to be called after every optimizer step."""
        dtype = self.weights[0].dtype
        self.a_stacked = torch.cat([a.to(dtype) for a in self.a])
        self.b_scaled = tuple((b * self.scaling).to(dtype) for b in self.b)

    def __call__(self, x: Tensor, dropout: DropoutPool | None) -> tuple[Tensor, ...]:
        """Outputs of all linears for `x` of shape (tokens, in), each (tokens, out_i)."""
        mask = dropout.window(*x.shape) if dropout else None
        outputs: tuple[Tensor, ...] = _LoraLinears.apply(x, mask, self, *self.a, *self.b)
        return outputs


class _LoraLinears(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, group: LoraGroup, *_parameters: Tensor) -> tuple[Tensor, ...]:
        dropped = x if mask is None else x * mask
        low = dropped @ group.a_stacked.t()
        outputs = []
        for weight, bias, b, part in zip(group.weights, group.biases, group.b_scaled, _parts(low, group), strict=True):
            outputs.append(functional.linear(x, weight, bias).addmm_(part, b.t()))
        # The copies of A and B are replaced, never overwritten, by `refresh`, so that holding them here is safe.
        ctx.group, ctx.a_stacked, ctx.b_scaled = group, group.a_stacked, group.b_scaled
        ctx.save_for_backward(x, mask, low)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, mask, low = ctx.saved_tensors
        group: LoraGroup = ctx.group
        grad_low = torch.empty_like(low)
        grad_b = []
        for gradient, b, part, out in zip(
            gradients, ctx.b_scaled, _parts(low, group), _parts(grad_low, group), strict=True
        ):
            torch.mm(gradient, b, out=out)
            grad_b.append((gradient.t() @ part).float().mul_(group.scaling))
        dropped = x if mask is None else x * mask
        grad_a = (grad_low.t() @ dropped).float().split(group.a[0].shape[0])
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_low @ ctx.a_stacked
            if mask is not None:
                grad_x.mul_(mask)
            for gradient, weight in zip(gradients, group.weights, strict=True):
                grad_x.addmm_(gradient, weight)
        return (grad_x, None, None, *grad_a, *grad_b)


def _parts(low: Tensor, group: LoraGroup) -> tuple[Tensor, ...]:
    return tuple(low.split(group.a[0].shape[0], dim=1))
