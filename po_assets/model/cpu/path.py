"""The fast way through a LoRA model of the Llama family on a CPU: which parts of it are replaced, and by what.

`FastPath` computes the same numbers as the model that PEFT wrapped (tests compare loss and gradients), one row at a
time and without padding. It is used where it applies and left out where it does not; `why_not` says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from po_assets.model.cpu.attention import rotary_causal_attention
from po_assets.model.cpu.dropout import DropoutPool
from po_assets.model.cpu.lora import LoraGroup
from po_assets.model.cpu.loss import linear_cross_entropy
from po_assets.model.cpu.norm import rms_norm

if TYPE_CHECKING:
    from peft import PeftModel

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_FAMILY = ("llama", "qwen2", "mistral")


def why_not(model: PeftModel) -> str | None:
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


# oneDNN compiles and keeps a kernel for every new shape of a matrix product. Rows in steps of 32 tokens share kernels,
# which saves 6 % of the time a token and up to a gigabyte, and adds 2.5 % to the tokens.
_LENGTH_STEP = 32


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

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, dropout: DropoutPool | None) -> Tensor:
        tokens = x.shape[0]
        qkv = self.qkv(_norm(self.norms[0], x), dropout)
        q, k, v = (part.view(tokens, -1, self.head_size) for part in qkv)
        (attended,) = self.out(rotary_causal_attention(q, k, v, cos, sin, self.scaling).view(tokens, -1), dropout)
        x = x + attended
        gate, up = self.gate_up(_norm(self.norms[1], x), dropout)
        (down,) = self.down(functional.silu(gate) * up, dropout)
        return x + down


def _norm(module: Any, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight, module.variance_epsilon)


class FastPath:
    """Loss of one row at a time, through replaced attention, norms, LoRA products and cross-entropy."""

    def __init__(self, model: PeftModel) -> None:
        """Take the parts of a model for which `why_not` is None; the model keeps its own forward method."""
        inner: Any = model.get_base_model()
        self._model = inner.model
        self._head: Tensor = inner.get_output_embeddings().weight
        self._layers = [_Layer(layer) for layer in inner.model.layers]
        self._groups = [g for layer in self._layers for g in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        self._widest = max(group.a_stacked.shape[1] for group in self._groups)
        adapter: Any = model.peft_config["default"]
        self._dropout: float = adapter.lora_dropout

    def refresh(self) -> None:
        """Take over the LoRA matrices after an optimizer step."""
        for group in self._groups:
            group.refresh()

    def answer_loss(self, ids: Tensor, prompt_length: int, seed: int | None) -> Tensor:
        """Sum of the answer tokens' cross-entropy, float32.

        `ids` (tokens,) is prompt and answer; the first `prompt_length` tokens are not trained. `seed` draws the dropout
        masks; None switches dropout off.
        """
        inputs, targets = _rounded_up(ids[:-1]), ids[prompt_length:]
        x = self._model.embed_tokens(inputs)
        cos, sin = self._model.rotary_emb(x.unsqueeze(0), torch.arange(inputs.shape[0]).unsqueeze(0))
        pool = None
        if seed is not None and self._dropout:
            pool = DropoutPool(self._dropout, inputs.shape[0] * self._widest, x.dtype, seed)
        for layer in self._layers:
            x = layer(x, cos[0], sin[0], pool)
        predicting = x[prompt_length - 1 : prompt_length - 1 + targets.shape[0]]
        return linear_cross_entropy(_norm(self._model.norm, predicting), self._head, targets)
