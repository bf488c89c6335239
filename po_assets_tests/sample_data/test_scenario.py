"""A case's status follows from the content of its prompt, and from nothing in the prompt's form."""

from collections import Counter
from random import Random
from statistics import mean, pstdev

import numpy as np
import pytest

from po_assets.product_owner import cited_ids, read_status, requirement_entries
from po_assets.sample_data.domains import load_domains
from po_assets.sample_data.landing import CONFLICTS, EVALUATION_CASES, FIRST_GENERATION, SECOND_TEACHER
from po_assets.sample_data.records import answer_case, draw_case
from po_assets.sample_data.scenario import TIERS, Scenario
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
    pairs = [(row.status, status_from_text(row.concept, row.requirements_yaml)) for row in rows]
    pairs += [
        (case["status"], status_from_text(case["concept"], case["requirements_yaml"]))
        for case in raw_rows(EVALUATION_CASES)
    ]
    assert [pair for pair in pairs if pair[0] != pair[1]] == []
    assert {pair[0] for pair in pairs} == set(STATUSES)


@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_fixes_the_number_of_entries_for_every_status(tier):
    """Simple, medium and corporate documents differ in size; the three statuses of a tier do not."""
    rng, domains, plan = Random(3), load_domains("training"), TIERS[tier]
    for status in STATUSES:
        scenario = draw_case(rng, domains, status=status, tier=tier)
        sections = Counter(entry.section for entry in requirement_entries(scenario.requirements_yaml))
        assert list(sections.values()) == [plan.functional, plan.quality, plan.constraint]


def test_gaps_name_what_is_missing_and_conflicts_what_offends():
    """The review's lists, actions and status tell the scenario's truth."""
    rng = Random(11)
    for scenario in [*draw(60, "needs_adjustment"), *draw(60, "conflicts"), *draw(60, "aligned")]:
        answered = answer_case(rng, scenario)
        gaps = answered.review_yaml.split("  gaps:")[1].split("  conflicts:")[0]
        conflicts = answered.review_yaml.split("  conflicts:")[1].split("recommended_actions:")[0]
        violations = {entry.id for entry in (*scenario.functional, *scenario.limits) if entry.offends}
        assert read_status(answered.review_yaml) == scenario.status
        assert set(cited_ids(conflicts)) == violations
        assert all(need.text in gaps for need in scenario.missing[:2])
        if scenario.status == "needs_adjustment":
            actions = answered.review_yaml.split("recommended_actions:")[1]
            assert all(need.text in actions for need in scenario.missing)
        assert bool(violations) == (scenario.status == "conflicts")


def test_both_patterns_of_conflict_occur():
    """Another product's requirements, and a requirement that does what the concept excludes."""
    assert set(Counter(scenario.pattern for scenario in draw(40, "conflicts"))) == {
        "scope_mismatch",
        "violated_non_goal",
    }


def test_the_form_of_a_prompt_does_not_give_its_status_away():
    """A classifier on lengths, counts and punctuation does no better than chance on cases it has not seen."""
    rng, domains = Random(5), load_domains("training")
    statuses = np.arange(3600) % 3
    features = np.array([form_of(draw_case(rng, domains, status=STATUSES[status])) for status in statuses])
    features = (features - features.mean(0)) / (features.std(0) + 1e-9)
    features = np.clip(np.hstack([features, features**2, np.ones((len(features), 1))]), -4, 4)
    seen = np.arange(len(statuses)) % 3600 < 2400
    weights = fit_softmax(features[seen], statuses[seen])
    right = (features[~seen] @ weights).argmax(1) == statuses[~seen]
    # Chance is 1/3 with a standard error of 0.0136 over 1,200 cases; three of them are allowed.
    assert right.mean() < 1 / 3 + 3 * 0.0136


def test_the_classifier_would_find_a_leak():
    """The same classifier sees a status that shows in the form, so that the test above can fail."""
    rng, domains = Random(5), load_domains("training")
    statuses = np.arange(900) % 3
    features = np.array([form_of(draw_case(rng, domains, status=STATUSES[status])) for status in statuses])
    features[:, 0] += 15 * (statuses == 2)  # conflicts concepts of 15 characters more
    features = (features - features.mean(0)) / (features.std(0) + 1e-9)
    features = np.clip(np.hstack([features, np.ones((len(features), 1))]), -4, 4)
    weights = fit_softmax(features[:600], statuses[:600])
    assert ((features[600:] @ weights).argmax(1) == statuses[600:]).mean() > 1 / 3 + 3 * 0.0272


def form_of(scenario: Scenario) -> list[float]:
    """Lengths, counts and punctuation of a prompt, without a word of its content."""
    concept, document = scenario.concept, scenario.requirements_yaml
    lengths = [len(entry.description) for entry in requirement_entries(document)]
    words = [len(entry.description.split()) for entry in requirement_entries(document)]
    marks = [text.count(mark) for text in (concept, document) for mark in ",.-'"]
    capitals = [sum(letter.isupper() for letter in text) for text in (concept, document)]
    title = document.split("\n", 1)[0]
    return [
        len(concept),
        len(concept.split()),
        len(document),
        len(title),
        len(title.split()),
        len(lengths),
        document.count("priority"),
        sum(letter.isdigit() for letter in document),
        mean(lengths),
        pstdev(lengths),
        min(lengths),
        max(lengths),
        max(words),
        min(words),
        *lengths[:3],
        *lengths[-2:],
        *marks,
        *capitals,
    ]


def fit_softmax(features: np.ndarray, classes: np.ndarray, steps: int = 300) -> np.ndarray:
    """Multinomial logistic regression by gradient descent, slightly regularised."""
    weights, wanted = np.zeros((features.shape[1], 3)), np.eye(3)[classes]
    for _ in range(steps):
        scores = features @ weights
        shares = np.exp(scores - scores.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        weights -= 0.5 * (features.T @ (shares - wanted) / len(classes) + 1e-3 * weights)
    return weights
