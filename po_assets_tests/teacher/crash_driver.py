"""Runs a batch in a process that is killed, or kills itself with SIGKILL at a chosen moment."""

import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import openai  # noqa: F401  # loaded once by the fork server, so that each process starts at once
from upath import UPath

from po_assets.storage import Layout, files
from po_assets.teacher import batch, journal, run
from po_assets.text import Progress
from po_assets_tests.processes import started
from po_assets_tests.teacher.scenes import Scene, llm


def start(scene: Scene, url: str, moment: str = "", at: int = 1, **settings: Any) -> BaseProcess:
    """A process that asks the scene's payloads, as `ask` does."""
    return started(ask, Path(str(scene.layout.root)), scene.path, url, moment, at, **settings)


def ask(root: Path, payloads: Path, url: str, moment: str = "", at: int = 1, **settings: Any) -> None:
    """Ask and land; die at the `at`-th time that `moment` comes."""
    left = [at]

    def dying(function: Any, *, after: bool = False) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if after:
                    function(*args, **options)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return wrapped

    class Dying(journal.sqlite3.Connection):
        """Dies when the statement that keeps an answer has been carried out and not been committed."""

        def executemany(self, sql: str, rows: Any) -> Any:
            answers = sql == journal._KEEP and any(row[journal._COLUMNS.index("answered_at")] for row in rows)
            return (dying(super().executemany, after=True) if answers else super().executemany)(sql, rows)

    moments: dict[str, tuple[Any, str]] = {
        "before a request is noted": (journal.Journal, "keep"),
        "when an answer is on disk": (batch, "score_attempt"),
        "when a landing is announced": (journal.Journal, "announce"),
        "while the file is written": (files, "publish_file"),
        "when the file has landed": (journal.Journal, "published"),
        "before the ledger is written": (run, "write_ledger"),
    }
    if moment == "in the middle of keeping an answer":
        connect = journal.sqlite3.connect
        journal.sqlite3.connect = lambda *args, **options: connect(*args, **options, factory=Dying)
    elif moment:
        owner, name = moments[moment]
        setattr(owner, name, dying(getattr(owner, name), after=name == "announce"))
    plan = run.BatchPlan(payloads=str(payloads))
    teacher = llm(url, batch_poll_seconds=0.05, **settings)
    run.run_batch(teacher, plan, Layout(UPath(root)), Progress(lambda _line: None))
