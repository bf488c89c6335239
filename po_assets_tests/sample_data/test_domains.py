"""The authored material, and drawing from it."""

import re
from collections import Counter
from random import Random

import pytest

from po_assets.sample_data.domains import load_domains, pick, pick_some, pick_weighted, shuffled

DOMAINS = load_domains("training") + load_domains("lessons") + load_domains("evaluation")
PLAIN = re.compile(r"[A-Za-z0-9][^\n#:]*[^\s:]")
"""Text that needs no quotes, so that answers cost no needless tokens."""


def test_there_are_many_trades_to_learn_from_and_ten_for_evaluation():
    """Enough that a student learns the form of an answer, and with the lessons' to compare, and not the trades."""
    assert len(load_domains("training")) >= 30
    assert len(load_domains("lessons")) >= 100
    assert len(load_domains("evaluation")) >= 10


def test_names_are_unique():
    """A product names its domain, which is how a reader tells whose requirements a document holds."""
    products = [product for domain in DOMAINS for product in domain.products]
    assert len({domain.name for domain in DOMAINS}) == len(DOMAINS)
    assert len(set(products)) == len(products)


def test_requirements_serve_one_need_only():
    """No sentence serves two needs or serves one and breaches an exclusion, so a status has one reading."""
    for domain in DOMAINS:
        lines = [line for need in domain.needs for line in need.served_by]
        lines += [line for exclusion in domain.exclusions for line in exclusion.breaches]
        assert len(set(lines)) == len(lines), domain.name


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_the_material_is_fit_for_use(domain):
    """Texts stand as plain YAML scalars without quotes, requirements say who can do what, and there is enough to draw."""
    served = [line for need in domain.needs for line in need.served_by]
    breaches = [line for exclusion in domain.exclusions for line in exclusion.breaches]
    needs = [text for need in domain.needs for text in (need.text, need.gain, need.measure)]
    limits = [text for limit in (*domain.qualities, *domain.constraints) for text in (limit.topic, limit.text)]
    named = [*domain.organisations, *domain.products, *domain.users, *domain.problems]
    never = [exclusion.text for exclusion in domain.exclusions]
    texts = [domain.name, domain.category, *named, *needs, *limits, *never, *served, *breaches]
    reserved = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
    assert [text for text in texts if not PLAIN.fullmatch(text) or text.lower() in reserved] == []
    assert [line for line in [*served, *breaches] if " can " not in line] == []
    assert all(len(need.served_by) >= 2 for need in domain.needs)
    least = {"needs": 6, "users": 3, "qualities": 4, "constraints": 4, "exclusions": 2, "products": 4, "problems": 2}
    assert {key: len(getattr(domain, key)) for key in least if len(getattr(domain, key)) < least[key]} == {}


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
