"""LoRA adapters that no training made, for the tests of what leaves the project."""

from collections.abc import Sequence
from pathlib import Path

from po_assets.model import load_base_model


def random_adapter(base: Path, folder: Path, targets: Sequence[str], strength: float = 0.3) -> Path:
    """An adapter with random matrices on these modules; a small strength changes next to nothing."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=list(targets), task_type="CAUSAL_LM")
    model = get_peft_model(load_base_model(base, "float32", device="cpu"), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=strength)
    model.save_pretrained(folder)
    return folder
