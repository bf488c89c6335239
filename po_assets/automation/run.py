"""`po-assets run`, `ui` and `init`: the graph from the command line, on the repository's data or on one's own.

A run takes place in the command's own process, so that progress is seen as it happens; the UI shows the same run,
checks and metadata.
"""

import argparse
import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import dagster as dg
from rich.console import Console
from rich.table import Table

from po_assets.automation.catch_up import root_tag
from po_assets.automation.executors import NEVER_RETRIED, end_orphaned_runs, hold_root, process_tag
from po_assets.automation.instance import check_history, opened_instance
from po_assets.automation.jobs import main_job
from po_assets.automation.project import (
    REPOSITORY,
    SETTINGS_VARIABLE,
    enter_project,
    make_project,
    open_project,
    read_settings,
)
from po_assets.automation.run_summary import run_summary
from po_assets.dag import Artifacts, read_gate
from po_assets.errors import UserError
from po_assets.evaluation.gate import gate_path, verdict_rows
from po_assets.model import BaseModel, require_hardware
from po_assets.storage import Layout, LockedError
from po_assets.storage.layout import HOME_VARIABLE
from po_assets.text import say


def add_run(parser: argparse.ArgumentParser) -> None:
    """The command `po-assets run`."""
    parser.description = f"{parser.description} Exit status: 0 passed, 1 failed, 2 wrong use."
    _add_data(parser)
    parser.set_defaults(handle=_run)


def add_ui(parser: argparse.ArgumentParser) -> None:
    """The command `po-assets ui`."""
    _add_data(parser)
    parser.add_argument(
        "--port", type=int, default=3000, help="on 127.0.0.1; 0 takes a free one (default: %(default)s)"
    )
    parser.set_defaults(handle=_ui)


def add_init(parser: argparse.ArgumentParser) -> None:
    """The command `po-assets init`."""
    parser.add_argument("folder", type=Path, help="it may exist; what is in it stays")
    parser.set_defaults(handle=_init)


def add_project(parser: argparse.ArgumentParser) -> None:
    """Let a command work on a project's artifacts and settings, as `run` does; `options.spec` is its base model."""
    _add_data(parser, "a project's folder, with its artifacts and settings.yaml (PO_ARTIFACTS_ROOT wins)")
    handle = parser.get_default("handle")

    def on_project(options: argparse.Namespace) -> int:
        own_status = options.error_status
        _enter(options, enter_project)
        # What else stands in the settings, such as a prompt's file that is gone, is no matter of these commands.
        given = read_settings(os.environ.get(SETTINGS_VARIABLE), {"base_model": BaseModel}, partly=True)
        options.spec = BaseModel(**given["base_model"])
        options.error_status = own_status
        return int(handle(options))

    parser.set_defaults(handle=on_project)


_DATA = (
    "your own rows (*.jsonl there or in incoming/) and evaluation cases (in cases/, or files whose name contains "
    "'cases'; .jsonl or .yaml). Artifacts go to FOLDER, when `po-assets init` made it, else to FOLDER/artifacts; "
    "PO_ARTIFACTS_ROOT and DAGSTER_HOME win"
)


def _add_data(parser: argparse.ArgumentParser, folder: str = _DATA) -> None:
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=folder)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.yaml",
        help="settings, with resources as keys: `selection: {min_score: 0.7}` (default: settings.yaml in FOLDER)",
    )


def _init(options: argparse.Namespace) -> int:
    folder = shlex.quote(str(options.folder))
    made = make_project(options.folder, options.location().SETTINGS)
    say("\n".join(f"made {path}" for path in made) or f"{options.folder} is a project already.")
    say(
        f"Put rows into {options.folder / 'incoming'} (*.jsonl) and evaluation cases into {options.folder / 'cases'}, "
        f"then:\n  po-assets run --data {folder}\n  po-assets ui --data {folder}"
    )
    return 0


def _prepare(options: argparse.Namespace) -> None:
    """Point this process to data, settings and instance; wrong use until this is done."""
    _enter(options, open_project)
    _find_instance()
    check_history()


def _enter(options: argparse.Namespace, enter: Callable[[Path, Path | None], object]) -> None:
    options.error_status = 2 if options.data or options.config else options.error_status
    if options.config and not options.config.is_file():
        raise UserError(f"The settings {options.config} do not exist.")
    if options.data:
        enter(options.data, options.config)
    elif options.config:
        os.environ[SETTINGS_VARIABLE] = str(options.config.resolve())


def _ui(options: argparse.Namespace) -> NoReturn:
    """Become Dagster's webserver, daemon and code server; they end with Ctrl-C, or as this process is told to."""
    from po_assets.serving.server import free_port

    port = str(free_port(options.port))  # on one that is taken, daemons that launch runs would go on without a UI
    _prepare(options)
    with opened_instance():  # Dagster's own processes, which all open it at once, take no lock to make its databases
        pass
    os.environ["PYTHONSAFEPATH"] = "1"  # a gql.py in the folder where this is started is not Dagster's
    command = [sys.executable, "-m", "dagster", "dev", "--module-name", "po_assets.definitions"]
    command += ["--working-directory", str(REPOSITORY), "--host", "127.0.0.1", "--port", port]
    # A background job of a script starts with SIGINT ignored; Dagster would then ignore SIGTERM, too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execv(sys.executable, command)  # noqa: S606


def _run(options: argparse.Namespace) -> int:
    """Materialize the graph; 0 only when every step succeeded and no ERROR check failed."""
    _prepare(options)
    code = options.location()
    require_hardware(BaseModel(**code.given["base_model"]).resolved())
    layout = Artifacts().layout
    options.error_status = 1
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_root(layout))
        except LockedError as error:
            raise UserError(
                f"Another run writes to {layout.root} right now ({error}). Wait until it ends, then start this again."
            ) from error
        instance = stack.enter_context(opened_instance())
        for run_id in end_orphaned_runs(instance):
            say(f"Run {run_id[:8]} counted as running, but its process is gone; it is marked as failed.")
        job = code.defs.resolve_job_def(main_job.name)
        say(f"Materializing {main_job.name} into {layout.root} (instance {os.environ[HOME_VARIABLE]})")
        # Named here, because Dagster falls back to a logger of its own that prints every event.
        run_config: dict[str, Any] = {"loggers": {"console": {}}}
        # Who started it here is looking at it: the daemon of an open UI is not to start it again.
        tags = {**process_tag(), **root_tag(layout), **NEVER_RETRIED}
        result = job.execute_in_process(run_config=run_config, instance=instance, raise_on_error=False, tags=tags)
    given = [(name, value) for name in ("--data", "--config") if (value := vars(options)[name[2:]])]
    ui = " ".join(["po-assets ui", *(f"{name} {shlex.quote(str(value))}" for name, value in given)])
    return _report(result, layout, time.monotonic() - started, ui if given else "make ui")


def _find_instance() -> None:
    """Point `DAGSTER_HOME` to the repository's instance where nothing else is said."""
    settings = REPOSITORY / "deploy" / "local" / "dagster.yaml"
    given = os.environ.get(HOME_VARIABLE)
    if not given and not settings.is_file():
        raise UserError(
            f"{HOME_VARIABLE} is not set, and the installed package brings no instance of its own. Make a project with "
            "`po-assets init FOLDER`, and use `--data FOLDER`; or set it to a folder that keeps Dagster's history, for "
            f"example: export {HOME_VARIABLE}=~/dagster_home. (PO_ARTIFACTS_ROOT says where the artifacts are.)"
        )
    home = Path(given).expanduser() if given else settings.parent
    if not home.is_absolute():
        raise UserError(
            f"{HOME_VARIABLE} is {given!r}; it has to be an absolute path, {str(home.resolve())!r} for example."
        )
    os.environ[HOME_VARIABLE] = str(home)


def _report(result: dg.ExecuteInProcessResult, layout: Layout, seconds: float, ui: str) -> int:
    console = Console(width=120, highlight=False, emoji=False)  # `:key:` in a name is none
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
    produced = any(
        event.asset_key == dg.AssetKey("eval_report") for event in result.all_events if event.is_step_materialization
    )
    _print_gate(console, layout, produced=produced)
    passed = result.success and not summary.errors
    verdict = "[green]The run passed[/green]" if passed else "[red]The run failed[/red]"
    console.print(f"\n{verdict} after {seconds / 60:.1f} minutes.")
    if produced:
        console.print(f"Report: {layout.report_html}", markup=False, soft_wrap=True)  # to be copied in one piece
    console.print(f"UI, with every check, its table and pictures: {ui}", markup=False, soft_wrap=True)
    return 0 if passed else 1


def _print_gate(console: Console, layout: Layout, *, produced: bool) -> None:
    record = read_gate(gate_path(layout)) if produced else None
    if record is None:
        console.print("\nNo gate: the student was not evaluated in this run; what it needs did not pass.")
        return
    rows = verdict_rows(record)
    table = Table(title="Gate", title_justify="left", title_style="bold")
    for column in rows[0]:
        table.add_column(column, justify="right" if column in ("required", "value") else "left")
    for row in rows:
        color = {"pass": "green", "FAIL": "red", "-": "dim"}.get(row["verdict"], "yellow")
        table.add_row(row["criterion"], row["required"], row["value"], f"[{color}]{row['verdict']}[/{color}]")
    console.print()
    console.print(record.context["sentence"], style="bold", markup=False)
    console.print(table)
