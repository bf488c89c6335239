"""The authored material, and drawing from it."""

import re
from collections import Counter
from random import Random

import pytest

from po_assets.sample_data.domains import load_domains, pick, pick_some, pick_weighted, shuffled

DOMAINS = load_domains("training") + load_domains("lessons") + load_domains("evaluation")
PLAIN = re.compile(r"[A-Za-z0-9][^\n#:]*[^\s:]")
"""Text that needs no quotes, so that answers cost no needless tokens."""


def test_there_are_many_trades_and_each_names_its_own():
    """Enough that a student learns to compare, and not the trades; a product names its domain."""
    assert len(load_domains("training")) >= 30
    assert len(load_domains("lessons")) >= 100
    assert len(load_domains("evaluation")) >= 10
    products = [product for domain in DOMAINS for product in domain.products]
    assert len({domain.name for domain in DOMAINS}) == len(DOMAINS)
    assert len(set(products)) == len(products)


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
    assert len({*served, *breaches}) == len(served) + len(breaches)  # or a status would have two readings
    assert all(len(need.served_by) >= 2 for need in domain.needs)
    least = {"needs": 6, "users": 3, "qualities": 4, "constraints": 4, "exclusions": 2, "products": 4, "problems": 2}
    assert {key: len(getattr(domain, key)) for key in least if len(getattr(domain, key)) < least[key]} == {}


def test_draws_are_even_weighted_and_of_different_items():
    """One item follows the weights, several never repeat and may be asked for in excess, all come in every order."""
    rng, items = Random(1), [1, 2, 3]
    times = Counter(pick(rng, "abcd") for _ in range(4000))
    assert all(900 < times[item] < 1100 for item in "abcd")
    times = Counter(pick_weighted(rng, {"a": 3, "b": 1, "c": 0}) for _ in range(4000))
    assert 2850 < times["a"] < 3150
    assert times["c"] == 0
    assert all(len(set(pick_some(rng, range(5), 3))) == 3 for _ in range(50))
    assert sorted(pick_some(rng, "abc", 9)) == ["a", "b", "c"]
    assert len({tuple(shuffled(rng, items)) for _ in range(100)}) == 6
    assert items == [1, 2, 3]
