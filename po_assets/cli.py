"""The command line: `po-assets run` materializes the whole graph on the local instance and prints the gate.

It runs in this process, so that progress is seen as it happens; the UI shows the same run, checks and metadata.
"""

import argparse
import contextlib
import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dagster as dg

    from po_assets.storage import Layout

_REPOSITORY = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `po-assets`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="po-assets", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="materialize the whole graph with its checks, then print the gate")
    parser.parse_args(arguments)
    return run()


def run() -> int:
    """Materialize the graph; 0 only when every step succeeded and no ERROR check failed."""
    if problem := _prepare_environment():
        _say(problem)
        return 1
    import dagster as dg

    try:
        from po_assets.definitions import defs  # reads the environment: PO_GPUS, PO_NUM_WORKERS, PO_EXECUTOR
    except ValueError as error:
        _say(str(error))
        return 1
    from po_assets.automation.jobs import main_job
    from po_assets.automation.processes import LOCK, end_left_over_runs, process_tag
    from po_assets.dag import Artifacts
    from po_assets.model import BaseModel, require_hardware
    from po_assets.storage import LockedError, lock

    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        try:
            require_hardware(BaseModel().resolved())
            layout = Artifacts().layout
        except ValueError as error:
            _say(str(error))
            return 1
        try:
            stack.enter_context(lock(layout.root / LOCK))
        except LockedError as error:
            _say(f"Another run writes to {layout.root} right now ({error}). Wait until it ends, then start this again.")
            return 1
        except Exception as error:  # noqa: BLE001 - every store has errors of its own
            _say(f"The artifact root {layout.root} cannot be written to ({type(error).__name__}: {error}).")
            return 1
        instance = stack.enter_context(dg.DagsterInstance.get())
        for run_id in end_left_over_runs(instance):
            _say(f"Run {run_id[:8]} counted as running, but its process is gone; it is marked as failed.")
        job = defs.resolve_job_def(main_job.name)
        _say(f"Materializing {main_job.name} into {layout.root} (instance {os.environ['DAGSTER_HOME']})")
        # Named here, because Dagster falls back to a logger of its own that prints every event.
        run_config: dict[str, Any] = {"loggers": {"console": {}}}
        # Who started it here is looking at it: the daemon of an open UI is not to start it again.
        tags = {**process_tag(), "dagster/max_retries": "0"}
        result = job.execute_in_process(run_config=run_config, instance=instance, raise_on_error=False, tags=tags)
        return _report(result, layout, time.monotonic() - started)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the command line speaks on standard output


def _prepare_environment() -> str | None:
    """Set what the run's libraries look at; returns why there can be no run."""
    # Dagster warns of previews and betas that the project uses on purpose.
    warnings.filterwarnings("ignore", module="dagster")
    # transformers warns itself of its own old names.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that wait by spinning make generation several times slower when another process wants the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return _find_instance()


def _find_instance() -> str | None:
    """Point `DAGSTER_HOME` to the repository's instance where nothing else is said; returns why there is none."""
    settings = _REPOSITORY / "deploy" / "local" / "dagster.yaml"
    given = os.environ.get("DAGSTER_HOME")
    if not given and not settings.is_file():
        return (
            "DAGSTER_HOME is not set, and the installed package brings no instance of its own. Set it to a folder that "
            "keeps Dagster's history, for example: export DAGSTER_HOME=~/dagster_home, and copy deploy/local/"
            "dagster.yaml of the repository into it. (PO_ARTIFACTS_ROOT says where the artifacts are.)"
        )
    home = Path(given).expanduser() if given else settings.parent
    if not home.is_absolute():
        return f"DAGSTER_HOME is {given!r}; it has to be an absolute path, {str(home.resolve())!r} for example."
    os.environ["DAGSTER_HOME"] = str(home)
    home.mkdir(parents=True, exist_ok=True)
    return None


def _report(result: "dg.ExecuteInProcessResult", layout: "Layout", seconds: float) -> int:
    from rich.console import Console

    from po_assets.automation.outcome import outcome_of

    console = Console(width=120, highlight=False)
    outcome = outcome_of(result.all_events)
    console.print()
    for title, checks in (("Failed checks", outcome.errors), ("Warnings", outcome.warnings)):
        if checks:
            console.print(f"[bold]{title}[/bold]")
        for check in checks:
            console.print(f"  {check.asset}: {check.name}", markup=False)
            console.print(f"    {check.plain}", markup=False)
    for step in outcome.steps:
        console.print(f"[bold]Step {step.step} failed[/bold]")
        console.print(f"  {step.reason}", markup=False)
    produced = "eval_report" in _materialized(result)
    _print_gate(console, layout, produced=produced)
    passed = result.success and not outcome.errors
    verdict = "[green]The run passed[/green]" if passed else "[red]The run failed[/red]"
    console.print(f"\n{verdict} after {seconds / 60:.1f} minutes.")
    if produced:
        console.print(f"Report: {layout.report_html}", markup=False)
    console.print("UI, with every check and picture: make ui", markup=False)
    return 0 if passed else 1


def _print_gate(console: object, layout: "Layout", *, produced: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from po_assets.evaluation.gate import gate_table

    assert isinstance(console, Console)  # noqa: S101 - for the type checker
    rows = gate_table(layout) if produced else []
    if not rows:
        console.print("\nNo gate: the student was not evaluated in this run; what it needs did not pass.")
        return
    table = Table(title="Gate", title_justify="left", title_style="bold")
    for column in ("threshold", "required", "value", "verdict"):
        table.add_column(column, justify="right" if column in ("required", "value") else "left")
    for row in rows:
        word = "pass" if row.passed else ("FAIL" if row.severity == "ERROR" else "warn")
        color = {"pass": "green", "FAIL": "red", "warn": "yellow"}[word]
        table.add_row(row.name, row.required, row.value, f"[{color}]{word}[/{color}]")
    console.print()
    console.print(table)


def _materialized(result: "dg.ExecuteInProcessResult") -> set[str]:
    return {
        event.asset_key.to_user_string()
        for event in result.all_events
        if event.is_step_materialization and event.asset_key
    }


if __name__ == "__main__":
    sys.exit(main())
