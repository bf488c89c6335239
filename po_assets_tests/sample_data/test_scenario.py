"""A case's status follows from the content of its prompt, and from nothing in the prompt's form."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from po_assets.product_owner import cited_ids, read_alignment, read_status, requirement_entries
from po_assets.review.checks import StylePrompt, style_leak
from po_assets.sample_data.domains import load_domains
from po_assets.sample_data.records import (
    CONFLICTS,
    EVALUATION_CASES,
    FIRST_GENERATION,
    SECOND_TEACHER,
    answer_case,
)
from po_assets.sample_data.scenario import TIERS, Scenario, draw_case
from po_assets_tests.sample_data.sample_rows import raw_rows, rows_of

STATUSES = ("aligned", "needs_adjustment", "conflicts")


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
