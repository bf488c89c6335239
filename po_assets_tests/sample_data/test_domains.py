"""The authored material, and how its faults are reported."""

from dataclasses import replace

import pytest

from po_assets.sample_data import domains
from po_assets.sample_data.domains import Exclusion, Limit, Need, domain_faults, load_domains


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
        ({"category": "planner: for vans"}, "'planner: for vans' is no plain YAML text"),
        ({"products": ("Yes", "B2", "C3", "D4")}, "'Yes' is no plain YAML text"),
        ({"users": ("drivers",)}, "1 users, at least 3 are needed"),
        ({"needs": (Need("fly", "speed", "speed rises", ("pilots can fly",)),)}, "under 2 lines serve 'fly'"),
        ({"exclusions": (Exclusion("crash", ("planes crash",)),)}, "'planes crash' lacks ' can '"),
        ({"qualities": (Limit("speed", "# fast"),)}, "'# fast' is no plain YAML text"),
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
    with pytest.raises(ValueError, match=r"30 faults.*evaluation.*marinas: '#1' is no plain YAML text.*ski schools"):
        load_domains("evaluation")
    load_domains.cache_clear()
