"""Whether Dagster can keep its history in DAGSTER_HOME; asked before the UI, a run and a step start.

What fills the disk while Dagster itself writes there ends in its own traceback, which nothing here can reach: so there
is to be room before.
"""

import os
import shutil
import tempfile
from pathlib import Path

HOME_VARIABLE = "DAGSTER_HOME"
OF_A_RUN = 50_000_000
"""Bytes that the history of a run may take, with room to spare."""
OF_A_STEP = 10_000_000
"""Bytes that the events of a step may take, its failure among them, with room to spare."""


def history_fault(home: Path, needed: int) -> str | None:
    """Why no more than `needed` bytes can be written to `home`, and what to do; None where they can. Makes the folder.

    Dagster's folders and databases in it are looked at too: those of a run as root are closed to everybody else.
    """
    way_out = f"or set {HOME_VARIABLE} to a folder of your own on another disk"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as probe:
            probe.write(b"x")
        free = shutil.disk_usage(home).free
    except OSError as error:
        there = next(folder for folder in (home, *home.parents) if os.path.lexists(folder))
        return (
            f"{HOME_VARIABLE} {home} cannot be written to ({error.strerror or error}), and Dagster keeps its history "
            f"there. {_owner(there)}Get the right to write there, {way_out}."
        )
    for path in (home, *home.glob("[!.]*/"), *home.glob("*/*.db"), *home.glob("history/runs")):
        if not os.access(path, os.W_OK):
            return (
                f"{path} in {HOME_VARIABLE} is closed to user {os.geteuid()}, and Dagster keeps its history there. "
                f"{_owner(path)}Get the right to write there (chown -R), {way_out}."
            )
    if free < needed:
        return (
            f"{HOME_VARIABLE} {home} has {free / 1e6:.0f} MB of free disk, and Dagster's history needs up to "
            f"{needed / 1e6:.0f} MB. Make room, {way_out}."
        )
    return None


def step_history_fault() -> str | None:
    """The same before a step, where this process keeps a history on a disk of its own."""
    home = Path(os.environ.get(HOME_VARIABLE, ""))
    return history_fault(home, OF_A_STEP) if home.is_absolute() and (home / "history").is_dir() else None


def _owner(path: Path) -> str:
    return f"'{path}' belongs to user {path.lstat().st_uid}. "
