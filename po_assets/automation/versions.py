"""Settings as part of an asset's version: a changed default, profile or environment makes stale what depends on it.

Dagster's staleness knows code and data, not settings. The settings a run has by default (the code's, or those of the
environment, `PO_PROFILE`) are therefore folded into the `code_version` of exactly the assets whose content depends on
them. Settings made in the Launchpad are that one run's choice and are not undone the next night; the artifacts'
manifests know them, and what is downstream goes stale by its data version.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import dagster as dg

from po_assets.dataset.policy import SelectionPolicy
from po_assets.evaluation.settings import DecodingSettings
from po_assets.model import BaseModel
from po_assets.storage import digest_of
from po_assets.training.recipe import StudentRecipe


def with_settings_versions(
    assets: Iterable[dg.AssetsDefinition],
    *,
    selection: SelectionPolicy,
    base_model: BaseModel,
    recipe: StudentRecipe,
    decoding: DecodingSettings,
) -> list[dg.AssetsDefinition]:
    """The assets, with the digest of the settings that each depends on in its code version."""
    model: dict[str, Any] = {"base_model": lambda: base_model.resolved().identity()}
    settings: dict[str, dict[str, Callable[[], object]]] = {
        "supervised_dataset": {
            **model,
            "selection": lambda: asdict(selection.rules()),
            "max_length": lambda: base_model.resolved().max_length,
        },
        "lora_adapter": {"recipe": lambda: recipe.resolved().numerics()},
        "baseline_report": {**model, "decoding": lambda: decoding.decoding().digest},
        "eval_report": {
            **model,
            "decoding": lambda: decoding.decoding().digest,
            "free": lambda: [decoding.free_cases, decoding.free_decoding().digest],
        },
    }
    versions = {asset: digest_of(_resolved(parts))[:8] for asset, parts in settings.items()}

    def with_version(spec: dg.AssetSpec) -> dg.AssetSpec:
        version = versions[spec.key.to_user_string()]
        return spec.replace_attributes(code_version=f"{spec.code_version}+settings.{version}")

    # Others are left as they are: mapping makes an observable source another kind of asset.
    return [
        asset.map_asset_specs(with_version) if asset.key.to_user_string() in versions else asset for asset in assets
    ]


def _resolved(parts: Mapping[str, Callable[[], object]]) -> dict[str, object]:
    """The settings; a wrong one (of the environment) must not keep the code location from loading: its run says so."""
    resolved: dict[str, object] = {}
    for name, part in parts.items():
        try:
            resolved[name] = part()
        except ValueError as error:
            resolved[name] = f"wrong: {error}"
    return resolved
