"""The command line: `po-assets run` materializes the whole graph on the local instance and prints the gate.

It runs in this process, so that progress is seen as it happens; the UI shows the same run, checks and metadata.
"""

import argparse
import contextlib
import fcntl
import os
import sys
import time
import warnings
from collections.abc import Iterator
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
    _prepare_environment()
    import dagster as dg

    from po_assets.automation.jobs import main_job
    from po_assets.base_model import BaseModel, BaseModelError, require_hardware
    from po_assets.definitions import defs
    from po_assets.storage import Artifacts

    layout = Artifacts().layout
    started = time.monotonic()
    try:
        require_hardware(BaseModel().resolved())
    except BaseModelError as error:
        _say(str(error))
        return 1
    try:
        with _only_run_on(layout), dg.DagsterInstance.get() as instance:
            job = defs.resolve_job_def(main_job.name)
            _say(f"Materializing {main_job.name} into {layout.root} (instance {os.environ['DAGSTER_HOME']})")
            # Named here, because Dagster falls back to a logger of its own that prints every event.
            run_config: dict[str, Any] = {"loggers": {"console": {}}}
            result = job.execute_in_process(run_config=run_config, instance=instance, raise_on_error=False)
            return _report(result, layout, time.monotonic() - started)
    except BlockingIOError:
        _say(f"Another run writes to {layout.root} right now. Wait until it ends, then start this one again.")
        return 1


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the command line speaks on standard output


def _prepare_environment() -> None:
    # Dagster warns of previews and betas that the project uses on purpose.
    warnings.filterwarnings("ignore", module="dagster")
    # transformers warns itself of its own old names.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that wait by spinning make generation several times slower when another process wants the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    home = Path(os.environ.setdefault("DAGSTER_HOME", str(_REPOSITORY / "deploy" / "local")))
    home.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _only_run_on(layout: "Layout") -> Iterator[None]:
    """Hold the artifact root's lock.

    Raises:
        BlockingIOError: another process holds it.
    """
    from po_assets.storage.atomic import is_local

    if not is_local(layout.root):
        yield
        return
    layout.root.mkdir(parents=True, exist_ok=True)
    with Path(str(layout.root), ".run.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the kernel when the process ends, however it ends
        yield


def _report(result: "dg.ExecuteInProcessResult", layout: "Layout", seconds: float) -> int:
    from rich.console import Console

    console = Console(width=120, highlight=False)
    failed = [check for check in result.get_asset_check_evaluations() if not check.passed]
    errors = [check for check in failed if check.severity.value == "ERROR"]
    console.print()
    for title, checks in (("Failed checks", errors), ("Warnings", [check for check in failed if check not in errors])):
        if checks:
            console.print(f"[bold]{title}[/bold]")
        for check in checks:
            text = " ".join((check.description or "no description").replace("**", "").split())
            console.print(f"  {check.asset_key.to_user_string()}: {check.check_name}", markup=False)
            console.print(f"    {text}", markup=False)
    for event in result.all_events:
        if event.event_type_value == "STEP_FAILURE" and not _is_failed_check(event):
            console.print(f"[bold]Step {event.step_key} failed[/bold]")
            console.print(f"  {_reason(event)}", markup=False)
    produced = "eval_report" in _materialized(result)
    _print_gate(console, layout, produced=produced)
    passed = result.success and not errors
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


def _is_failed_check(event: "dg.DagsterEvent") -> bool:
    return "DagsterAssetCheckFailedError" in _error_text(event)


def _reason(event: "dg.DagsterEvent") -> str:
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return data.user_failure_data.description
    return _error_text(event)


def _error_text(event: "dg.DagsterEvent") -> str:
    error = event.step_failure_data.error
    if error is None:
        return "no reason was recorded"
    innermost = error.cause or error
    return innermost.message.strip()


if __name__ == "__main__":
    sys.exit(main())
