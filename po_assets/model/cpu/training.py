"""The fast way through a LoRA model of the Llama family when it is trained on a CPU.

`FastPath` computes the same numbers as the model that PEFT wrapped (tests compare loss and gradients), one row at a
time and without padding. Its parts replace what is slow on a CPU: LoRA products, norms, dropout and the loss here,
attention in `attention`. `fast_training` says whether a model fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from po_assets.model.cpu.attention import BLOCK, rotary_causal_attention

if TYPE_CHECKING:
    from peft import PeftModel

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_FAMILY = ("llama", "qwen2", "mistral")

LOSS_CHUNK = 64  # tokens; 64 float32 rows of 49,152 logits are 12 MB, which a CPU's last cache holds
_GPU_LOGITS = 1 << 26  # of a slice on a GPU: 256 MiB in float32, 441 tokens of 152,064 logits
_ALIGN = 32  # elements; keeps windows of dropout masks on a cache line
_SLACK = 1 << 20  # elements beyond the largest window, which is what the windows' offsets vary over

# oneDNN compiles and keeps a kernel for every new shape of a matrix product. Rows in steps of 32 tokens share kernels,
# which saves 6 % of the time a token and up to a gigabyte, and adds 2.5 % to the tokens.
_LENGTH_STEP = 32

# Activations that a row may keep for its backward pass. As many layers as it takes are computed a second time instead:
# a row of 1,200 tokens would keep 1.2 GiB in bfloat16 and 2.3 GiB in float32, of which attention is a third.
KEPT_BYTES = 3 << 28


def fast_training(model: PeftModel) -> FastPath | str:
    """The fast way through this model, or in words why it does not fit."""
    return unsupported_reason(model) or FastPath(model)


def unsupported_reason(model: PeftModel) -> str | None:
    """The reason why the fast path does not fit this model, or None when it does."""
    from peft.tuners.lora import Linear, LoraLayer

    inner = model.get_base_model()
    config: Any = inner.config
    adapter: Any = model.peft_config["default"]
    if inner.device.type != "cpu":
        return "the model is on a GPU, which has fused kernels of its own"
    if config.model_type not in _FAMILY:
        return f"the model type {config.model_type!r} is none of {', '.join(_FAMILY)}"
    if config.hidden_act != "silu" or getattr(config, "attention_dropout", 0.0):
        return "the model has another activation than SiLU, or attention dropout"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "the model has a sliding attention window"
    if adapter.use_dora:
        return "DoRA is computed by PEFT"
    linears = [getattr(part, name) for part, names in _parts(inner) for name in names]
    if not all(type(linear) is Linear for linear in linears):
        return "not every linear layer carries a plain LoRA"
    if sum(isinstance(module, LoraLayer) for module in inner.modules()) > len(linears):
        return "a layer outside the decoder layers carries a LoRA"
    return None


def _parts(inner: Any) -> list[tuple[Any, tuple[str, ...]]]:
    return [part for layer in inner.model.layers for part in ((layer.self_attn, _ATTENTION), (layer.mlp, _MLP))]


def _rounded_up(inputs: Tensor) -> Tensor:
    """Lengthen a row to a multiple of `_LENGTH_STEP` tokens.

    What stands behind a row changes nothing in it: causal attention does not look there, and no loss is taken there.
    """
    return functional.pad(inputs, (0, -inputs.shape[0] % _LENGTH_STEP))


class _Layer:
    """One decoder layer: its frozen norms and its four groups of linears with a common input."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norms = (layer.input_layernorm, layer.post_attention_layernorm)
        self.qkv = LoraGroup.of([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = LoraGroup.of([attention.o_proj])
        self.gate_up = LoraGroup.of([mlp.gate_proj, mlp.up_proj])
        self.down = LoraGroup.of([mlp.down_proj])
        self.head_size: int = attention.head_dim
        self.scaling: float = attention.scaling
        self.groups = (self.qkv, self.out, self.gate_up, self.down)

    def masks(self, tokens: int, dropout: DropoutPool | None) -> list[Tensor | None]:
        """A dropout mask for the input of each group, drawn once however often the layer is computed."""
        return [dropout.window(tokens, group.inputs) if dropout else None for group in self.groups]

    def kept_bytes(self, tokens: int) -> int:
        """What the backward pass keeps of a row, about."""
        hidden, middle = self.qkv.inputs, self.down.inputs
        heads = self.out.inputs // self.head_size
        width = 4 * hidden + 4 * middle + sum(len(weight) for weight in self.qkv.weights) + self.out.inputs
        return tokens * (width + heads * (tokens + BLOCK) // 2) * int(self.qkv.weights[0].element_size())

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
        tokens = x.shape[0]
        qkv = self.qkv(_norm(self.norms[0], x), masks[0])
        q, k, v = (part.view(tokens, -1, self.head_size) for part in qkv)
        (attended,) = self.out(rotary_causal_attention(q, k, v, cos, sin, self.scaling).view(tokens, -1), masks[1])
        x = x + attended
        gate, up = self.gate_up(_norm(self.norms[1], x), masks[2])
        (down,) = self.down(functional.silu(gate) * up, masks[3])
        return x + down


def _norm(module: Any, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight, module.variance_epsilon)


class FastPath:
    """Loss of one row at a time, through replaced attention, norms, LoRA products and cross-entropy."""

    def __init__(self, model: PeftModel) -> None:
        """Take the parts of a model for which `unsupported_reason` is None; the model keeps its own forward method."""
        inner: Any = model.get_base_model()
        self._model = inner.model
        self._head: Tensor = inner.get_output_embeddings().weight
        self._layers = [_Layer(layer) for layer in inner.model.layers]
        self._groups = [group for layer in self._layers for group in layer.groups]
        self._widest = max(group.inputs for group in self._groups)
        adapter: Any = model.peft_config["default"]
        self._dropout: float = adapter.lora_dropout

    def refresh(self) -> None:
        """Take over the LoRA matrices after an optimizer step."""
        for group in self._groups:
            group.refresh()

    def computed_twice(self, tokens: int) -> int:
        """How many layers of such a row are: the first, since what later ones kept is free when their turn comes."""
        return max(0, len(self._layers) - KEPT_BYTES // self._layers[0].kept_bytes(tokens))

    def answer_loss(self, ids: Tensor, token_weights: Tensor, seed: int | None) -> Tensor:
        """Weighted sum of the tokens' cross-entropy, float32.

        `ids` (tokens,) is prompt and answer; `token_weights` (tokens,) float32, 0 where a token is not trained. `seed`
        draws the dropout masks; None switches dropout off.
        """
        inputs, trained = _rounded_up(ids[:-1]), token_weights[1:] > 0
        x = self._model.embed_tokens(inputs)
        cos, sin = self._model.rotary_emb(x.unsqueeze(0), torch.arange(inputs.shape[0]).unsqueeze(0))
        pool = None
        if seed is not None and self._dropout:
            pool = DropoutPool(self._dropout, inputs.shape[0] * self._widest, x.dtype, seed)
        twice = self.computed_twice(inputs.shape[0])
        for i, layer in enumerate(self._layers):
            arguments = (x, cos[0], sin[0], layer.masks(inputs.shape[0], pool))
            if i < twice:
                x = checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(*arguments)
        predicting = x[: len(trained)][trained]
        normed = _norm(self._model.norm, predicting)
        return linear_cross_entropy(normed, self._head, ids[1:][trained], token_weights[1:][trained])


@dataclass
class LoraGroup:
    """Frozen linears that read the same input, with their LoRA matrices, as one autograd step.

    PEFT computes each LoRA product by five operations in float32 and keeps the input of every one. Here query, key and
    value (gate and up) share the dropout of their input and one stacked product with their A matrices; the low-rank
    result is added by the matrix product that computes the frozen linear (`addmm`).

        y_i = x W_i^T + bias_i + scaling * (dropout(x) A_i^T) B_i^T     (Hu et al. 2021, https://arxiv.org/abs/2106.09685)
    """

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
    def of(cls, layers: Sequence[Any]) -> LoraGroup:
        """Group PEFT LoRA linears that are called with the same input."""
        base = [layer.get_base_layer() for layer in layers]
        a = tuple(layer.lora_A["default"].weight for layer in layers)
        b = tuple(layer.lora_B["default"].weight for layer in layers)
        scalings = {layer.scaling["default"] for layer in layers}
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

    @property
    def inputs(self) -> int:
        """Elements of the common input."""
        return int(self.weights[0].shape[1])

    def __call__(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """Outputs of all linears for `x` of shape (tokens, in), each (tokens, out_i); `mask` is that of the dropout."""
        outputs: tuple[Tensor, ...] = _LoraLinears.apply(x, mask, self, *self.a, *self.b)
        return outputs


class _LoraLinears(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, group: LoraGroup, *_parameters: Tensor) -> tuple[Tensor, ...]:
        dropped = x if mask is None else x * mask
        low = dropped @ group.a_stacked.t()
        outputs = []
        for weight, bias, b, part in zip(
            group.weights, group.biases, group.b_scaled, _low_parts(low, group), strict=True
        ):
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
            gradients, ctx.b_scaled, _low_parts(low, group), _low_parts(grad_low, group), strict=True
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


def _low_parts(low: Tensor, group: LoraGroup) -> tuple[Tensor, ...]:
    return tuple(low.split(group.a[0].shape[0], dim=1))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """X / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019); mean taken in float32.

    Five operations backward instead of autograd's sixteen; the weight is frozen and gets no gradient.
    """
    result: Tensor = _RmsNorm.apply(x, weight, eps)
    return result


class _RmsNorm(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normal = torch.mul(x, inverse, out=torch.empty_like(x))  # multiplied in float32, rounded once
        ctx.save_for_backward(normal, inverse, weight)
        return normal * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        normal, inverse, weight = ctx.saved_tensors
        gradient = gradients[0] * weight
        shared = torch.sum(gradient * normal, dim=-1, keepdim=True, dtype=torch.float32).div_(-normal.shape[-1])
        gradient.addcmul_(normal, shared.to(normal.dtype))
        return torch.mul(gradient, inverse, out=gradient), None, None


class DropoutPool:
    """Masks of 0 and 1/(1-p) in the compute type, the same for the same seed.

    A fresh mask per layer would take 58 million draws for a row of 600 tokens, a tenth of its time. A pool of a few
    million is made per row, and each layer takes a window of it at a random offset: within a layer the elements are
    independent, as dropout asks; between layers the same draws meet other tokens and features.
    """

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


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor) -> Tensor:
    """Sum over tokens of -token_weight * log softmax(hidden @ weight^T)[target], in float32.

    `hidden` is (tokens, size), `weight` the frozen (vocabulary, size), `targets` (tokens,), `token_weights` (tokens,)
    float32. The logits of 300 tokens and their gradient would take 120 MB, most of the time of which is moving them; so
    a few dozen tokens at a time go through the output layer, and since that is frozen, the gradient of `hidden`
    is known right away.
    """
    result: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, token_weights)
    return result


class _LinearCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        chunk = LOSS_CHUNK if hidden.device.type == "cpu" else max(LOSS_CHUNK, _GPU_LOGITS // weight.shape[0])
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            logits = functional.linear(hidden[part], weight).float()
            wanted, weights = targets[part].unsqueeze(1), token_weights[part].unsqueeze(1)
            top = logits.amax(dim=1, keepdim=True)
            chosen = logits.gather(1, wanted) - top
            exponentials = logits.sub_(top).exp_()
            sums = exponentials.sum(dim=1, keepdim=True)
            total += ((sums.log() - chosen) * weights).sum()
            probabilities = exponentials.div_(sums)
            probabilities.scatter_add_(1, wanted, torch.full_like(sums, -1.0))
            torch.mm(probabilities.mul_(weights).to(weight.dtype), weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None, None
