"""Processes that a test kills or that train side by side: forked from one server that has loaded the heavy libraries.

And a port for one that serves.
"""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from typing import Any

DRIVERS = ["po_assets_tests.training.crash_driver", "po_assets_tests.teacher.crash_driver"]
"""Imported by the server, which is one for all tests of a worker: who starts it first decides for the others."""


def started(target: Callable[..., None], *arguments: Any, **options: Any) -> BaseProcess:
    """A process in which `target` runs, in this process's environment of now."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(DRIVERS)
    process = context.Process(target=_run, args=(dict(os.environ), target, arguments, options))
    process.start()
    return process


def assert_killed(process: BaseProcess) -> None:
    """Wait for its end, which is no other."""
    process.join(180)
    assert process.exitcode == -signal.SIGKILL, f"it ended with {process.exitcode}"


def _run(
    environment: Mapping[str, str], target: Callable[..., None], arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """The server's environment is that of the moment at which it was started."""
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments, **options)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
