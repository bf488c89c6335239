"""What may be made, and what is to be made again: gates that hold across runs, and the nightly catch-up.

Dagster's blocking checks hold within one run, and its `stale_assets_only` takes what is stale at this moment. Neither
is enough: what lies below an asset that did not pass its gate must not be made in a later run either; and what lies
below a stale asset becomes stale only when the run is over, so that a changed setting would take one night per step.

A gate is passed when each blocking check of the asset passed on what it holds now: a verdict about older data says
nothing, and a check whose step died said nothing. (On top of this, `lora_adapter` verifies the gate record of the very
bytes it trains on, whoever materializes it and however.)
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
from dagster._core.storage.asset_check_execution_record import COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES

from po_assets.automation.jobs import main_job
from po_assets.dag import Artifacts
from po_assets.errors import UserError
from po_assets.storage import Layout, digest_of, file_digest, is_local, published_directory, read_manifest

AssetGraph = Any
"""Dagster's graph of all assets with their checks; its class has no public name."""

ROOT_TAG = ".dagster/po_assets_root"
"""The prefix hides it from the runs list."""
_CODE = "dagster/code_version"
_DATA = "dagster/data_version"
_INPUT = "dagster/input_data_version"
_VERDICTS = 20
"""Of a check, the last of which are looked at."""
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


class GateProblem(NamedTuple):
    """Why a gate is not passed: a blocking check of this name failed, or was never run on what the asset holds now."""

    check: str
    failed: bool
    elsewhere: bool = False
    """Whether it is of another artifact root that this instance saw the asset made last."""


def gate_problem(
    instance: dg.DagsterInstance, graph: AssetGraph, key: dg.AssetKey, layout: Layout | None = None
) -> GateProblem | None:
    """The blocking check that keeps the asset from passing, one that failed before one that was not run; or None.

    With `layout`, a verdict on what another artifact root holds is none on this one.
    """
    records = instance.get_asset_records([key])
    made = records[0].asset_entry.last_materialization_record if records else None
    not_run: list[str] = []
    blocking = [check for check in graph.asset_check_keys if check.asset_key == key and graph.get(check).blocking]
    if layout and blocking and made_elsewhere(instance, layout, key):
        return GateProblem(min(blocking).name, failed=False, elsewhere=True)
    for check in sorted(blocking):
        evaluation = _evaluation(instance, check, made)
        if evaluation is None:
            not_run.append(check.name)
        elif not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR:
            return GateProblem(check.name, failed=True)
    # Of what this instance never saw made (files brought from elsewhere), it cannot be said that checks were left out.
    return GateProblem(not_run[0], failed=False) if not_run and made else None


def root_tag(layout: Layout) -> dict[str, str]:
    """The tag that says in which artifact root a run works: several may share one Dagster instance."""
    return {ROOT_TAG: str(Path(str(layout.root)).resolve() if is_local(layout.root) else layout.root)}


def made_elsewhere(instance: dg.DagsterInstance, layout: Layout, key: dg.AssetKey) -> bool:
    """Whether a run in another artifact root made the asset last: what is known of that says nothing of this one."""
    event = instance.get_latest_materialization_event(key)
    run = instance.get_run_by_id(event.run_id) if event else None
    return run is not None and works_elsewhere(run, layout)


def works_elsewhere(run: dg.DagsterRun, layout: Layout) -> bool:
    """Whether the run is known to work in another artifact root."""
    own = root_tag(layout)[ROOT_TAG]
    return run.tags.get(ROOT_TAG, own) != own


def _evaluation(
    instance: dg.DagsterInstance, check: dg.AssetCheckKey, made: dg.EventLogRecord | None
) -> dg.AssetCheckEvaluation | None:
    """The last verdict of the check on this materialization; on any, where none is known."""
    # A check that was planned and never reached takes no verdict back. Dagster sorts by when the runs were made: the
    # one whose verdict counts may have waited in the queue while others, made after it, went by.
    for record in instance.event_log_storage.get_asset_check_execution_history(
        check, limit=_VERDICTS, status=COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES
    ):
        if made is None or record.run_id == made.run_id:
            return record.evaluation
        target = record.evaluation.target_materialization_data if record.evaluation else None
        if target.storage_id == made.storage_id if target else record.create_timestamp > made.timestamp:
            return record.evaluation
    return None


def refuse_below_failed_gate(
    instance: dg.DagsterInstance,
    graph: AssetGraph,
    selected: Collection[dg.AssetKey],
    checked: Collection[dg.AssetKey],
    layout: Layout | None = None,
) -> None:
    """Refuse a run of assets whose inputs did not pass their gate, unless the run makes or checks these anew.

    Args:
        instance: how the checks went.
        graph: all assets with their checks.
        selected: assets that the run makes.
        checked: assets whose checks the run runs.
        layout: the artifact root, where several share the instance.

    Raises:
        UserError: naming every such input, its check and the way out.
    """
    parents = {parent for key in selected if graph.has(key) for parent in graph.get(key).parent_keys}
    inputs = sorted(parents - {*selected, *checked})
    found = {key.to_user_string(): gate_problem(instance, graph, key, layout) for key in inputs}
    problems = {name: problem for name, problem in found.items() if problem}
    if not problems:
        return
    said = [
        f"the blocking check {problem.check} of {asset} "
        + ("failed when it was last run" if problem.failed else f"has not been run on the data that {asset} holds now")
        for asset, problem in problems.items()
    ]
    names = ", ".join(problems)
    way_out = f"Run the checks of {names}, or materialize {names} together with what is below."
    if layout and any(problem.elsewhere for problem in problems.values()):
        way_out = (
            f"{names} was made last in another artifact root, which has the same DAGSTER_HOME. Materialize it in "
            f"{layout.root} together with what is below."
        )
    if failed := [asset for asset, problem in problems.items() if problem.failed]:
        way_out = f"See its page, correct what it names, and materialize {failed[0]} together with what is below it."
    raise UserError(f"Nothing was made: {'; '.join(said)}. {way_out}")


@dataclass
class CatchUp:
    """Assets to be made again with the reason, in the graph's order, and those that a failed gate keeps from it."""

    stale: dict[dg.AssetKey, str] = field(default_factory=dict)
    blocked: dict[dg.AssetKey, str] = field(default_factory=dict)
    """With the check that did not pass."""

    def described(self) -> str:
        """Both in words."""
        stale = [f"{key.to_user_string()} {reason}" for key, reason in self.stale.items()]
        return "; ".join([*stale, *(f"{key.to_user_string()} is not made: {why}" for key, why in self.blocked.items())])


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
    for key in (key for key in graph.toposorted_asset_keys if key in wanted):
        parents = sorted(graph.get(key).parent_keys)
        above = [parent for parent in parents if parent in found.stale or parent in found.blocked]
        reason = (
            _own_reason(instance, graph, key)
            or problem(key, (_tags(instance, key) or {}).get(_DATA, ""))
            or _unchecked(instance, graph, key)
            or (f"depends on {above[0].to_user_string()}" if above else "")
        )
        gates = (found.blocked.get(parent) or _failed_gate(instance, graph, parent, found) for parent in parents)
        if reason and (gate := next(filter(None, gates), "")):
            found.blocked[key] = gate
        elif reason:
            found.stale[key] = reason
    return found


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


def _unchecked(instance: dg.DagsterInstance, graph: AssetGraph, key: dg.AssetKey) -> str:
    """What is missing of the asset's gate, or nothing: what a run left that ended before its checks, nobody may use."""
    problem = gate_problem(instance, graph, key)
    return f"was not checked by {problem.check} since it was made" if problem and not problem.failed else ""


def _failed_gate(instance: dg.DagsterInstance, graph: AssetGraph, key: dg.AssetKey, found: CatchUp) -> str:
    """What keeps assets below `key` from being made, or nothing. What is made again is also checked again."""
    problem = None if key in found.stale else gate_problem(instance, graph, key)
    if problem is None:
        return ""
    return f"the check {problem.check} of {key.to_user_string()} {'failed' if problem.failed else 'was not run'}"


def _data_version(instance: dg.DagsterInstance, graph: AssetGraph, key: dg.AssetKey) -> str | None:
    if graph.get(key).is_materializable:
        return (_tags(instance, key) or {}).get(_DATA)
    # What was never observed may have any version.
    records = instance.fetch_observations(key, limit=1).records
    observation = records[0].asset_observation if records else None
    return observation.tags.get(_DATA) if observation else None


def _tags(instance: dg.DagsterInstance, key: dg.AssetKey) -> dict[str, str] | None:
    event = instance.get_latest_materialization_event(key)
    materialization = event.asset_materialization if event else None
    return dict(materialization.tags or {}) if materialization else None


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


@dg.schedule(
    job=main_job,
    cron_schedule="0 3 * * *",
    description="Every night at 03:00 UTC: materializes what is stale or missing, and what depends on it; starts no "
    "run when nothing is, and nothing below a failed gate.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def nightly_catch_up(
    context: dg.ScheduleEvaluationContext, artifacts: dg.ResourceParam[Artifacts]
) -> dg.RunRequest | dg.SkipReason:
    """Request a run of what is to be made again, for changes that land no file (code, settings, prompt, metric)."""
    on_its_way = dg.RunsFilter(job_name=main_job.name, statuses=_UNFINISHED)
    if records := context.instance.get_run_records(on_its_way, limit=1):
        return dg.SkipReason(f"Run {records[0].dagster_run.run_id[:8]} of the graph has not ended yet.")
    assert context.repository_def is not None  # noqa: S101 - for the type checker: set in every tick
    graph, layout = context.repository_def.asset_graph, artifacts.layout
    wanted = main_job.selection.resolve(graph)

    def problem(key: dg.AssetKey, data_version: str) -> str:
        if made_elsewhere(context.instance, layout, key):
            return "was made last in another artifact root"
        return artifact_problem(layout, key, data_version)

    found = catch_up(context.instance, graph, wanted, problem)
    if not found.stale:
        return dg.SkipReason(
            f"Nothing can be caught up: {found.described()}." if found.blocked else "Nothing is stale."
        )
    context.log.info(found.described())
    return dg.RunRequest(asset_selection=list(found.stale), tags={"reason": found.described()[:500]})


def with_settings_versions(
    assets: Iterable[dg.AssetsDefinition], settings: Mapping[str, Any]
) -> list[dg.AssetsDefinition]:
    """The assets, with the digest of the settings (by resource) that each depends on in its code version.

    Dagster's staleness knows code and data, not settings: so a changed default, profile or environment (`PO_PROFILE`)
    makes stale what depends on it. Settings made in the Launchpad are that one run's choice and are not undone the next
    night; the artifacts' manifests know them, and what is downstream goes stale by its data version.
    """
    decoding, prompts, recipe = settings["decoding"], settings["prompt"], settings["recipe"]
    model: dict[str, Any] = {"base_model": lambda: settings["base_model"].resolved().identity()}
    used: dict[str, dict[str, Callable[[], object]]] = {
        "normalized_teacher": {"status_aliases": lambda: settings["selection"].status_aliases},
        "supervised_dataset": {
            **model,
            "selection": settings["selection"].effective,
            "max_length": lambda: settings["base_model"].resolved().max_length,
            "prompt": lambda: prompts.own.digest,
        },
        "lora_adapter": {
            "recipe": lambda: recipe.resolved().effective(),
            "prompt": lambda: prompts.trained_on(recipe.prompt_mix),
        },
        "baseline_report": {**model, "decoding": decoding.fingerprint, "prompt": lambda: prompts.own.digest},
        "eval_report": {
            **model,
            "decoding": decoding.report_fingerprint,
            "gate": settings["gate"].fingerprint,
            "prompt": prompts.fingerprint,
        },
    }
    versions = {asset: digest_of(_resolved(parts))[:8] for asset, parts in used.items()}

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
