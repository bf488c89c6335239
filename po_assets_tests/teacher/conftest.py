"""A root with payloads, and processes that run batches over them."""

from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from po_assets_tests.processes import started
from po_assets_tests.teacher import crash_driver
from po_assets_tests.teacher.scenes import Scene

Start = Callable[..., BaseProcess]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture(scope="session")
def start() -> Start:
    """Starts a process that asks the scene's payloads of a server, as `crash_driver.ask` does."""

    def start(scene: Scene, url: str, moment: str = "", at: int = 1, **settings: Any) -> BaseProcess:
        return started(crash_driver.ask, Path(str(scene.layout.root)), scene.path, url, moment, at, **settings)

    return start
