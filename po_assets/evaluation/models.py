"""Loading what answers: the base model, and the student as the base model with its adapter merged in.

Finding and converting base models belongs to `base_model`; training belongs to `student`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from po_assets.evaluation.answering import AnsweringModel
from po_assets.model import ChatFormat, load_base_model, load_tokenizer

if TYPE_CHECKING:
    from po_assets.model import BaseModelSpec


def load_baseline(folder: Path, spec: "BaseModelSpec") -> AnsweringModel:
    """The base model as it is."""
    from po_assets.model.cpu.decoding import prepare_for_decoding

    model = load_base_model(folder, quantization=spec.quantization)
    prepare_for_decoding(model)
    return AnsweringModel(model, ChatFormat(load_tokenizer(folder)))


def load_student(folder: Path, spec: "BaseModelSpec", adapter: Path) -> AnsweringModel:
    """The base model with the adapter.

    Merged where the weights allow it, in float32 and then rounded once to the precision that the baseline runs in: each
    forward pass is then as fast as the base model's. A quantized base keeps its adapter beside it.

    Raises:
        ValueError: the folder is no adapter for this base model, or it changes nothing.
    """
    from peft import PeftModel

    from po_assets.model import best_device, choose_precision
    from po_assets.model.cpu.decoding import prepare_for_decoding

    quantized = spec.quantization != "none"
    base = load_base_model(folder, None if quantized else "float32", quantization=spec.quantization, device="cpu")
    try:
        student = PeftModel.from_pretrained(base, str(adapter))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise ValueError(
            f"the adapter does not load onto {spec.name}: {reason}. Materialize lora_adapter again"
        ) from error
    student.eval()
    if quantized:
        return AnsweringModel(student, ChatFormat(load_tokenizer(folder)))
    if not changes_weights(student):
        raise ValueError(f"the adapter changes no weight of {spec.name}: it was not trained. Materialize lora_adapter")
    merged = student.merge_and_unload().to(device=best_device(), dtype=choose_precision().torch_dtype)
    prepare_for_decoding(merged.eval())
    return AnsweringModel(merged, ChatFormat(load_tokenizer(folder)))


def changes_weights(student: object) -> bool:
    """Whether any LoRA product of a PEFT model is not zero: an untrained adapter would measure the base model."""
    import torch

    for module in student.modules():  # type: ignore[attr-defined]
        for name, up in getattr(module, "lora_B", {}).items():
            if torch.count_nonzero(up.weight) and torch.count_nonzero(module.lora_A[name].weight):
                return True
    return False


def lazily(load: Callable[[], AnsweringModel]) -> Callable[[], AnsweringModel]:
    """Load at the first call and keep the model for later ones."""
    held: list[AnsweringModel] = []

    def once() -> AnsweringModel:
        if not held:
            held.append(load())
        return held[0]

    return once
