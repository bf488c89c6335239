"""The project's definitions with a tiny random base model and a training of a few steps; everything else is real."""

from pathlib import Path
from typing import Any

import dagster as dg

from po_assets import definitions
from po_assets.automation.catch_up import with_settings_versions
from po_assets.dataset.settings import SelectionSettings
from po_assets.evaluation.settings import Decoding
from po_assets.model import BaseModel
from po_assets.training.settings import TrainingSettings

RECIPE = {"rank": 4, "alpha": 8, "learning_rate": 1e-2, "epochs": 2.0, "gradient_accumulation": 4}
DECODING = {"mode": "free", "max_new_tokens": 8, "batch_size": 4, "free_cases": 0}
SELECTION = {"min_score": 0.5}


def tiny_definitions(
    folder: Path,
    *,
    selection: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    decoding: dict[str, Any] | None = None,
) -> dg.Definitions:
    """Definitions whose defaults are these settings, as if somebody had changed them in the code."""
    real = definitions.defs
    base_model = BaseModel(profile="embedded", base_model=str(folder), max_length=6000)
    parts: dict[str, tuple[Any, dict[str, Any]]] = {
        "selection": (SelectionSettings, {**SELECTION, **(selection or {})}),
        "recipe": (TrainingSettings, {"base_model": base_model, "precision": "float32", **RECIPE, **(recipe or {})}),
        "decoding": (Decoding, {**DECODING, **(decoding or {})}),
    }
    settings: dict[str, Any] = {name: kind(**given) for name, (kind, given) in parts.items()}
    launchpad = {name: kind.configure_at_launch(**given) for name, (kind, given) in parts.items()}
    assets = list(real.assets or ())
    made = [asset for asset in assets if isinstance(asset, dg.AssetsDefinition)]
    return dg.Definitions(
        assets=[
            *(asset for asset in assets if asset not in made),
            *with_settings_versions(made, definitions.defaults | settings | {"base_model": base_model}),
        ],
        asset_checks=real.asset_checks,
        jobs=real.jobs,
        sensors=real.sensors,
        schedules=real.schedules,
        resources={**(real.resources or {}), **launchpad, "base_model": base_model},
        executor=real.executor,
        loggers=real.loggers,
    )
