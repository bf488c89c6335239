"""Which rows make which optimizer step, and with which learning rate: all of it known before training starts."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from po_assets.training.recipe import Recipe


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    number: int
    """From 0."""
    epoch: int
    """Epoch of its first row, from 0."""
    rows: tuple[int, ...]
    """Indices of its rows, in seeded order."""
    learning_rate: float


def plan_steps(row_count: int, recipe: Recipe) -> list[Step]:
    """All steps of a training on `row_count` rows.

    Every epoch passes over all rows in its own seeded order; a fractional epoch stops part way. Steps are filled across
    the border of epochs, so that only the last one can be smaller.
    """
    wanted = max(1, round(recipe.epochs * row_count))
    order: list[int] = []
    epoch = 0
    while len(order) < wanted:
        rows = list(range(row_count))
        random.Random(f"{recipe.seed}:{epoch}").shuffle(rows)  # noqa: S311  # reproducible, not secret
        order += rows
        epoch += 1
    order = order[:wanted]
    size = recipe.rows_per_step
    count = math.ceil(wanted / size)
    return [
        Step(
            number=i,
            epoch=i * size // row_count,
            rows=tuple(order[i * size : (i + 1) * size]),
            learning_rate=learning_rate(i, count, recipe),
        )
        for i in range(count)
    ]


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Linear warm-up over ceil(warmup_ratio * steps) steps, then the recipe's scheduler down to 0.

    As `get_cosine_schedule_with_warmup` of transformers, except that the first step already learns
    ((step + 1) / warm-up): with few steps, one of learning rate 0 is a wasted one.
    """
    warmup = math.ceil(recipe.warmup_ratio * steps)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    match recipe.scheduler:
        case "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            factor = 1 - progress
        case _:
            factor = 1.0
    return recipe.learning_rate * factor


def dropout_seed(seed: int, step: int, row: int) -> int:
    """Seed of a row's dropout masks: the same for a resumed run and for any number of workers."""
    return random.Random(f"{seed}:{step}:{row}").getrandbits(63)  # noqa: S311
