"""The authored material, drawing from it, and cases whose status follows from their content and from no form."""

import re
from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from po_assets.product_owner import STATUSES, cited_ids, read_alignment, read_status, requirement_entries
from po_assets.review.checks import StylePrompt, style_leak
from po_assets.sample_data.domains import load_domains, pick, pick_some, pick_weighted, shuffled
from po_assets.sample_data.records import CONFLICTS, EVALUATION_CASES, FIRST_GENERATION, SECOND_TEACHER, answer_case
from po_assets.sample_data.scenario import TIERS, Scenario, draw_case
from po_assets_tests.sample_data.sample_rows import raw_rows, rows_of

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


def draw(count: int, status: str | None = None, seed: int = 7) -> list[Scenario]:
    rng, domains = Random(seed), load_domains("training")
    return [draw_case(rng, domains, status=status) for _ in range(count)]


def status_from_text(concept: str, requirements_yaml: str) -> str:
    """What a reader who knows the trades would say, from the prompt's text alone."""
    domains = load_domains("training") + load_domains("evaluation")
    domain = next(domain for domain in domains if any(product in concept for product in domain.products))
    asked = [need for need in domain.needs if need.text in concept]
    excluded = [exclusion for exclusion in domain.exclusions if exclusion.text in concept]
    served = set()
    for entry in requirement_entries(requirements_yaml):
        if entry.section != "functional_requirements":
            continue
        text = entry.description.rstrip(".")
        if any(text.endswith(line.split(" can ", 1)[1]) for found in excluded for line in found.breaches):
            return "conflicts"
        serves = [need for need in asked if any(text.endswith(line.split(" can ", 1)[1]) for line in need.served_by)]
        if not serves:
            return "conflicts"
        served.update(need.text for need in serves)
    return "aligned" if len(served) == len(asked) else "needs_adjustment"


def test_the_status_of_every_committed_case_can_be_worked_out_from_its_prompt():
    """A reader who compares needs, exclusion and requirements finds the status that the answer gives."""
    rows = [*rows_of(FIRST_GENERATION, SECOND_TEACHER), *rows_of(CONFLICTS)[3:]]
    cases = [(row.status, row.concept, row.requirements_yaml) for row in rows]
    cases += [(case["status"], case["concept"], case["requirements_yaml"]) for case in raw_rows(EVALUATION_CASES)]
    assert [case for case in cases if status_from_text(*case[1:]) != case[0]] == []
    assert {case[0] for case in cases} == set(STATUSES)


@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_fixes_the_number_of_entries_for_every_status(tier):
    """Simple, medium and corporate documents differ in size; the three statuses of a tier do not."""
    rng, domains, plan = Random(3), load_domains("training"), TIERS[tier]
    for status in STATUSES:
        scenario = draw_case(rng, domains, status=status, tier=tier)
        sections = Counter(entry.section for entry in requirement_entries(scenario.requirements_yaml))
        assert list(sections.values()) == [plan.functional, plan.quality, plan.constraint]


def test_gaps_name_what_is_missing_and_conflicts_what_offends():
    """The review's lists, actions and status tell the scenario's truth, in both patterns of conflict."""
    rng, conflicting = Random(11), draw(60, "conflicts")
    assert {scenario.pattern for scenario in conflicting} == {"scope_mismatch", "violated_non_goal"}
    for scenario in [*draw(60, "needs_adjustment"), *conflicting, *draw(60, "aligned")]:
        review = answer_case(rng, scenario).review_yaml
        said, actions = read_alignment(review), review.split("recommended_actions:")[1]
        violations = {entry.id for entry in (*scenario.functional, *scenario.limits) if entry.offends}
        assert read_status(review) == scenario.status
        assert set(cited_ids(" ".join(said["conflicts"]))) == violations
        assert all(need.text in " ".join(said["gaps"]) for need in scenario.missing[:2])
        if scenario.status == "needs_adjustment":
            assert all(need.text in actions for need in scenario.missing)
        assert bool(violations) == (scenario.status == "conflicts")


@pytest.mark.parametrize("status", ["needs_adjustment", "conflicts"])
def test_the_form_of_a_prompt_does_not_give_its_status_away(status):
    """The classifier that sees no word tells it from `aligned` no better than chance, and would find a leak."""
    rng, domains, prompts = Random(5), load_domains("training"), []
    for pair in range(400):
        for drawn in ("aligned", status):
            case = draw_case(rng, domains, status=drawn)
            prompts.append(StylePrompt(case.concept, case.requirements_yaml, pair, drawn == status))
    found = style_leak(prompts, permutations=200)
    assert not found.tells, found
    longer = [replace(one, concept=f"{one.concept} Soon.") if one.conflicts else one for one in prompts[:300]]
    assert style_leak(longer, permutations=200).tells
