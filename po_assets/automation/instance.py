"""Dagster's instance, as every command of ours opens it.

Dagster makes its databases in an empty DAGSTER_HOME without keeping other processes away: two that start at the same
moment make the same tables, and one of them dies. So the first one makes them under a lock, and the others wait.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from sqlalchemy.exc import DBAPIError
from upath import UPath

from po_assets.errors import UserError
from po_assets.storage import lock
from po_assets.storage.layout import HOME_VARIABLE, OF_A_RUN, history_fault
from po_assets.text import shown


@contextlib.contextmanager
def opened_instance() -> Iterator[dg.DagsterInstance]:
    """The instance in DAGSTER_HOME, all its databases made: runs, index of the event log, schedules.

    Raises:
        UserError: Dagster's own database fails, now or in the block: the disk is full, or somebody took a right away.
            Or what its dagster.yaml names is not there.
    """
    home = os.environ[HOME_VARIABLE]
    try:
        with contextlib.ExitStack() as locked:
            # Where none can be had (another user's file, a disk without locks) all is as Dagster itself does it.
            with contextlib.suppress(OSError):
                locked.enter_context(lock(UPath(home) / ".history.lock", wait=True))
            instance = _opened(home)
        with instance:
            yield instance
    except (DBAPIError, sqlite3.Error) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"Dagster's history in {home} cannot be written to ({reason}). Make room there or get "
            "the right to write, then run again: what was finished is kept."
        ) from error


def _opened(home: str) -> dg.DagsterInstance:
    try:
        return dg.DagsterInstance.get()
    except (DBAPIError, sqlite3.Error):
        raise
    except Exception as error:
        # Every kind of storage has errors of its own; that of PostgreSQL hides the server's words behind its own.
        said = " ".join(str(error.__cause__ or error).split())
        fault = said.partition("Error 1: ")[2] or said  # of a configuration; before it stands all that it could hold
        raise UserError(
            f"Dagster's instance in {home} cannot be opened ({shown(fault, 300)}). Correct its dagster.yaml, or set "
            "the variable, or start the server, that it names."
        ) from error


def check_history() -> None:
    """See that Dagster can keep the history of a run.

    Raises:
        UserError: no folder is named, there is no room in it for the history of a run, or no right to write it.
    """
    if not (home := os.environ.get(HOME_VARIABLE)):
        raise UserError(
            f"{HOME_VARIABLE} is not set, the folder that keeps Dagster's history; `make ui` and `make ui-ray` set it."
        )
    if fault := history_fault(Path(home), OF_A_RUN):
        raise UserError(fault)
