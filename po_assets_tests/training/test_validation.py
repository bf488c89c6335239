"""Rows held out of training: how they are drawn, what is measured on them, and which matrices that chooses."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from po_assets.errors import UserError
from po_assets.storage import Layout
from po_assets.text import Progress
from po_assets.training.adapter import trainable
from po_assets.training.assets import _metadata
from po_assets.training.checks import StudentUnderTest, training_is_sane
from po_assets.training.rows import TokenizedRow, split_rows
from po_assets.training.student import make_student
from po_assets.training.training import train
from po_assets_tests.training.tiny_training import (
    OVERFITTING,
    UNLIKE_PAIRS,
    make_recipe,
    run_training,
    tiny_recipe,
    tiny_rows,
    tiny_student,
    write_supervised,
)


def row(prompt: int, answer: int) -> TokenizedRow:
    return TokenizedRow((prompt, answer, 1), 1)


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


def test_no_prompt_is_on_both_sides():
    """However many answers a prompt has; every row is on one side, and about the share is held out."""
    rows = [row(10 + i % 37, i) for i in range(200)]
    trained, held = split_rows(rows, make_recipe(validation_share=0.1))
    assert {r.ids[0] for r in trained}.isdisjoint({r.ids[0] for r in held})
    assert sorted(r.ids for r in [*trained, *held]) == sorted(r.ids for r in rows)
    assert 15 <= len(held) <= 20


def test_the_draw_follows_the_seed_and_not_the_order_of_rows():
    """Two seeds hold out other prompts."""
    rows = [row(10 + i, i) for i in range(60)]
    draws = [
        {r.ids for r in split_rows(some, make_recipe(validation_share=0.2, seed=seed))[1]}
        for some, seed in ((rows, 1), (rows[::-1], 1), (rows, 2))
    ]
    assert draws[0] == draws[1] != draws[2]


def test_rows_that_cannot_be_split_are_refused():
    """Of one prompt, with the share and the ways out."""
    with pytest.raises(
        UserError, match=r"validation_share is 0\.1, and 12 rows of 1 prompt cannot be split.*set it to 0"
    ):
        split_rows([row(5, i) for i in range(12)], make_recipe(validation_share=0.1))


def test_keep_best_without_rows_held_out_is_refused():
    """Nothing would say what is best."""
    with pytest.raises(UserError, match="keep_best is true; it needs a validation_share"):
        make_recipe(keep_best=True)


def test_without_a_share_the_digest_is_that_of_before():
    """Adapters that exist stay valid."""
    assert not {"validation_share", "keep_best"} & set(make_recipe().effective())
    assert make_recipe(validation_share=0.1).effective() != make_recipe().effective()


@pytest.mark.parametrize("settings", [{}, {"fast_path": False}, {"fast_path": False, "pack_tokens": 256}])
def test_the_validation_loss_is_the_models_own_without_dropout(tiny: Path, settings: dict[str, Any]):
    """On the rows held out, with the matrices after the last step; told in the log and to plot."""
    recipe = tiny_recipe(tiny, validation_share=0.25, dropout=0.3, **settings)
    model = tiny_student(tiny, recipe)
    lines: list[str] = []
    numbers: list[dict[str, float]] = []
    trained = train(model, tiny_rows(tiny), recipe, Progress(lines.append, numbers.append))
    held = split_rows(tiny_rows(tiny), recipe)[1]
    assert len(held) == trained.validation_rows == 3
    assert trained.log[-1].validation_loss == pytest.approx(reference_loss(model, held), rel=1e-5)
    assert "3 rows of other prompts are held out" in lines[0]
    assert f"validation loss {trained.log[-1].validation_loss:.3f}" in lines[-1]
    assert numbers[-1]["train/validation_loss"] == trained.log[-1].validation_loss


def test_measuring_does_not_change_what_is_learned(tiny: Path):
    """The rows that are trained give the same matrices with and without it."""
    recipe = tiny_recipe(tiny, validation_share=0.25, dropout=0.1)
    _, expected = run_training(tiny, validation_share=0.25, dropout=0.1)
    model = tiny_student(tiny, recipe)
    only = split_rows(tiny_rows(tiny), recipe)[0]
    train(model, only, tiny_recipe(tiny, dropout=0.1), Progress(lambda _: None))
    assert all(torch.equal(p, expected[name]) for name, p in trainable(model).items())


def test_a_long_training_is_measured_ten_times(tiny: Path):
    """Evenly, the last time at the end."""
    trained, _ = run_training(tiny, validation_share=0.25, epochs=20.0, gradient_accumulation=4)
    measured = [record.step for record in trained.log if record.validation_loss is not None]
    assert len(trained.log) == 45
    assert measured == [5, 9, 14, 18, 23, 27, 32, 36, 41, 45]


def test_keep_best_publishes_the_matrices_of_the_lowest_loss(tiny: Path):
    """The model that comes out has that very loss; without it, the last one's."""
    recipe = tiny_recipe(tiny, **OVERFITTING)
    model = tiny_student(tiny, recipe)
    lines: list[str] = []
    trained = train(model, tiny_rows(tiny, UNLIKE_PAIRS), recipe, Progress(lines.append))
    losses = [record.validation_loss or math.inf for record in trained.log]
    assert losses[trained.published_step - 1] == min(losses) < losses[-1]
    held = split_rows(tiny_rows(tiny, UNLIKE_PAIRS), recipe)[1]
    assert reference_loss(model, held) == pytest.approx(min(losses), rel=1e-5)
    assert f"The matrices after step {trained.published_step} are published" in lines[-1]
    last, _ = run_training(tiny, pairs=UNLIKE_PAIRS, **OVERFITTING | {"keep_best": False})
    assert last.published_step == len(last.log)


def test_manifest_card_and_check_say_the_validation_loss(layout: Layout, tiny: Path):
    """And which step's matrices the adapter is; held-out rows count as rows of the data."""
    write_supervised(layout, UNLIKE_PAIRS)
    recipe = tiny_recipe(Path(str(layout.root)) / "tiny", **OVERFITTING)
    made = make_student(layout, UNLIKE_PAIRS, recipe, Progress(lambda _: None))
    extra = made.manifest.extra
    assert extra["validation_loss"] == made.log[extra["published_step"] - 1].validation_loss
    said = f"the adapter is that of step {extra['published_step']}"
    assert said in (layout.adapter / "README.md").read_text().replace("\n", " ")
    assert _metadata(made)["validation_loss"] == pytest.approx(extra["validation_loss"], abs=1e-4)
    verdict = training_is_sane(StudentUnderTest(layout, recipe))
    assert said in verdict.summary
    assert verdict.numbers["validation_loss"] == extra["validation_loss"]
