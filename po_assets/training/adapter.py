"""The LoRA adapter around a base model: made from a recipe, written as a PEFT folder, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from po_assets.errors import UserError
from po_assets.training.recipe import ALL_LINEAR, Recipe

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def add_adapter(model: PreTrainedModel, recipe: Recipe, base_folder: Path) -> PeftModel:
    """Wrap `model` with fresh LoRA matrices in float32, seeded by the recipe; all other weights are frozen.

    float32 because an optimizer step changes a weight by less than bfloat16 can show; the matrices are rounded to the
    compute type where they are used. Raises `UserError` for target modules that the model does not have.
    """
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    targets: str | list[str] = ALL_LINEAR if recipe.target_modules == (ALL_LINEAR,) else list(recipe.target_modules)
    if recipe.model.quantization != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=recipe.gradient_checkpointing)
    elif recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    # What `peft` and others load the base from; a Hub id works on other machines too, with its revision beside it.
    model.name_or_path = recipe.model.name if recipe.model.kind == "hub" else str(base_folder)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=targets,
        use_rslora=recipe.use_rslora,
        use_dora=recipe.use_dora,
        task_type="CAUSAL_LM",
        revision=recipe.model.revision,
    )
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    torch.manual_seed(recipe.seed)
    try:
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as error:
        raise UserError(
            f"target_modules {list(recipe.target_modules)!r} do not fit the base model "
            f"({str(error).splitlines()[0][:200]}); leave them at ['{ALL_LINEAR}'], or name linear layers that it has."
        ) from error
    adapted = _adapted(wrapped)
    unmatched = [name for name in recipe.target_modules if name != ALL_LINEAR and not _matches(name, adapted)]
    if unmatched:
        raise UserError(
            f"target_modules {unmatched!r} match no linear layer of the base model (its own are "
            f"{sorted({name.rpartition('.')[2] for name in linears})}); correct or remove them, or leave "
            f"target_modules at ['{ALL_LINEAR}']."
        )
    return cast("PeftModel", wrapped.train())


def trainable(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """The trained parameters by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def write_adapter(model: PeftModel, folder: Path) -> None:
    """Write weights and configuration as `peft.PeftModel.from_pretrained` reads them; the same bytes every time."""
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's card is an empty form; ours comes from `model_card`
    path = folder / CONFIG
    settings: dict[str, Any] = json.loads(path.read_text())
    settings["target_modules"] = _short_names(model)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _adapted(model: Any) -> set[str]:
    """Full names of the linears that got LoRA matrices."""
    from peft.tuners.lora import LoraLayer

    return {name for name, module in model.base_model.model.named_modules() if isinstance(module, LoraLayer)}


def _matches(name: str, adapted: set[str]) -> bool:
    """As PEFT matches them: a whole name, or its last parts."""
    return any(full == name or full.endswith(f".{name}") for full in adapted)


def _short_names(model: PeftModel) -> list[str]:
    """Names of the adapted linears, sorted: PEFT writes them in the order of a set, which changes from run to run."""
    adapted = _adapted(model)
    short = sorted({name.rpartition(".")[2] for name in adapted})
    everywhere = {
        name
        for name, module in model.base_model.model.named_modules()
        if name.rpartition(".")[2] in short and "lora_" not in name and not name.endswith(".base_layer")
    }
    # Last parts are enough unless they would catch a linear that was left out on purpose.
    return short if everywhere == adapted else sorted(adapted)
