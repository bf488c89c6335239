"""What fits into memory: how many tokens a pass takes on a GPU, and the sentence when memory runs out after all."""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from po_assets.dag.compute import gpu_share
from po_assets.errors import UserError

if TYPE_CHECKING:
    import torch

PACK_TOKENS = 8_192
"""Most tokens of a pass on a GPU: its products are then far larger than what starting them costs."""
_USABLE = 0.8  # of what is free: the rest is for gaps between blocks, 4-bit weights unpacked, and slices of logits
_SAID = ("can't allocate memory", "cannot allocate memory", "out of memory", "status_alloc_failed")
_OPTIMIZER_BYTES = 12  # for each trained number: gradient and two moments, float32


@dataclass(frozen=True)
class Passes:
    """How a step's rows go through the model on a device."""

    tokens: int
    """Rows are packed up to so many; a longer row goes alone."""
    recompute: bool
    """Whether activations are computed twice (gradient checkpointing)."""
    described: str


def plan_passes(
    model: Any, longest: int, *, pack_tokens: int | None, checkpointing: bool | None, free: int | None
) -> Passes:
    """Decide what the recipe leaves open, from the shape of a Llama-like `model` and the `free` bytes of its GPU.

    `longest` is the tokens of the longest row; `free` is None on a CPU, where rows go one by one. Recomputing costs a
    third more work, a smaller pass hardly anything: so passes get smaller first, and activations are computed twice
    only where the longest row's would not fit.
    """
    if free is None:
        size = f"up to {pack_tokens:,} tokens a pass" if pack_tokens else "one row a pass"
        return Passes(pack_tokens or 1, bool(checkpointing), size)
    layer, kept = (size * model.dtype.itemsize // 2 for size in activation_bytes(model.config))
    whole = layer * model.config.num_hidden_layers
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    room = max(0, int((free - trained * _OPTIMIZER_BYTES) * _USABLE))
    recompute = longest * whole > room if checkpointing is None else checkpointing
    each = kept * model.config.num_hidden_layers + layer if recompute else whole
    tokens = pack_tokens or max(longest, min(PACK_TOKENS, room // each))
    how = "computed twice" if recompute else "kept"
    return Passes(
        tokens,
        recompute,
        f"up to {tokens:,} tokens a pass; activations are {how}: the longest row of {longest:,} tokens has "
        f"{longest * whole / 2**30:.1f} GiB of them, for which {room / 2**30:.1f} GiB are free",
    )


def activation_bytes(config: Any) -> tuple[int, int]:
    """Bytes that a layer keeps for a token's backward pass, about: all of it, and only its input (recomputed).

    16 bits, flash attention, LoRA with dropout on all seven linears: each keeps its dropped input and the mask (3 bytes
    a number), the norms keep theirs in float32, attention keeps q, k, v and its output, SiLU and product three times
    the middle.
    """
    hidden, middle, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    q, kv = heads * size, (getattr(config, "num_key_value_heads", None) or heads) * size
    return 23 * hidden + 7 * q + 4 * kv + 9 * middle, 2 * hidden


def free_bytes(model: Any, device: torch.device) -> int | None:
    """What the weights leave of this step's GPU memory; None on a CPU.

    Not what is free now: a training that goes on must come to the same passes, and so to the same dropout, as one that
    has no optimizer state yet or shares the GPU with another process.
    """
    import torch

    if device.type != "cuda":
        return None
    weights: int = sum(tensor.nbytes for tensor in itertools.chain(model.parameters(), model.buffers()))
    return int(torch.cuda.get_device_properties(device).total_memory * gpu_share()) - weights


@contextlib.contextmanager
def memory_named(where: Callable[[], str], way_out: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn whatever says that memory ran out in the block into one `UserError`; `where` says in what.

    `way_out` is what to do; left out, it is that of the training.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"Memory ran out {where()}. {(way_out or _less_for_training)()}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """PyTorch has no type of its own for it on the CPU, and the system says it in an OSError where files are mapped.

    CUDA and its libraries say it in words where they take memory beside PyTorch.
    """
    import torch

    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(text in str(error).lower() for text in _SAID)


def _less_for_training() -> str:
    import torch

    less, kept = "Set workers to 1, or lower max_length", "workers"
    if torch.cuda.is_available():
        less, kept = (
            "Set gradient_checkpointing to true, lower pack_tokens, or lower max_length",
            "gradient_checkpointing",
        )
    return (
        f"{less} and run lora_adapter again: it resumes from the last checkpoint where only {kept} changed. The "
        "previous adapter is still in place."
    )
