"""Blocking checks across runs: what lies below an asset that failed its gate is not made in a later run either.

Dagster's blocking checks hold within one run. (On top of this, `lora_adapter` verifies the gate record of the very
bytes it trains on, whoever materializes it and however.)
"""

from collections.abc import Collection
from typing import Any

import dagster as dg
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

AssetGraph = BaseAssetGraph[Any]


def failed_gate(instance: dg.DagsterInstance, graph: AssetGraph, key: dg.AssetKey) -> str | None:
    """The blocking check of the asset that failed when it was last run, with severity ERROR; None where none did."""
    keys = [check for check in graph.asset_check_keys if check.asset_key == key and graph.get(check).blocking]
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    for check in sorted(records, key=lambda check: check.name):
        record = records[check]
        evaluation = record.evaluation if record.status == AssetCheckExecutionRecordStatus.FAILED else None
        if evaluation and evaluation.severity == dg.AssetCheckSeverity.ERROR:
            return check.name
    return None


def refuse_below_failed_gate(
    instance: dg.DagsterInstance, graph: AssetGraph, selected: Collection[dg.AssetKey], checked: Collection[dg.AssetKey]
) -> None:
    """Refuse a run of assets whose inputs did not pass their gate, unless the run makes or checks these anew.

    Args:
        instance: how the checks went.
        graph: all assets with their checks.
        selected: assets that the run makes.
        checked: assets whose checks the run runs.

    Raises:
        dagster.Failure: naming every such input, its check and the way out.
    """
    parents = {parent for key in selected if graph.has(key) for parent in graph.get(key).parent_keys}
    inputs = sorted(parents - {*selected, *checked})
    failed = [(key.to_user_string(), check) for key in inputs if (check := failed_gate(instance, graph, key))]
    if failed:
        raise dg.Failure(
            "Nothing was made: "
            + "; ".join(f"the blocking check {check} of {asset} failed when it was last run" for asset, check in failed)
            + f". See its page, correct what it names, and materialize {failed[0][0]} together with what is below it.",
            allow_retries=False,
        )
