"""Blocking checks across runs: what lies below an asset that did not pass its gate is not made in a later run either.

Dagster's blocking checks hold within one run. A gate is passed when each blocking check of the asset passed on what it
holds now: a verdict about older data says nothing, and a check whose step died said nothing. (On top of this,
`lora_adapter` verifies the gate record of the very bytes it trains on, whoever materializes it and however.)
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import dagster as dg
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.storage.asset_check_execution_record import (
    COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES as COMPLETED,
)
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecord

AssetGraph = BaseAssetGraph[Any]


class GateProblem(NamedTuple):
    """Why a gate is not passed: a blocking check of this name failed, or was never run on what the asset holds now."""

    check: str
    failed: bool


def gate_problem(instance: dg.DagsterInstance, graph: AssetGraph, key: dg.AssetKey) -> GateProblem | None:
    """The blocking check that keeps the asset from passing, one that failed before one that was not run; or None."""
    made = _latest_materialization(instance, key)
    checks = sorted(
        check.name for check in graph.asset_check_keys if check.asset_key == key and graph.get(check).blocking
    )
    not_run: list[str] = []
    for name in checks:
        evaluation = _evaluation(instance, dg.AssetCheckKey(key, name), made)
        if evaluation is None:
            not_run.append(name)
        elif not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR:
            return GateProblem(name, failed=True)
    # Of what this instance never saw made (files brought from elsewhere), it cannot be said that checks were left out.
    return GateProblem(not_run[0], failed=False) if not_run and made else None


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
    problems = {key.to_user_string(): problem for key in inputs if (problem := gate_problem(instance, graph, key))}
    if problems:
        raise dg.Failure(
            "Nothing was made: "
            + "; ".join(_said(asset, problem) for asset, problem in problems.items())
            + "."
            + _way_out(problems),
            allow_retries=False,
        )


def _said(asset: str, problem: GateProblem) -> str:
    how = "failed when it was last run" if problem.failed else f"has not been run on the data that {asset} holds now"
    return f"the blocking check {problem.check} of {asset} {how}"


def _way_out(problems: dict[str, GateProblem]) -> str:
    failed = [asset for asset, problem in problems.items() if problem.failed]
    if failed:
        return f" See its page, correct what it names, and materialize {failed[0]} together with what is below it."
    names = ", ".join(problems)
    return f" Run the checks of {names}, or materialize {names} together with what is below."


def _latest_materialization(instance: dg.DagsterInstance, key: dg.AssetKey) -> dg.EventLogRecord | None:
    records = instance.get_asset_records([key])
    return records[0].asset_entry.last_materialization_record if records else None


def _evaluation(
    instance: dg.DagsterInstance, check: dg.AssetCheckKey, made: dg.EventLogRecord | None
) -> dg.AssetCheckEvaluation | None:
    """The last verdict of the check, if it is about this materialization."""
    # A check that was planned and never reached takes no verdict back.
    records = instance.event_log_storage.get_asset_check_execution_history(check, limit=1, status=COMPLETED)
    return records[0].evaluation if records and (made is None or _is_about(records[0], made)) else None


def _is_about(record: AssetCheckExecutionRecord, made: dg.EventLogRecord) -> bool:
    """As Dagster's UI has it."""
    if record.run_id == made.run_id:
        return True
    target = record.evaluation.target_materialization_data if record.evaluation else None
    return target.storage_id == made.storage_id if target else record.create_timestamp > made.timestamp
