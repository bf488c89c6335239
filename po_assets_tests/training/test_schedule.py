from collections import Counter

import pytest

from po_assets.training.recipe import make_recipe
from po_assets.training.schedule import dropout_seed, plan_steps


@pytest.mark.parametrize(
    ("rows", "epochs", "size"), [(10, 1.0, 4), (10, 2.5, 4), (7, 0.5, 3), (3, 4.0, 8), (1, 1.0, 1)]
)
def test_every_row_is_trained_as_often_as_the_epochs_say(rows: int, epochs: float, size: int):
    """No row is dropped at the border of a step or an epoch."""
    steps = plan_steps(rows, make_recipe({"epochs": epochs, "gradient_accumulation": size}))
    counts = Counter(row for step in steps for row in step.rows)
    assert sum(counts.values()) == round(epochs * rows)
    assert set(counts.values()) <= {int(epochs), int(epochs) + 1}
    assert all(len(step.rows) == size for step in steps[:-1])
    assert [step.number for step in steps] == list(range(len(steps)))


def test_the_order_follows_the_seed():
    """The same seed gives the same order, another seed and another epoch another one."""
    one, same, other = (plan_steps(20, make_recipe({"epochs": 2.0, "seed": seed})) for seed in (1, 1, 2))
    assert one == same != other
    flat = [row for step in one for row in step.rows]
    assert flat[:20] != flat[20:] != list(range(20))


@pytest.mark.parametrize(("scheduler", "middle"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_learning_rate_warms_up_and_falls(scheduler: str, middle: float):
    """Up within the warm-up share, never 0 in a step, then down as the scheduler says."""
    settings = {"scheduler": scheduler, "epochs": 1.0, "learning_rate": 1.0, "warmup_ratio": 0.1}
    rates = [step.learning_rate for step in plan_steps(110, make_recipe(settings | {"gradient_accumulation": 1}))]
    assert rates[:11] == sorted(rates[:11])
    assert rates[0] > 0
    assert rates[11] == 1.0
    assert rates[11 + 49] == pytest.approx(middle, abs=0.02)
    assert 0 < rates[-1] <= middle * 2
    assert rates[11:] == sorted(rates[11:], reverse=True)


def test_dropout_seeds_differ_by_step_and_row():
    """And do not depend on anything else, so that a resumed run draws the same masks."""
    assert dropout_seed(1, 2, 3) == dropout_seed(1, 2, 3)
    assert len({dropout_seed(*key) for key in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]}) == 4
