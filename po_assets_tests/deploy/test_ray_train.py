"""One adapter trained by two workers of Ray Train, on this machine's CPUs."""

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from po_assets.errors import UserError
from po_assets.text import Progress
from po_assets.training.student import make_student
from po_assets_tests.training.tiny_training import PAIRS, make_artifacts, tiny_recipe


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
    names = [set(load_file(Path(student.folder) / "adapter_model.safetensors")) for student in (alone, together)]
    assert names[0] == names[1]
    assert not any(Path(str(two.checkpoints)).iterdir())
    assert make_student(two, PAIRS, recipe, Progress(said.append)).unchanged

    two.supervised_gate.unlink()
    with pytest.raises(Exception, match="gate") as refusal:
        make_student(two, PAIRS, recipe, Progress(said.append))
    assert type(refusal.value).__name__ == "UserError"


def test_more_workers_without_ray_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence that says what to install."""
    for name in [module for module in sys.modules if module == "ray" or module.startswith("ray.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    layout = make_artifacts(tmp_path)
    with pytest.raises(UserError, match=r"num_workers is 2, .* make setup EXTRAS=ray, or set num_workers"):
        make_student(layout, PAIRS, tiny_recipe(tmp_path / "tiny", num_workers=2), Progress(print))
