"""The base model: which one, where it comes from, how text becomes its tokens, how it is loaded.

Used by the token budget of the data, by training and by evaluation, which must agree on all four. Nothing is trained
here. Importing this package is cheap: torch and transformers are imported by the functions that need them; only `cpu`
and `packed` import torch.
"""

from po_assets.model.chat import ChatTemplate, load_tokenizer
from po_assets.model.loading import (
    Precision,
    best_device,
    choose_precision,
    decide_quantization,
    load_base_model,
    require_hardware,
)
from po_assets.model.settings import EMBEDDED_MODEL, BaseModel
from po_assets.model.sources import base_model_digest, ensure_base_model, ensure_tokenizer

__all__ = [
    "EMBEDDED_MODEL",
    "BaseModel",
    "ChatTemplate",
    "Precision",
    "base_model_digest",
    "best_device",
    "choose_precision",
    "decide_quantization",
    "ensure_base_model",
    "ensure_tokenizer",
    "load_base_model",
    "load_tokenizer",
    "require_hardware",
]
