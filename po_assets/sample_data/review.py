"""Writing the review of a case: its status, what each requirement serves, what is missing, what offends, what to do.

Every requirement id of the document is named in the alignment lists, and every reason comes from the scenario's truth.
The sentence forms stand in `review_forms`.
"""

from collections.abc import Sequence
from random import Random

from po_assets.sample_data import review_forms as forms
from po_assets.sample_data.draws import pick, pick_some, pick_weighted
from po_assets.sample_data.prose import article, first_upper, join
from po_assets.sample_data.scenario import Requirement, Scenario
from po_assets.sample_data.shape import Shape

_MOST_GAPS = 2
"""A review that finds another product's requirements names two missing needs and leaves it at that."""


def write_review(rng: Random, scenario: Scenario, shape: Shape) -> dict[str, object]:
    """The review as a mapping in the order of its keys."""
    kind = scenario.pattern if scenario.status == "conflicts" else scenario.status
    words = _words(rng, scenario)
    return {
        "status": scenario.status,
        "summary": [form.format(**words) for form in pick_some(rng, forms.FINDINGS[kind], shape.findings)],
        "requirements_alignment": {
            "aligned": _aligned(rng, scenario, shape),
            "gaps": _gaps(rng, scenario),
            "conflicts": _conflicts(rng, scenario, shape),
        },
        "recommended_actions": _actions(rng, scenario, words),
        "narrative": _narrative(rng, kind, scenario, shape).format(**words),
    }


def _words(rng: Random, scenario: Scenario) -> dict[str, str]:
    """What the forms may speak of; `missing` is empty where every need is served."""
    violations = [entry.id for entry in scenario.functional if entry.offends]
    fitting = [entry.id for entry in scenario.functional if not entry.offends] or violations
    limits = join([entry.id for entry in scenario.limits])
    one = len(violations) == 1
    return {
        "product": scenario.product,
        "a_category": article(scenario.domain.category),
        "organisation": scenario.organisation,
        "user": scenario.users[0],
        "User": first_upper(scenario.users[0]),
        "need": scenario.needs[0].text,
        "second": scenario.needs[1].text,
        "missing": join([need.text for need in scenario.missing[:_MOST_GAPS]]),
        "doer": scenario.doer(scenario.missing[0]) if scenario.missing else scenario.product,
        "never": scenario.exclusion.text,
        "foreign": scenario.subject,
        "functional": pick(rng, fitting),
        "limit": pick(rng, scenario.limits).id,
        "limits": limits,
        "Limits": limits,
        "violations": join(violations),
        "ask": "asks" if one else "ask",
        "do": "does" if one else "do",
        "describe": "describes" if one else "describe",
    }


def _aligned(rng: Random, scenario: Scenario, shape: Shape) -> list[str]:
    items = []
    style = pick_weighted(rng, forms.SERVES, forms.SERVES_WEIGHTS)
    for group in _by_need(scenario.functional, together=rng.random() < shape.grouping):
        need = group[0].need
        if need is None or group[0].offends:
            continue
        if rng.random() < 0.3:
            style = pick_weighted(rng, forms.SERVES, forms.SERVES_WEIGHTS)
        form = pick(rng, forms.SERVE_TOGETHER) if len(group) > 1 else style
        items.append(
            form.format(
                id=group[0].id,
                ids=join([entry.id for entry in group]),
                who=group[0].who,
                action=group[0].action,
                need=need.text,
            )
        )
    return items + [
        _limit_item(pick(rng, forms.LIMITS_FIT), group, scenario)
        for group in _limit_groups(scenario, shape)
        if not group[0].offends
    ]


def _conflicts(rng: Random, scenario: Scenario, shape: Shape) -> list[str]:
    items = [
        pick(rng, forms.FOREIGN if entry.foreign else forms.BREACHES).format(
            id=entry.id,
            who=entry.who,
            action=entry.action,
            product=scenario.product,
            never=scenario.exclusion.text,
            foreign=scenario.subject,
            a_category=article(scenario.domain.category),
        )
        for entry in scenario.functional
        if entry.offends
    ]
    return items + [
        _limit_item(pick(rng, forms.FOREIGN_LIMITS), group, scenario)
        for group in _limit_groups(scenario, shape)
        if group[0].offends
    ]


def _by_need(entries: Sequence[Requirement], *, together: bool) -> list[list[Requirement]]:
    """The entries one by one, or those that serve the same need in one group, at the place of the first."""
    groups: list[list[Requirement]] = []
    for entry in entries:
        known = next((group for group in groups if entry.need is not None and group[0].need is entry.need), None)
        if together and known is not None:
            known.append(entry)
        else:
            groups.append([entry])
    return groups


def _limit_groups(scenario: Scenario, shape: Shape) -> list[list[Requirement]]:
    """Qualities and constraints one by one, or else each kind in one group, or all in one where there are but two."""
    if shape.item_per_limit:
        return [[entry] for entry in scenario.limits]
    kinds = [[entry for entry in scenario.limits if entry.id.startswith(prefix)] for prefix in ("NFR", "C")]
    return kinds if len(scenario.limits) > len(kinds) else [list(scenario.limits)]


def _limit_item(form: str, entries: Sequence[Requirement], scenario: Scenario) -> str:
    one = len(entries) == 1
    return form.format(
        ids=join([entry.id for entry in entries]),
        topics=join([entry.topic for entry in entries]),
        cover="covers" if one else "cover",
        set="sets" if one else "set",
        fit="fits" if one else "fit",
        limit="limits" if one else "limit",
        product=scenario.product,
    )


def _gaps(rng: Random, scenario: Scenario) -> list[str]:
    missing = scenario.missing[:_MOST_GAPS]
    chosen = pick_some(rng, forms.GAPS, len(missing))
    return [form.format(need=need.text) for form, need in zip(chosen, missing, strict=True)]


def _actions(rng: Random, scenario: Scenario, words: dict[str, str]) -> list[str]:
    """Two actions: they complete what is missing, correct what offends, and else prepare the work."""
    if scenario.status == "aligned":
        return [form.format(**words) for form in pick_some(rng, forms.READY_ACTIONS, 2)]
    if scenario.status == "conflicts":
        second = forms.RESTORING_ACTIONS if scenario.missing else forms.CONFIRMING_ACTIONS
        return [pick(rng, forms.CORRECTING_ACTIONS).format(**words), pick(rng, second).format(**words)]
    chosen = pick_some(rng, forms.COMPLETING_ACTIONS, len(scenario.missing))
    actions = [
        form.format(**{**words, "missing": need.text, "doer": scenario.doer(need)})
        for form, need in zip(chosen, scenario.missing, strict=True)
    ]
    return actions if len(actions) > 1 else [*actions, pick(rng, forms.READY_ACTIONS).format(**words)]


def _narrative(rng: Random, kind: str, scenario: Scenario, shape: Shape) -> str:
    if shape.narrative == 0:
        return pick(rng, forms.BRIEF_NARRATIVES[scenario.status])
    parts = [pick(rng, forms.NARRATIVES[kind])]
    if shape.narrative == 3:
        parts.append(pick(rng, forms.ASIDES))
    if shape.narrative >= 2:
        parts.append(pick(rng, forms.CLOSINGS[scenario.status]))
    return " ".join(parts)
