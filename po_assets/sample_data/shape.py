"""How full an answer is: the counts and lengths that the metric pays for, drawn before its sentences are written.

Teachers differ in thoroughness, and that, not correctness, is what their scores differ in.
"""

from dataclasses import dataclass
from random import Random

from po_assets.sample_data.draws import pick_weighted


@dataclass(frozen=True)
class Shape:
    """Item counts of the lists, and how long the two running texts are."""

    users: int
    values: int
    capabilities: int
    metrics: int
    long_summary: bool
    findings: int
    """Items of the review's `summary`."""
    item_per_limit: bool
    """Whether qualities and constraints are each reviewed in an item of their own, or together in one."""
    grouping: float
    """How likely requirements on one need are reviewed in one item."""
    narrative: int
    """0: less than a sentence's worth, 1 to 3: that many sentences."""


def draw_shape(rng: Random) -> Shape:
    """A shape of ordinary care: about 0.90 where nothing is missing."""
    return Shape(
        users=_one_or_two(rng, 0.97),
        values=_one_or_two(rng, 0.85),
        capabilities=2 if rng.random() < 0.8 else 3,
        metrics=_one_or_two(rng, 0.65),
        long_summary=rng.random() < 0.05,
        findings=_one_or_two(rng, 0.1),
        item_per_limit=rng.random() < 0.3,
        grouping=0.5,
        narrative=pick_weighted(rng, (1, 2, 3), (65, 30, 5)),
    )


def draw_brief_shape(rng: Random) -> Shape:
    """A shape where something is missing or offends: the metric pays for naming it, so the vision is kept shorter."""
    return Shape(
        users=_one_or_two(rng, 0.8),
        values=_one_or_two(rng, 0.65),
        capabilities=2 if rng.random() < 0.75 else 3,
        metrics=_one_or_two(rng, 0.3),
        long_summary=False,
        findings=1,
        item_per_limit=rng.random() < 0.3,
        grouping=0.5,
        narrative=pick_weighted(rng, (1, 2), (75, 25)),
    )


def draw_thin_shape(rng: Random) -> Shape:
    """A shape of little care: valid, complete in its keys, and under the score that training asks for."""
    return Shape(
        users=1,
        values=_one_or_two(rng, 0.4),
        capabilities=_one_or_two(rng, 0.6),
        metrics=_one_or_two(rng, 0.3),
        long_summary=False,
        findings=1,
        item_per_limit=rng.random() < 0.6,
        grouping=0.0,
        narrative=0 if rng.random() < 0.7 else 1,
    )


def _one_or_two(rng: Random, share_of_two: float) -> int:
    return 2 if rng.random() < share_of_two else 1
