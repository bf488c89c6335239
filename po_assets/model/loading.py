"""Load a base model into memory: the number format the hardware is good at, the device, and the one loader.

Training, baseline and student load through `load_base_model`, so that they cannot differ in precision.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import re
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, cast

from po_assets.dag.compute import gpu_share
from po_assets.errors import UserError
from po_assets.model.chat import first_line
from po_assets.model.settings import BaseModel, Quantization
from po_assets.storage.workers import available_cpus

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DType = Literal["bfloat16", "float32"]
_ROOM_FOR_16_BITS = 40e9
"""Bytes of a GPU from which on the profile's 7B model is trained in 16 bits: 15 GB of weights, the rest activations."""


@dataclass(frozen=True)
class Precision:
    """The number format of weights and activations, and in words why."""

    dtype: DType
    reason: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The same as a torch type."""
        import torch

        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[self.dtype]


def best_device() -> Literal["cuda", "cpu"]:
    """`cuda` where PyTorch sees a GPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_precision(requested: str | None = None) -> Precision:
    """`requested` (`bfloat16` or `float32`) when given, else the fastest format this hardware has instructions for.

    float16 is not offered: its gradients overflow without loss scaling, and whatever has fast float16 and matters
    here has bfloat16 too.
    """
    import torch

    if requested not in (None, "auto"):
        if requested not in ("bfloat16", "float32"):
            raise UserError(f"precision is {requested!r}; choose 'bfloat16', 'float32' or 'auto'.")
        return Precision(cast("DType", requested), "as the recipe asks")
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bfloat16", f"{torch.cuda.get_device_name()} computes in bfloat16")
        return Precision("float32", f"{torch.cuda.get_device_name()} has no bfloat16 units")
    if torch.cpu._is_amx_tile_supported():  # noqa: SLF001  # PyTorch has no public name for either
        return Precision("bfloat16", "this CPU multiplies bfloat16 matrices (AMX)")
    if torch.cpu._is_avx512_bf16_supported():  # noqa: SLF001
        return Precision("bfloat16", "this CPU has bfloat16 dot products (AVX512-BF16)")
    return Precision("float32", "this CPU has no bfloat16 instructions")


def gpu_bytes() -> int:
    """Memory that this step has on its GPU; 0 without one."""
    import torch

    if best_device() == "cpu":
        return 0
    return int(torch.cuda.get_device_properties(own_device()).total_memory * gpu_share())


def decide_quantization(spec: BaseModel) -> tuple[Quantization, str]:
    """`none` or `nf4`, and in words why; `auto` is decided from the memory of this machine's GPU."""
    if spec.quantization != "auto":
        return spec.quantization, f"quantization is {spec.quantization}"
    size = gpu_bytes()
    fits = size >= _ROOM_FOR_16_BITS
    return "none" if fits else "nf4", (
        f"there are {size / 1e9:.0f} GB on the GPU, {'enough for' if fits else 'less than the 40 that go with'} 16-bit "
        "weights"
    )


def require_hardware(spec: BaseModel) -> None:
    """Raise `UserError` where the profile or the quantization needs what this machine lacks; before any download.

    No GPU, one too old for this PyTorch, a PyTorch for CPUs, an old driver and no bitsandbytes have a sentence each.
    """
    import torch

    if torch.cuda.is_available() and not _has_kernels():
        raise UserError(
            f"{torch.cuda.get_device_name()} cannot be used: PyTorch {torch.__version__} has code for "
            f"{', '.join(torch.cuda.get_arch_list())} only. Install its build for another CUDA (for cards before "
            "Turing: pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126); or set "
            "CUDA_VISIBLE_DEVICES to nothing: the profile 'embedded' runs on CPUs too."
        )
    if spec.profile != "paper" and spec.quantization == "none":
        return
    what = f"The profile {spec.profile!r}" if spec.profile == "paper" else f"The quantization {spec.quantization!r}"
    if not torch.cuda.is_available():
        raise UserError(
            f"{what} needs a CUDA GPU, and {_why_no_gpu()} Or choose the profile 'embedded' (PO_PROFILE=embedded), "
            "which runs anywhere."
        )
    if decide_quantization(spec)[0] == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{what} needs the package bitsandbytes, which is not installed: make setup EXTRAS=cuda.")


def _has_kernels() -> bool:
    """Whether PyTorch was built for this GPU; one that is too old is seen all the same, and fails at its first sum."""
    import torch

    built = torch.cuda.get_arch_list()  # sm_75, sm_90a, compute_120, …; empty without CUDA
    if not built or torch.version.cuda is None:  # AMD's have other names
        return True
    major, minor = torch.cuda.get_device_capability()
    known = [(name, *divmod(int(re.sub(r"\D", "", name)), 10)) for name in built]
    # Machine code runs on its own generation, from its own card on; the rest is compiled for any later one.
    return any(
        (a == major and b <= minor) or (name.startswith("compute") and (a, b) <= (major, minor)) for name, a, b in known
    )


def _why_no_gpu() -> str:
    """In words why PyTorch sees no GPU, and the way out; the causes look the same to `torch.cuda.is_available`."""
    import torch

    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return (
            f"PyTorch {torch.__version__} is built for CPUs only. Where there is a GPU, remove it (pip uninstall "
            "torch) and install one with CUDA: make setup EXTRAS=cuda."
        )
    try:
        torch.cuda.init()
        said = ""
    except (RuntimeError, AssertionError) as error:
        said = first_line(error)
    if "too old" in said:
        return (
            f"PyTorch {torch.__version__} is built for CUDA {torch.version.cuda}, for which this machine's NVIDIA "
            f"driver is too old ({said}). Update the driver, or install a PyTorch for an older CUDA."
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and "driver" not in said:
        return f"CUDA_VISIBLE_DEVICES is {hidden!r}, which leaves none visible. Unset it, or run where there is one."
    return f"PyTorch {torch.__version__} sees none on this machine ({said or 'no device'}). Run it where there is one."


def own_device() -> str:
    """Where this process computes: its own GPU where several workers share a machine, else the first, else the CPU.

    Launchers of several workers (Ray Train, torchrun) say in LOCAL_RANK which one of the machine's a worker is.
    """
    import torch

    if best_device() == "cpu":
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK') or 0) % max(1, torch.cuda.device_count())}"


def load_base_model(
    path: str | PathLike[str],
    precision: Precision | DType | None = None,
    *,
    quantization: Quantization = "none",
    device: str | None = None,
) -> PreTrainedModel:
    """The model of the folder `path` (see `ensure_base_model`) in evaluation mode, on the GPU where there is one.

    It is read as it is: safetensors only, no code of its own, no network. `precision` left out is chosen by
    `choose_precision`.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging as hf_logging

    if not isinstance(precision, Precision):
        precision = choose_precision(precision)
    dtype, device = precision.torch_dtype, device or own_device()
    # In a container with a limit PyTorch would take a thread for each core of the machine.
    torch.set_num_threads(min(torch.get_num_threads(), available_cpus()))
    options: dict[str, object] = {}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if quantization == "nf4" or device != "cpu":
        gc.collect()  # 4-bit layers hang in cycles: those of an earlier step would still lie on the GPU
        options["device_map"] = {"": device}  # onto the GPU at once: a pod need not hold a 7B model in main memory
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()  # a bar that redraws itself is noise in a run's log
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            str(path),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
        _refuse_other_weights(found)
    except (MemoryError, RuntimeError):  # of the machine, not of the folder
        raise
    except Exception as error:  # whatever transformers makes of another's config.json
        raise UserError(
            f"The base model in {str(path)!r} cannot be loaded ({first_line(error)}). Delete the folder if "
            "po_assets made it, and it will be made again; else repair it or give another base_model."
        ) from error
    finally:
        if bars:
            hf_logging.enable_progress_bar()
    return cast("PreTrainedModel", model.eval())


def _refuse_other_weights(found: dict[str, Any]) -> None:
    """What the files lack, or have in another size, transformers would draw at random and only warn about.

    Layers that they have beyond those of config.json it would leave out.
    """
    if mismatched := sorted(found["mismatched_keys"]):
        name, in_file, in_config = mismatched[0]
        raise ValueError(
            f"{len(mismatched):,} of its weights have other sizes than its config.json says: {name} is "
            f"{list(in_file)}, not {list(in_config)}"
        )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"it lacks {len(missing):,} of its weights, {missing[0]} among them")
    if beyond := sorted(name for name in found["unexpected_keys"] if ".layers." in name and name.endswith(".weight")):
        raise ValueError(
            f"it has {len(beyond):,} weights of layers that its config.json does not have, {beyond[0]} among them"
        )
