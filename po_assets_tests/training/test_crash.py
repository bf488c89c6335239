"""Kill -9 at many moments: the next run ends with the same adapter as an uninterrupted one, and nothing is ever half there."""

import multiprocessing
import os
import random
import shutil
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from po_assets.storage import Layout, read_manifest
from po_assets.training.student import adapter_problem
from po_assets_tests.training import crash_driver
from po_assets_tests.training.tiny_training import PAIRS, UNLIKE_PAIRS, write_supervised

FILES = ("adapter_model.safetensors", "adapter_config.json")


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["po_assets_tests.training.crash_driver"])
    return context


def start(
    processes: multiprocessing.context.ForkServerContext, root: Path, moment: str = "", at: int = 1, **options: bool
) -> BaseProcess:
    process = processes.Process(target=crash_driver.make, args=(root, moment, at), kwargs=options)
    process.start()
    return process


def adapter_bytes(layout: Layout) -> list[bytes]:
    return [(layout.adapter / name).read_bytes() for name in FILES]


def log(root: Path) -> str:
    return (root / "log.txt").read_text()


@pytest.fixture
def expected(processes: multiprocessing.context.ForkServerContext, layout: Layout, tmp_path: Path) -> list[bytes]:
    """The files of an uninterrupted training in the same place, whose traces are then removed."""
    root = Path(str(layout.root))
    process = start(processes, root)
    process.join(120)
    assert process.exitcode == 0
    files = adapter_bytes(layout)
    shutil.rmtree(root / "models")
    (root / "log.txt").unlink()
    return files


def slow(*values: object) -> Any:
    """Values of the slow tests: each kill takes three trainings."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("moment", "at", "resumed"),
    [
        slow("during a step", 1, 0),
        ("during a step", 10, 2),
        slow("during a step", 22, 5),
        slow("while a checkpoint is written", 1, 0),
        slow("while a checkpoint is written", 4, 3),
        slow("while one is written beside the training", 1, 0),
        slow("while one is written beside the training", 2, 1),
        slow("between the renames of a checkpoint", 3, 2),
        ("while the adapter is written", 1, 6),
        slow("before the adapter's manifest", 1, 6),
    ],
)
def test_killed_training_resumes_to_the_same_adapter(  # noqa: PLR0917
    processes: multiprocessing.context.ForkServerContext,
    layout: Layout,
    expected: list[bytes],
    moment: str,
    at: int,
    resumed: int,
):
    """Killed there, no adapter is visible; run again, it goes on from the last whole checkpoint."""
    root = Path(str(layout.root))
    killed = start(processes, root, moment, at)
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    assert not layout.adapter.exists()
    again = start(processes, root)
    again.join(120)
    assert again.exitcode == 0
    assert f"resumed at {resumed}\n" in log(root)
    assert adapter_bytes(layout) == expected
    assert adapter_problem(layout.adapter) is None
    leftovers = [p.name for p in (root / "models").rglob("*") if "step-" in p.name]
    assert leftovers == []


@pytest.mark.parametrize(
    ("moment", "at"), [slow("while a checkpoint is written", 9), ("while the adapter is written", 1)]
)
def test_killed_training_keeps_its_choice_of_the_best(
    processes: multiprocessing.context.ForkServerContext, layout: Layout, moment: str, at: int
):
    """The step of the lowest validation loss lies before the kill; its matrices are published all the same."""
    root = Path(str(layout.root))
    write_supervised(layout, UNLIKE_PAIRS)
    start(processes, root, best=True).join(120)
    whole, manifest = adapter_bytes(layout), read_manifest(layout.adapter)
    shutil.rmtree(root / "models")
    killed = start(processes, root, moment, at, best=True)
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    assert not layout.adapter.exists()
    again = start(processes, root, best=True)
    again.join(120)
    assert again.exitcode == 0
    made = read_manifest(layout.adapter)
    assert made
    assert manifest
    assert made.extra["resumed_at"] >= 8 > made.extra["published_step"] == manifest.extra["published_step"]
    assert adapter_bytes(layout) == whole


def test_killed_after_publication_nothing_is_trained_again(
    processes: multiprocessing.context.ForkServerContext, layout: Layout, expected: list[bytes]
):
    """The adapter is whole; the next run sees that and only tidies up."""
    root = Path(str(layout.root))
    killed = start(processes, root, "after the adapter is published")
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    again = start(processes, root)
    again.join(120)
    assert "done, unchanged=True" in log(root)
    assert adapter_bytes(layout) == expected
    assert list(layout.checkpoints.iterdir()) == []


def test_a_stopped_training_goes_on_to_the_same_adapter(
    processes: multiprocessing.context.ForkServerContext, layout: Layout, expected: list[bytes]
):
    """SIGSTOP in the middle, SIGCONT: nothing is lost and nothing is done twice."""
    root = Path(str(layout.root))
    process = start(processes, root)
    assert process.pid is not None
    while not (root / "log.txt").exists() or "step 1/" not in log(root):
        process.join(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        process.join(0.01)
    os.kill(process.pid, signal.SIGCONT)
    process.join(120)
    assert process.exitcode == 0
    assert "done, unchanged=False, resumed at 0" in log(root)
    assert adapter_bytes(layout) == expected


def test_killed_again_and_again_at_random_times(
    processes: multiprocessing.context.ForkServerContext, layout: Layout, expected: list[bytes]
):
    """Twelve kills after a random time each, wherever that is; whatever is published in between is whole."""
    root = Path(str(layout.root))
    moments = random.Random(5)
    for _ in range(12):
        process = start(processes, root)
        process.join(moments.uniform(0.05, 1.2))
        process.kill()
        process.join(60)
        if layout.adapter.exists():
            assert adapter_problem(layout.adapter) is None
    last = start(processes, root)
    last.join(120)
    assert last.exitcode == 0
    assert adapter_bytes(layout) == expected


@pytest.mark.parametrize(
    ("moment", "replaced"),
    [
        slow("while the adapter is written", False),
        slow("before the adapters change places", False),
        ("after the adapters changed places", True),
    ],
)
def test_a_killed_retraining_leaves_the_previous_adapter(
    processes: multiprocessing.context.ForkServerContext, layout: Layout, moment: str, *, replaced: bool
):
    """New data, killed while the new adapter takes its place: the old or the new one is there, whole."""
    root = Path(str(layout.root))
    start(processes, root).join(120)
    before = read_manifest(layout.adapter)
    write_supervised(layout, PAIRS[::-1])
    killed = start(processes, root, moment)
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    assert (read_manifest(layout.adapter) != before) is replaced
    assert adapter_problem(layout.adapter) is None
