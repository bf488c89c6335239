"""Distil a large teacher LLM into a small Product Owner student: every command of the project.

A command is one row of `COMMANDS`: the function that fills in its parser, and its line of help. Only the module of the
command that was given is imported, so that `--help` answers at once. The function adds arguments and sets the default
`handle`, which takes the parsed options and returns the exit status:

    def add_review(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--root")
        parser.set_defaults(handle=land)

A `UserError` becomes a line on standard error here and nowhere else; the exit status is then 1, or the default
`error_status` that the parser was given.
"""

import argparse
import contextlib
import importlib
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from po_assets.errors import UserError

if TYPE_CHECKING:
    import dagster as dg

    from po_assets.storage import Layout

_REPOSITORY = Path(__file__).resolve().parents[1]

COMMANDS = {
    "run": ("po_assets.cli:add_run", "materialize the whole graph with its checks, then print the gate"),
    "base-model": ("po_assets.cli:add_base_model", "bring the profile's base model onto this machine ahead of a run"),
    "rescore": (
        "po_assets.evaluation.evaluate:add_rescore",
        "score answers made elsewhere, with the same metric and gate",
    ),
    "ui-ray": ("po_assets.automation.ray:add_ui_ray", "Ray on this machine, and the Dagster UI on it"),
    "sample-data": ("po_assets.cli:add_sample_data", "write the committed sample data anew"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `po-assets`; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="po-assets", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (where, line) in COMMANDS.items():
        command = commands.add_parser(name, help=line, description=f"{line[0].upper()}{line[1:]}.")
        if name in given[:1]:
            module, _, function = where.partition(":")
            getattr(importlib.import_module(module), function)(command)
    options = parser.parse_args(given)
    _prepare_environment()
    try:
        return int(options.handle(options))
    except UserError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return int(getattr(options, "error_status", 1))


def _prepare_environment() -> None:
    """Set what libraries look at when they are imported."""
    # Dagster warns of previews and betas that the project uses on purpose, transformers of its own old names.
    warnings.filterwarnings("ignore", module="dagster")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that wait by spinning make generation several times slower when another process wants the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def add_base_model(parser: argparse.ArgumentParser) -> None:
    """For images and shared volumes."""
    parser.description = (
        f"{parser.description} PO_PROFILE chooses the profile. With PO_ARTIFACTS_ROOT in an object store the embedded "
        "model goes to the user's cache."
    )
    parser.set_defaults(handle=_base_model)


def _base_model(_options: argparse.Namespace) -> int:
    from po_assets.dag import Artifacts
    from po_assets.model import BaseModel, ensure_base_model

    _say(str(ensure_base_model(BaseModel().resolved(), Artifacts().layout)))
    return 0


def add_sample_data(parser: argparse.ArgumentParser) -> None:
    """For whoever changes the generator."""
    parser.add_argument("--root", type=Path, default=Path("artifacts"), help="artifacts root (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="seed of all draws (default: the one of the committed files)")
    parser.set_defaults(handle=_sample_data)


def _sample_data(options: argparse.Namespace) -> int:
    from po_assets.sample_data.landing import SEED, write_sample_data

    seed = SEED if options.seed is None else options.seed
    for path, rows in write_sample_data(options.root, seed).items():
        _say(f"{path}: {rows} rows")
    return 0


def add_run(parser: argparse.ArgumentParser) -> None:
    """It runs in this process, so that progress is seen as it happens; the UI shows the same run."""
    parser.set_defaults(handle=_run)


def _run(_options: argparse.Namespace) -> int:
    """Materialize the graph; 0 only when every step succeeded and no ERROR check failed."""
    _find_instance()
    import dagster as dg

    from po_assets.automation.executors import NEVER_RETRIED, end_orphaned_runs, hold_root, process_tag
    from po_assets.dag import Artifacts
    from po_assets.model import BaseModel, require_hardware
    from po_assets.storage import LockedError

    try:
        from po_assets.definitions import defs, main_job  # reads the environment: PO_GPUS, PO_NUM_WORKERS, PO_EXECUTOR
    except ValueError as error:
        raise UserError(str(error)) from error

    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        require_hardware(BaseModel().resolved())
        layout = Artifacts().layout
        try:
            stack.enter_context(hold_root(layout))
        except LockedError as error:
            raise UserError(
                f"Another run writes to {layout.root} right now ({error}). Wait until it ends, then start this again."
            ) from error
        instance = stack.enter_context(dg.DagsterInstance.get())
        for run_id in end_orphaned_runs(instance):
            _say(f"Run {run_id[:8]} counted as running, but its process is gone; it is marked as failed.")
        job = defs.resolve_job_def(main_job.name)
        _say(f"Materializing {main_job.name} into {layout.root} (instance {os.environ['DAGSTER_HOME']})")
        # Named here, because Dagster falls back to a logger of its own that prints every event.
        run_config: dict[str, Any] = {"loggers": {"console": {}}}
        # Who started it here is looking at it: the daemon of an open UI is not to start it again.
        tags = {**process_tag(), **NEVER_RETRIED}
        result = job.execute_in_process(run_config=run_config, instance=instance, raise_on_error=False, tags=tags)
        return _report(result, layout, time.monotonic() - started)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the command line speaks on standard output


def _find_instance() -> None:
    """Point `DAGSTER_HOME` to the repository's instance where nothing else is said."""
    settings = _REPOSITORY / "deploy" / "local" / "dagster.yaml"
    given = os.environ.get("DAGSTER_HOME")
    if not given and not settings.is_file():
        raise UserError(
            "DAGSTER_HOME is not set, and the installed package brings no instance of its own. Set it to a folder that "
            "keeps Dagster's history, for example: export DAGSTER_HOME=~/dagster_home, and copy deploy/local/"
            "dagster.yaml of the repository into it. (PO_ARTIFACTS_ROOT says where the artifacts are.)"
        )
    home = Path(given).expanduser() if given else settings.parent
    if not home.is_absolute():
        raise UserError(
            f"DAGSTER_HOME is {given!r}; it has to be an absolute path, {str(home.resolve())!r} for example."
        )
    os.environ["DAGSTER_HOME"] = str(home)
    home.mkdir(parents=True, exist_ok=True)


def _report(result: "dg.ExecuteInProcessResult", layout: "Layout", seconds: float) -> int:
    from rich.console import Console

    from po_assets.automation.run_summary import run_summary

    console = Console(width=120, highlight=False)
    summary = run_summary(result.all_events)
    console.print()
    for title, checks in (("Failed checks", summary.errors), ("Warnings", summary.warnings)):
        if checks:
            console.print(f"[bold]{title}[/bold]")
        for check in checks:
            console.print(f"  {check.asset}: {check.name}", markup=False)
            console.print(f"    {check.plain}", markup=False)
    for step, reason in summary.steps:
        console.print(f"[bold]Step {step} failed[/bold]")
        console.print(f"  {reason}", markup=False)
    if summary.refusal:
        console.print("[bold]The run was refused[/bold]")
        console.print(f"  {summary.refusal}", markup=False)
    produced = "eval_report" in _materialized(result)
    _print_gate(console, layout, produced=produced)
    passed = result.success and not summary.errors
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
    for column in rows[0]:
        table.add_column(column, justify="right" if column in ("required", "value") else "left")
    for row in rows:
        color = {"pass": "green", "FAIL": "red"}.get(row["verdict"], "yellow")
        table.add_row(row["criterion"], row["required"], row["value"], f"[{color}]{row['verdict']}[/{color}]")
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
