"""The authored material, how its faults are reported, and drawing from it."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from po_assets.sample_data import domains
from po_assets.sample_data.domains import (
    Exclusion,
    Limit,
    Need,
    domain_faults,
    load_domains,
    pick,
    pick_some,
    pick_weighted,
    shuffled,
)


def test_there_are_thirty_training_domains_and_ten_for_evaluation():
    """Enough trades that a student learns the form of an answer and not the trades."""
    assert len(load_domains("training")) >= 30
    assert len(load_domains("evaluation")) >= 10
    names = [domain.name for purpose in ("training", "evaluation") for domain in load_domains(purpose)]
    assert len(set(names)) == len(names)


def test_product_names_are_unique():
    """A product names its domain, which is how a reader tells whose requirements a document holds."""
    products = [
        product
        for purpose in ("training", "evaluation")
        for domain in load_domains(purpose)
        for product in domain.products
    ]
    assert len(set(products)) == len(products)


def test_requirements_serve_one_need_only():
    """No sentence serves two needs or serves one and breaches an exclusion, so a status has one reading."""
    for purpose in ("training", "evaluation"):
        for domain in load_domains(purpose):
            lines = [line for need in domain.needs for line in need.served_by]
            lines += [line for exclusion in domain.exclusions for line in exclusion.breaches]
            assert len(set(lines)) == len(lines), domain.name


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"category": "planner: for vans"}, "'planner: for vans' must be plain YAML text"),
        ({"products": ("Yes", "B2", "C3", "D4")}, "'Yes' must be plain YAML text"),
        ({"users": ("drivers",)}, "1 users, at least 3 are needed"),
        ({"needs": (Need("fly", "speed", "speed rises", ("pilots can fly",)),)}, "under 2 lines serve 'fly'"),
        ({"exclusions": (Exclusion("crash", ("planes crash",)),)}, "'planes crash' lacks ' can '"),
        ({"qualities": (Limit("speed", "# fast"),)}, "'# fast' must be plain YAML text"),
    ],
)
def test_a_fault_in_the_material_is_named_with_its_domain(change, fault):
    """Whoever edits a domain file is told which text of which domain is wrong, and why."""
    good = load_domains("training")[0]
    assert domain_faults(good) == []
    assert any(
        found.startswith(f"{good.name}: ") and fault in found for found in domain_faults(replace(good, **change))
    )


def test_loading_faulty_material_names_every_fault_at_once(monkeypatch):
    """All faults are collected before loading fails, and the message says where to correct them."""
    good = domains._domain
    monkeypatch.setattr(domains, "_domain", lambda raw: replace(good(raw), users=("nobody",), problems=("#1",)))
    load_domains.cache_clear()
    with pytest.raises(ValueError, match=r"30 faults.*evaluation.*marinas: '#1' must be plain YAML text.*ski schools"):
        load_domains("evaluation")
    load_domains.cache_clear()


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
