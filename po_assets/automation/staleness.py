"""Which assets are to be made again, and why: stale, never checked, below one that is, or with their file gone.

Dagster's own `stale_assets_only` takes what is stale at this moment. That is not enough for a catch-up: what lies below
becomes stale only when the run is over, so that a changed setting would take one night per step; and what lies below a
failed gate would be made, since blocking checks hold within one run.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import dagster as dg

from po_assets.automation.gates import AssetGraph, gate_problem
from po_assets.storage import Layout, file_digest, published_directory, read_manifest

_CODE = "dagster/code_version"
_DATA = "dagster/data_version"
_INPUT = "dagster/input_data_version"
_NOT_MADE = "is not made: "


@dataclass
class CatchUp:
    """Assets to be made again with the reason, in the graph's order, and those that a failed gate keeps from it."""

    stale: dict[dg.AssetKey, str] = field(default_factory=dict)
    blocked: dict[dg.AssetKey, str] = field(default_factory=dict)

    def described(self) -> str:
        """Both in words."""
        parts = [f"{key.to_user_string()} {reason}" for key, reason in {**self.stale, **self.blocked}.items()]
        return "; ".join(parts)


def catch_up(
    instance: dg.DagsterInstance,
    graph: AssetGraph,
    wanted: Collection[dg.AssetKey],
    problem: Callable[[dg.AssetKey, str], str],
) -> CatchUp:
    """Find what is to be made again.

    Args:
        instance: what was materialized, and how its checks went.
        graph: the assets as they are defined now.
        wanted: the assets that are looked at.
        problem: what is wrong with an asset's artifact, given the data version it should have; empty for nothing.
    """
    found = CatchUp()
    for key in graph.toposorted_asset_keys:
        if key not in wanted:
            continue
        parents = graph.get(key).parent_keys
        above = [parent for parent in sorted(parents) if parent in found.stale or parent in found.blocked]
        reason = (
            _own_reason(instance, graph, key)
            or problem(key, (_tags(instance, key) or {}).get(_DATA, ""))
            or _unchecked(instance, graph, key)
        )
        if not reason and above:
            reason = f"depends on {above[0].to_user_string()}"
        gate = next((text for parent in sorted(parents) if (text := _gate(instance, graph, parent, found))), "")
        if reason and gate:
            found.blocked[key] = f"{_NOT_MADE}{gate}"
        elif reason:
            found.stale[key] = reason
    return found


def artifact_problem(layout: Layout, key: dg.AssetKey, data_version: str) -> str:
    """Why what the asset keeps is not what Dagster's history says: gone, or (the cases, which people write) changed."""
    name = key.to_user_string()
    if name == "lora_adapter":
        there = read_manifest(published_directory(layout.adapter)) is not None
    else:
        there = layout.table(name).exists()
    if not there:
        return "is gone from the artifact root"
    if name == "eval_cases" and file_digest(layout.eval_cases) != data_version:
        return "was changed since it was read"
    return ""


def _own_reason(instance: dg.DagsterInstance, graph: AssetGraph, key: dg.AssetKey) -> str:
    """Why Dagster calls the asset stale or missing, or nothing."""
    tags = _tags(instance, key)
    if tags is None:
        return "was never made"
    node = graph.get(key)
    if node.code_version and tags.get(_CODE) != node.code_version:
        return "was made by other code or with other settings"
    for parent in sorted(node.parent_keys):
        version = _data_version(instance, graph, parent)
        used = tags.get(f"{_INPUT}/{parent.to_user_string()}")
        if used is None or (version is not None and used != version):
            return f"was made from other {parent.to_user_string()}"
    return ""


def _gate(instance: dg.DagsterInstance, graph: AssetGraph, key: dg.AssetKey, found: CatchUp) -> str:
    """What keeps assets below `key` from being made, or nothing. What is made again is also checked again."""
    if key in found.blocked:
        return found.blocked[key].removeprefix(_NOT_MADE)
    problem = None if key in found.stale else gate_problem(instance, graph, key)
    if not problem:
        return ""
    return f"the check {problem.check} of {key.to_user_string()} {'failed' if problem.failed else 'was not run'}"


def _unchecked(instance: dg.DagsterInstance, graph: AssetGraph, key: dg.AssetKey) -> str:
    """What is missing of the asset's gate, or nothing: what a run left that ended before its checks, nobody may use."""
    problem = gate_problem(instance, graph, key)
    return f"was not checked by {problem.check} since it was made" if problem and not problem.failed else ""


def _data_version(instance: dg.DagsterInstance, graph: AssetGraph, key: dg.AssetKey) -> str | None:
    if graph.get(key).is_materializable:
        tags = _tags(instance, key)
        return tags.get(_DATA) if tags else None
    # What was never observed may have any version.
    records = instance.fetch_observations(key, limit=1).records
    observation = records[0].asset_observation if records else None
    return observation.tags.get(_DATA) if observation else None


def _tags(instance: dg.DagsterInstance, key: dg.AssetKey) -> dict[str, str] | None:
    event = instance.get_latest_materialization_event(key)
    materialization = event.asset_materialization if event else None
    return dict(materialization.tags or {}) if materialization else None
