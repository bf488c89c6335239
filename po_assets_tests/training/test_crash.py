"""Kill -9 at many moments: the next run ends with the same adapter as an uninterrupted one, and nothing is ever half there."""

import os
import random
import shutil
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from safetensors.torch import load

from po_assets.storage import Layout, Manifest, read_manifest
from po_assets.training.student import adapter_problem
from po_assets_tests.processes import assert_killed, started
from po_assets_tests.training import crash_driver
from po_assets_tests.training.tiny_training import PAIRS, UNLIKE_PAIRS, make_artifacts, write_supervised

MATRICES, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def start(root: Path, moment: str = "", at: int = 1, **options: bool) -> BaseProcess:
    return started(crash_driver.make, root, moment, at, **options)


def finished(root: Path, **options: bool) -> None:
    """A training, or the rest of one, that comes to its end."""
    process = start(root, **options)
    process.join(120)
    assert process.exitcode == 0


def differences(layout: Layout, expected: "Trained") -> list[str]:
    """The files that differ in a byte from those of an uninterrupted training; of matrices which, and by how much at most."""
    folders = (expected.models / layout.adapter.name, layout.adapter)
    other = [name for name in (MATRICES, CONFIG) if len({(folder / name).read_bytes() for folder in folders}) > 1]
    if MATRICES in other:
        there, here = (load((folder / MATRICES).read_bytes()) for folder in folders)
        changed = [name for name in there if not there[name].equal(here[name])]
        other += [f"{name}: {(there[name] - here[name]).abs().max():.1e}" for name in changed]
    return other


def log(root: Path) -> str:
    return (root / "log.txt").read_text()


class Trained(NamedTuple):
    """What an uninterrupted training published, and its folder `models`."""

    manifest: Manifest | None
    models: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """The place of all trainings here: the path of the base model is in what they publish."""
    return make_artifacts(tmp_path_factory.mktemp("crash") / "artifacts")


@pytest.fixture
def layout(place: Layout) -> Layout:
    """The place as it was before the first training."""
    return tidied(place)


def tidied(place: Layout) -> Layout:
    root = Path(str(place.root))
    shutil.rmtree(root / "models", ignore_errors=True)
    (root / "log.txt").unlink(missing_ok=True)
    write_supervised(place, PAIRS)
    return place


@pytest.fixture(scope="module")
def expected(place: Layout, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What an uninterrupted training publishes."""
    return uninterrupted(tidied(place), tmp_path_factory.mktemp("expected"))


@pytest.fixture(scope="module")
def best(place: Layout, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What one publishes that chooses the matrices of the lowest validation loss."""
    write_supervised(tidied(place), UNLIKE_PAIRS)
    return uninterrupted(place, tmp_path_factory.mktemp("best"), best=True)


def uninterrupted(place: Layout, kept: Path, **options: bool) -> Trained:
    root = Path(str(place.root))
    finished(root, **options)
    models = shutil.copytree(root / "models", kept / "models")
    return Trained(read_manifest(place.adapter), models)


def slow(*values: object) -> Any:
    """Values of the slow tests: each kill takes two trainings."""
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
def test_killed_training_resumes_to_the_same_adapter(
    layout: Layout, expected: Trained, moment: str, at: int, resumed: int
):
    """Killed there, no adapter is visible; run again, it goes on from the last whole checkpoint."""
    root = Path(str(layout.root))
    assert_killed(start(root, moment, at))
    assert not layout.adapter.exists()
    finished(root)
    assert f"resumed at {resumed}\n" in log(root)
    assert differences(layout, expected) == []
    assert adapter_problem(layout.adapter) is None
    leftovers = [p.name for p in (root / "models").rglob("*") if "step-" in p.name]
    assert leftovers == []


@pytest.mark.parametrize(
    ("moment", "at"), [slow("while a checkpoint is written", 9), ("while the adapter is written", 1)]
)
def test_killed_training_keeps_its_choice_of_the_best(layout: Layout, best: Trained, moment: str, at: int):
    """The step of the lowest validation loss lies before the kill; its matrices are published all the same."""
    root = Path(str(layout.root))
    write_supervised(layout, UNLIKE_PAIRS)
    assert_killed(start(root, moment, at, best=True))
    assert not layout.adapter.exists()
    finished(root, best=True)
    made = read_manifest(layout.adapter)
    assert made
    assert best.manifest
    assert made.extra["resumed_at"] >= 8 > made.extra["published_step"] == best.manifest.extra["published_step"]
    assert differences(layout, best) == []


def test_killed_after_publication_nothing_is_trained_again(layout: Layout, expected: Trained):
    """The adapter is whole; the next run sees that and only tidies up."""
    root = Path(str(layout.root))
    assert_killed(start(root, "after the adapter is published"))
    finished(root)
    assert "done, unchanged=True" in log(root)
    assert differences(layout, expected) == []
    assert list(layout.checkpoints.iterdir()) == []


def test_a_stopped_training_goes_on_to_the_same_adapter(layout: Layout, expected: Trained):
    """SIGSTOP in the middle, SIGCONT: nothing is lost and nothing is done twice."""
    root = Path(str(layout.root))
    process = start(root)
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
    assert differences(layout, expected) == []


@pytest.mark.slow
def test_killed_again_and_again_at_random_times(layout: Layout, expected: Trained):
    """Twelve kills after a random time each, wherever that is; whatever is published in between is whole."""
    root = Path(str(layout.root))
    moments = random.Random(5)
    for _ in range(12):
        process = start(root)
        process.join(moments.uniform(0.05, 1.2))
        process.kill()
        process.join(60)
        if layout.adapter.exists():
            assert adapter_problem(layout.adapter) is None
    finished(root)
    assert differences(layout, expected) == []


@pytest.mark.parametrize(
    ("moment", "replaced"),
    [
        slow("while the adapter is written", False),
        slow("before the adapters change places", False),
        ("after the adapters changed places", True),
    ],
)
def test_a_killed_retraining_leaves_the_previous_adapter(
    layout: Layout, expected: Trained, moment: str, *, replaced: bool
):
    """New data, killed while the new adapter takes its place: the old or the new one is there, whole."""
    root = Path(str(layout.root))
    shutil.copytree(expected.models, root / "models")
    before = read_manifest(layout.adapter)
    assert before
    write_supervised(layout, PAIRS[::-1])
    assert_killed(start(root, moment))
    assert (read_manifest(layout.adapter) != before) is replaced
    assert adapter_problem(layout.adapter) is None
