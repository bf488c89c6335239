"""What answers: the base model, or the student, loaded with its chat format and ready to decode.

Which questions it gets belongs to `answers`; how tokens are chosen to `generate`.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from po_assets.errors import UserError
from po_assets.model import (
    BaseModel,
    ChatTemplate,
    best_device,
    choose_precision,
    decide_quantization,
    load_base_model,
    load_tokenizer,
)
from po_assets.model.chat import first_line
from po_assets.training.memory import is_out_of_memory

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from po_assets.evaluation.generate import GrammarConstraint


@dataclass(frozen=True)
class AnsweringModel:
    """A loaded model with its chat format. `model` is called like a transformers causal language model."""

    model: Any
    chat: ChatTemplate

    @property
    def eos_ids(self) -> list[int]:
        """The tokens that end an answer: the chat format's, then those of the model's generation config."""
        configured = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        others = configured if isinstance(configured, list) else [configured]
        return list(dict.fromkeys([self.chat.eos_id, *(token for token in others if isinstance(token, int))]))

    @cached_property
    def vocabulary(self) -> int:
        """The model's number of logits."""
        return int(self.model.config.vocab_size)

    def constraint(self, grammar: str | None) -> "GrammarConstraint | None":
        """What keeps one answer within the grammar; None without one."""
        from po_assets.evaluation.generate import GrammarConstraint

        return GrammarConstraint(self._tokenizer, grammar) if grammar else None

    @cached_property
    def _tokenizer(self) -> "LLTokenizer":
        from po_assets.evaluation.generate import grammar_tokenizer

        return grammar_tokenizer(self.chat.tokenizer, self.vocabulary)


def load_baseline(folder: Path, spec: BaseModel) -> AnsweringModel:
    """The base model as it is."""
    from po_assets.model.cpu import prepare_for_decoding

    model = load_base_model(folder, quantization=decide_quantization(spec)[0])
    prepare_for_decoding(model)
    return AnsweringModel(model, ChatTemplate(load_tokenizer(folder)))


def load_student(folder: Path, spec: BaseModel, adapter: Path) -> AnsweringModel:
    """The base model with the adapter.

    Merged where the weights allow it, each layer in float32 and rounded once to the precision that the baseline runs
    in: each forward pass is then as fast as the base model's. A quantized base keeps its adapter beside it.

    Raises:
        UserError: the folder holds no adapter for this base model, or one that changes nothing.
    """
    from peft import PeftModel

    from po_assets.model.cpu import prepare_for_decoding

    quantization, _ = decide_quantization(spec)
    base = load_base_model(folder, quantization=quantization)
    try:
        student = PeftModel.from_pretrained(base, str(adapter))
    except (OSError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):  # which has another way out than a new adapter
            raise
        raise UserError(
            f"The adapter does not load onto {spec.name}: {first_line(error)}. Materialize lora_adapter again."
        ) from error
    student.eval()
    if not _changes_weights(student):
        raise UserError(f"The adapter changes no weight of {spec.name}: it was not trained. Materialize lora_adapter.")
    if quantization == "none":
        student = merged(student).eval()
        prepare_for_decoding(student)
    return AnsweringModel(student, ChatTemplate(load_tokenizer(folder)))


def merged(student: Any) -> Any:
    """The base model with the adapter of a PEFT model in its weights; layer by layer, so that 16 bits stay 16."""
    from peft.tuners.lora import LoraLayer

    for module in student.modules():
        if isinstance(module, LoraLayer):
            layer = module.get_base_layer()
            dtype = layer.weight.dtype
            layer.float()
            module.merge()
            layer.to(dtype)
    return student.unload()


def computed_in() -> str:
    """Where and in which precision this machine answers: the same question has other last bits elsewhere."""
    import torch

    device = torch.cuda.get_device_name() if best_device() == "cuda" else "cpu"
    return f"{device}, {choose_precision().dtype}"


def _changes_weights(student: Any) -> bool:
    """Whether any LoRA product of a PEFT model is not zero: an untrained adapter would measure the base model."""
    import torch

    return any(
        bool(torch.count_nonzero(up.weight)) and bool(torch.count_nonzero(module.lora_A[name].weight))
        for module in student.modules()
        for name, up in getattr(module, "lora_B", {}).items()
    )
