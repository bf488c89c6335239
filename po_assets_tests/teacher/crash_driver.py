"""Runs a batch in a process that kills itself with SIGKILL at a chosen moment; for test_crash."""

import os
import signal
from pathlib import Path
from typing import Any

import openai  # noqa: F401  # loaded once by the fork server, so that each process starts at once
import stamina  # noqa: F401
from upath import UPath

from po_assets.storage import Layout, atomic
from po_assets.teacher import batch, journal, landing, run
from po_assets.teacher.progress import BatchProgress
from po_assets.teacher.settings import BatchPlan, resolve
from po_assets_tests.teacher.scenes import llm


def die(*_args: Any, **_options: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ask(root: Path, payloads: Path, url: str, moment: str = "", at: int = 1) -> None:
    """Ask and land; die at the `at`-th time that `moment` comes."""
    left = [at]

    def comes() -> bool:
        left[0] -= 1
        return left[0] == 0

    def dying(function: Any, *, before: bool = True) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            now = comes()
            if now and before:
                die()
            result = function(*args, **options)
            if now:
                die()
            return result

        return wrapped

    write = os.write

    def torn(file: int, line: bytes) -> int:
        if line.startswith(b'{"event":"done"') and comes():
            write(file, line[: len(line) // 2])
            die()
        return write(file, line)

    match moment:
        case "before a request is noted":
            journal.Journal.sent = dying(journal.Journal.sent)  # type: ignore[method-assign]
        case "in the middle of an answer's line":
            journal.os.write = torn  # type: ignore[assignment]
        case "before an answer is synced":
            journal.os.fsync = dying(journal.os.fsync)
        case "when an answer is on disk":
            batch.judge = dying(batch.judge)
        case "when a landing is announced":
            landing._publish = dying(landing._publish)
        case "while the file is written":
            atomic.publish_file = dying(atomic.publish_file)
        case "when the file has landed":
            journal.Journal.landed = dying(journal.Journal.landed)  # type: ignore[method-assign]
        case "before the ledger is written":
            run.write_ledger = dying(run.write_ledger)
    plan = BatchPlan(payloads=str(payloads))
    run.run_batch(resolve(llm(url), plan), plan, Layout(UPath(root)), BatchProgress(lambda _line: None))
