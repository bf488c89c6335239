"""Rows held out of training: what is measured on them, and which matrices that chooses."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from po_assets.storage import Layout
from po_assets.training.assets import _metadata
from po_assets.training.checks import StudentUnderTest, training_is_sane
from po_assets.training.rows import TokenizedRow, split_rows
from po_assets_tests.training.tiny_training import (
    OVERFITTING,
    UNLIKE_PAIRS,
    make_recipe,
    publish,
    run_training,
    tiny_recipe,
    tiny_rows,
    write_supervised,
)


def reference_loss(model: Any, rows: list[TokenizedRow]) -> float:
    """By the model's own forward pass, a row at a time."""
    total = tokens = 0.0
    for one in rows:
        ids = torch.tensor([one.ids])
        with torch.no_grad():
            logits = model.eval()(input_ids=ids).logits[0, one.prompt_length - 1 : -1].float()
        total += torch.nn.functional.cross_entropy(logits, ids[0, one.prompt_length :], reduction="sum").item()
        tokens += one.trained
    return total / tokens


@pytest.mark.parametrize("settings", [{}, {"fast_path": False}, {"fast_path": False, "pack_tokens": 256}])
def test_the_validation_loss_is_the_models_own_without_dropout(tiny: Path, settings: dict[str, Any]):
    """On the rows held out, with the matrices after the last step; told in the log and to plot."""
    run = run_training(tiny, validation_share=0.25, dropout=0.3, **settings)
    held = split_rows(tiny_rows(tiny), make_recipe(validation_share=0.25))[1]
    loss = run.trained.log[-1].validation_loss
    assert len(held) == run.trained.validation_rows == 3
    assert loss == pytest.approx(reference_loss(run.model, held), rel=1e-5)
    assert "Held out for the validation loss: 3 rows of other prompts." in run.said[0]
    assert f"validation loss {loss:.3f}" in run.said[-1]
    assert run.observed[-1]["train/validation_loss"] == loss


def test_measuring_does_not_change_what_is_learned(tiny: Path):
    """The rows that are trained give the same matrices with and without it."""
    measured = run_training(tiny, validation_share=0.25, dropout=0.1)
    only, _ = split_rows(tiny_rows(tiny), make_recipe(validation_share=0.25))
    alone = run_training(tiny, rows=only, dropout=0.1)
    assert all(map(torch.equal, measured.model.parameters(), alone.model.parameters()))


def test_a_long_training_is_measured_ten_times(tiny: Path):
    """Evenly, the last time at the end."""
    log = run_training(tiny, validation_share=0.25, epochs=20.0, gradient_accumulation=4).trained.log
    assert len(log) == 45
    measured = [record.step for record in log if record.validation_loss is not None]
    assert measured == [5, 9, 14, 18, 23, 27, 32, 36, 41, 45]


def test_keep_best_publishes_the_matrices_of_the_lowest_loss(tiny: Path):
    """The model that comes out has that very loss; without it, the last one's."""
    rows = tiny_rows(tiny, UNLIKE_PAIRS)
    run = run_training(tiny, rows=rows, **OVERFITTING)
    losses = [record.validation_loss or math.inf for record in run.trained.log]
    assert losses[run.trained.published_step - 1] == min(losses) < losses[-1]
    _, held = split_rows(rows, make_recipe(**OVERFITTING))
    assert reference_loss(run.model, held) == pytest.approx(min(losses), rel=1e-5)
    assert f"The matrices after step {run.trained.published_step} are published" in run.said[-1]
    last = run_training(tiny, rows=rows, **OVERFITTING | {"keep_best": False}).trained
    assert last.published_step == len(last.log)


def test_manifest_card_and_check_say_the_validation_loss(layout: Layout):
    """And which step's matrices the adapter is; held-out rows count as rows of the data."""
    write_supervised(layout, UNLIKE_PAIRS)
    made, _ = publish(layout, UNLIKE_PAIRS, **OVERFITTING)
    extra = made.manifest.extra
    assert extra["validation_loss"] == made.log[extra["published_step"] - 1].validation_loss
    said = f"the adapter is that of step {extra['published_step']}"
    assert said in (layout.adapter / "README.md").read_text().replace("\n", " ")
    assert _metadata(made)["validation_loss"] == pytest.approx(extra["validation_loss"], abs=1e-4)
    recipe = tiny_recipe(Path(str(layout.root)) / "tiny", **OVERFITTING)
    verdict = training_is_sane(StudentUnderTest(layout, recipe))
    assert said in verdict.summary
    assert verdict.numbers["validation_loss"] == extra["validation_loss"]
