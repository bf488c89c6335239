import errno
import functools
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from upath import UPath

from po_assets.storage.files import POINTER
from po_assets.training import checkpoints as checkpoints_module
from po_assets.training import training
from po_assets.training.checkpoints import KEPT, Checkpoint, CheckpointStore, StepRecord
from po_assets_tests.training.tiny_training import FULL_DISK, OVERFITTING, UNLIKE_PAIRS, Run, run_training, tiny_rows


class Interrupted(BaseException):
    """Stands for whatever ends a process in the middle."""


def store(folder: Path | UPath, digest: str = "this") -> tuple[CheckpointStore, list[str]]:
    lines: list[str] = []
    return CheckpointStore(folder, digest, lines.append), lines


def checkpoint(step: int) -> Checkpoint:
    record = StepRecord(step, 9, 0.5, 1.5, 1e-3, 1.0, 10, 5, 0.1, 0.2)
    return Checkpoint(step, {"parameter.a": torch.full((3,), float(step))}, [record] * step)


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt the training after the checkpoint of a step."""
    save = CheckpointStore.save

    def save_and_stop(self: CheckpointStore, saved: Checkpoint, **options: bool) -> None:
        save(self, saved, **options)
        if saved.step == step:
            raise Interrupted

    monkeypatch.setattr(training.CheckpointStore, "save", save_and_stop)


@functools.cache
def uninterrupted(tiny: Path, *, fast: bool, overfitting: bool) -> Run:
    """What the same training comes to, whose end does not depend on where others stop."""
    return train(tiny, fast=fast, overfitting=overfitting)


def train(tiny: Path, checkpoints: CheckpointStore | None = None, *, fast: bool, overfitting: bool) -> Run:
    settings = {"fast_path": fast, "dropout": 0.1, "checkpoint_seconds": 0.0, **(OVERFITTING if overfitting else {})}
    return run_training(tiny, checkpoints, tiny_rows(tiny, UNLIKE_PAIRS), **settings)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("step", "overfitting"), [(1, False), (3, False), (5, False), (2, True), (9, True)])
def test_a_resumed_run_equals_an_uninterrupted_one(  # noqa: PLR0917
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, overfitting: bool, fast: bool
):
    """Matrices to the last bit, losses, and with `keep_best` the same step's matrices, wherever it stopped."""
    whole = uninterrupted(tiny, fast=fast, overfitting=overfitting)
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        with pytest.raises(Interrupted):
            train(tiny, store(tmp_path)[0], fast=fast, overfitting=overfitting)
    checkpoints, lines = store(tmp_path)
    resumed = train(tiny, checkpoints, fast=fast, overfitting=overfitting)
    assert resumed.trained.resumed_at == step
    assert f"Resuming after step {step}" in lines[0]
    losses, expected = ([(r.loss, r.validation_loss) for r in run.trained.log] for run in (resumed, whole))
    assert losses == expected
    assert resumed.trained.published_step == whole.trained.published_step
    assert (whole.trained.published_step < len(whole.trained.log)) is overfitting
    assert all(map(torch.equal, resumed.model.parameters(), whole.model.parameters()))


def test_a_restored_state_lies_in_memory_like_one_that_was_never_stored(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At addresses of PyTorch's own, which are multiples of 64: kernels may round by where a tensor begins."""
    made: list[torch.optim.AdamW] = []

    class Seen(torch.optim.AdamW):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Interrupted):
            run_training(tiny, store(tmp_path)[0], checkpoint_seconds=0.0)
    monkeypatch.setattr(torch.optim, "AdamW", Seen)
    assert run_training(tiny, store(tmp_path)[0], checkpoint_seconds=0.0).trained.resumed_at == 2
    (optimizer,) = made
    places = [tensor.data_ptr() % 64 for state in optimizer.state.values() for tensor in state.values()]
    assert places == [0] * len(places)


def newest(checkpoints: CheckpointStore) -> Checkpoint:
    latest = checkpoints.latest()
    assert latest is not None
    return latest


def test_the_newest_whole_checkpoint_is_used(tmp_path: Path):
    """What was saved comes back."""
    checkpoints, _ = store(tmp_path)
    for step in (1, 2):
        checkpoints.save(checkpoint(step))
    latest = newest(checkpoints)
    assert latest.step == 2
    assert latest.tensors["parameter.a"].tolist() == [2.0, 2.0, 2.0]
    assert latest.log == checkpoint(2).log


def damage_tensor(folder: Path) -> None:
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


def other_digest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"training": "this"', '"training": "another"'))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (damage_tensor, "its file state.safetensors is damaged"),
        (lambda folder: (folder / "log.json").unlink(), "its file log.json is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "its manifest is missing or damaged"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "its manifest is missing or damaged"),
        (other_digest, "it belongs to other data or another recipe"),
    ],
)
def test_a_checkpoint_that_cannot_be_trusted_is_reported_and_passed_over(tmp_path: Path, harm: Any, reason: str):
    """One flipped bit is enough; the one before it is used."""
    checkpoints, lines = store(tmp_path)
    for step in (1, 2):
        checkpoints.save(checkpoint(step))
    harm(tmp_path / "step-000002")
    assert newest(checkpoints).step == 1
    assert lines[0] == f"Not used: checkpoint step-000002, since {reason}."
    assert "Resuming after step 1" in lines[1]


def test_another_training_does_not_resume_from_it(tmp_path: Path):
    """Other data or another recipe starts from the beginning, and says that it saw the checkpoint."""
    store(tmp_path)[0].save(checkpoint(3))
    other, lines = store(tmp_path, "that")
    assert other.latest() is None
    assert lines == ["Not used: checkpoint step-000003, since it belongs to other data or another recipe."]


def test_old_checkpoints_go_and_foreign_ones_stay(tmp_path: Path):
    """A long training keeps the newest ones only; another training's are not its to remove."""
    foreign, _ = store(tmp_path, "that")
    foreign.save(checkpoint(7))
    checkpoints, _ = store(tmp_path)
    for step in range(1, 6):
        checkpoints.save(checkpoint(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000004", "step-000005", "step-000007"]
    assert KEPT == 2


def refuse(target: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what writes checkpoints raise the error."""

    def refused(*_args: object) -> None:
        raise error

    monkeypatch.setattr(target, refused)


@pytest.mark.parametrize("error", FULL_DISK)
def test_a_full_disk_costs_the_checkpoint_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    """It is reported with what to do; the checkpoint before it stays usable."""
    checkpoints, lines = store(tmp_path)
    checkpoints.save(checkpoint(1))
    refuse("safetensors.torch.save_file", error, monkeypatch)
    checkpoints.save(checkpoint(2))
    assert "The disk is full: no checkpoint of step 2" in lines[-1]
    assert "free some space" in lines[-1]
    assert newest(checkpoints).step == 1


def test_other_write_errors_are_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder without permission is no full disk."""
    refuse("safetensors.torch.save_file", PermissionError(errno.EACCES, "denied"), monkeypatch)
    with pytest.raises(PermissionError):
        store(tmp_path)[0].save(checkpoint(1))


def test_half_written_folders_of_a_killed_run_are_removed(tmp_path: Path):
    """And it is said; whole checkpoints stay."""
    checkpoints, lines = store(tmp_path)
    checkpoints.save(checkpoint(1))
    (tmp_path / ".staging-step-000002-abc").mkdir()
    checkpoints.drop_leftovers()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    assert "half-written" in lines[0]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A copy is written in a thread; a second one is left out meanwhile, and leaving the training waits for the first."""
    begun, go_on = threading.Event(), threading.Event()
    digest = checkpoints_module.file_digest

    def held_up(path: UPath) -> str:
        begun.set()
        assert go_on.wait(60)
        return digest(path)

    monkeypatch.setattr(checkpoints_module, "file_digest", held_up)
    checkpoints, _ = store(tmp_path)
    one = checkpoint(1)
    with checkpoints:
        checkpoints.save(one, beside=True)
        assert begun.wait(60)
        one.tensors["parameter.a"].zero_()  # as the next step changes the matrices
        one.log.clear()
        checkpoints.save(checkpoint(2), beside=True)
        go_on.set()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    found = newest(checkpoints)
    assert found.tensors["parameter.a"].tolist() == [1.0, 1.0, 1.0]
    assert len(found.log) == 1


def test_what_stops_a_checkpoint_beside_the_training_stops_the_training(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An error in the thread is not lost."""
    refuse("po_assets.training.checkpoints.write_manifest", PermissionError("read-only"), monkeypatch)
    with pytest.raises(PermissionError, match="read-only"):
        run_training(tiny, store(tmp_path)[0], checkpoint_seconds=1e-9)


def test_checkpoints_live_in_an_object_store_too():
    """A store without renames: the pointer, uploaded last, is what makes a checkpoint whole."""
    folder = UPath("memory://po-test/checkpoints")
    checkpoints, _ = store(folder)
    for step in (1, 2, 3):
        checkpoints.save(checkpoint(step))
    assert newest(checkpoints).step == 3
    (folder / "step-000003" / POINTER).unlink()
    assert newest(checkpoints).step == 2
    checkpoints.clear()
    assert checkpoints.latest() is None
