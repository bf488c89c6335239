"""Drawing from short sequences."""

from collections import Counter
from random import Random

from po_assets.sample_data.draws import pick, pick_some, pick_weighted, shuffled


def test_pick_is_even():
    """Every item comes about equally often."""
    rng = Random(1)
    times = Counter(pick(rng, "abcd") for _ in range(4000))
    assert all(900 < times[item] < 1100 for item in "abcd")


def test_pick_some_gives_different_items_and_at_most_all():
    """Nothing comes twice, and asking for too many gives all there are."""
    rng = Random(2)
    assert all(len(set(pick_some(rng, range(5), 3))) == 3 for _ in range(50))
    assert sorted(pick_some(rng, "abc", 9)) == ["a", "b", "c"]


def test_shuffled_reaches_every_order():
    """All six orders of three items occur, and the given sequence stays as it is."""
    rng, items = Random(3), [1, 2, 3]
    assert len({tuple(shuffled(rng, items)) for _ in range(100)}) == 6
    assert items == [1, 2, 3]


def test_pick_weighted_follows_the_weights():
    """Items come in proportion to their weight, and one without weight never."""
    rng = Random(4)
    times = Counter(pick_weighted(rng, "abc", (3, 1, 0)) for _ in range(4000))
    assert 2850 < times["a"] < 3150
    assert times["c"] == 0
