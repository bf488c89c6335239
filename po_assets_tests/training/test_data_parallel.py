"""Several workers train what one would: the same losses at the same effective batch, the same matrices on every worker."""

from pathlib import Path
from typing import Any

import pytest
import torch

from po_assets_tests.processes import started
from po_assets_tests.training import worker_driver
from po_assets_tests.training.tiny_training import run_training

# The workers' sums are added in another order than one worker's: float32 rounds each to 6e-8 of its size, which Adam's
# division by the root of the squared gradient makes more of with every step. Measured here: 2e-7 after 6 steps.
TOLERANCE = 1e-5


def train_with(workers: int, base: Path, out: Path, **settings: Any) -> list[dict[str, Any]]:
    """What each worker had in the end."""
    processes = [started(worker_driver.work, rank, workers, base, out, settings) for rank in range(workers)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [torch.load(file) for file in sorted(out.glob("*.pt"))]


@pytest.mark.parametrize(
    "settings",
    [
        {"dropout": 0.1, "epochs": 1.75},  # 21 rows: the last step has one, and a worker nothing to do
        {"dropout": 0.1, "fast_path": False},
        {"dropout": 0.0, "fast_path": False, "pack_tokens": 150},
        {"dropout": 0.1, "epochs": 4.0, "validation_share": 0.25, "keep_best": True},
    ],
    ids=["fast path, a short last step", "plain path", "plain path, packed rows", "rows held out"],
)
def test_two_workers_have_the_loss_curve_of_one(tiny: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Gradient accumulation is split among them, and the rows held out; dropout falls on the same places."""
    one = run_training(tiny, **settings).trained
    first, second = train_with(2, tiny, tmp_path, **settings)
    assert first["log"] == second["log"]
    expected = [(record.loss, record.grad_norm, record.validation_loss) for record in one.log]
    assert len(expected) >= 6
    for got, wanted in zip(first["log"], expected, strict=True):
        assert got[:2] == pytest.approx(wanted[:2], rel=TOLERANCE)
        assert got[2] == (wanted[2] and pytest.approx(wanted[2], rel=TOLERANCE))
    assert expected[-1][0] < expected[0][0]
    for name, matrix in first["matrices"].items():
        assert torch.equal(matrix, second["matrices"][name]), name
    assert "on each of 2 workers (gloo)" in first["engine"]


def test_workers_at_different_steps_are_found_out(tiny: Path, tmp_path: Path) -> None:
    """Their gradients would be summed as if they belonged together."""
    assert train_with(2, tiny, tmp_path, rows="differ") == []
    for rank in range(2):
        assert "OutOfStepError: The workers are not at the same step" in (tmp_path / f"error-{rank}.txt").read_text()
