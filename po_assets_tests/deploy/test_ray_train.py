"""One adapter trained by two workers of Ray Train, on this machine's CPUs."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from safetensors.torch import load_file

from po_assets.errors import UserError
from po_assets.text import Progress
from po_assets.training import ray_workers, student
from po_assets.training.student import make_student
from po_assets_tests.training.tiny_training import PAIRS, make_artifacts, make_recipe, tiny_recipe


@pytest.mark.slow
def test_two_workers_make_the_student_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same losses (to rounding, see test_data_parallel), same adapter files; the second time nothing is trained."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    one, two = make_artifacts(tmp_path / "one"), make_artifacts(tmp_path / "two")
    settings = {"dropout": 0.1, "workers": 1, "checkpoint_seconds": 0.0}
    alone = make_student(one, PAIRS, tiny_recipe(tmp_path / "one" / "tiny", **settings), Progress(lambda _line: None))
    said: list[str] = []
    recipe = tiny_recipe(tmp_path / "two" / "tiny", num_workers=2, **settings)
    together = make_student(two, PAIRS, recipe, Progress(said.append))
    assert [record.loss for record in together.log] == pytest.approx([record.loss for record in alone.log], rel=1e-5)
    assert "on each of 2 workers (gloo)" in together.manifest.extra["engine"]
    assert "Starting 2 workers with Ray Train, each on CPUs." in said
    assert any(line.startswith("step 6/6") for line in said)
    names = [set(load_file(Path(made.folder) / "adapter_model.safetensors")) for made in (alone, together)]
    assert names[0] == names[1]
    assert not any(Path(str(two.checkpoints)).iterdir())
    assert make_student(two, PAIRS, recipe, Progress(said.append)).unchanged

    two.supervised_gate.unlink()
    with pytest.raises(Exception, match="gate") as refusal:
        make_student(two, PAIRS, recipe, Progress(said.append))
    assert type(refusal.value).__name__ == "UserError"


@pytest.mark.parametrize(
    ("inside", "visible", "default", "refused"),
    [
        (True, "0", "1", True),  # the step was started with a GPU, which only another one of two workers could take
        (True, "0,1", "2", False),  # it was started with none, on a node whose GPUs were named when Ray was started
        (True, None, "2", False),
        (False, "0,1", "1", False),  # a Ray of its own, as in a pod with two GPUs
    ],
)
def test_the_gpu_that_a_step_holds_itself_is_not_there_for_its_workers(
    monkeypatch: pytest.MonkeyPatch, inside: bool, visible: str | None, default: str, refused: bool
) -> None:
    """Ray would wait for ever to place them."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 2.0, "CPU": 8.0})
    monkeypatch.setenv("PO_NUM_WORKERS", default)
    monkeypatch.delenv("PO_GPUS", raising=False)
    for name, value in (("RAY_ADDRESS", "10.0.0.1:6379" if inside else None), ("CUDA_VISIBLE_DEVICES", visible)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    if refused:
        with pytest.raises(UserError, match="one of which this step holds itself"):
            ray_workers.has_room(2)
    else:
        assert ray_workers.has_room(2)


def test_workers_without_gpus_are_refused_before_any_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one worker is; each of several would say it after 15 GB."""
    pytest.importorskip("ray")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(student, "connected", lambda _workers: nullcontext())
    monkeypatch.setattr(student, "has_room", lambda _workers: False)
    monkeypatch.setattr(student, "ensure_base_model", lambda *_: pytest.fail("downloaded"))
    recipe = make_recipe({"profile": "paper"}, num_workers=2)
    with pytest.raises(UserError, match="The profile 'paper' needs a CUDA GPU"):
        make_student(make_artifacts(tmp_path), PAIRS, recipe, Progress(print))


def test_more_workers_without_ray_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence that says what to install."""
    for name in [module for module in sys.modules if module == "ray" or module.startswith("ray.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    layout = make_artifacts(tmp_path)
    with pytest.raises(UserError, match=r"num_workers is 2, .* make setup EXTRAS=ray, or set num_workers"):
        make_student(layout, PAIRS, tiny_recipe(tmp_path / "tiny", num_workers=2), Progress(print))
