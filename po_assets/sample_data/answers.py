"""Writing the answer to a case: the vision, and the review with its status, what is served, missing and offending.

Everything but the success metrics comes from the concept, so that a small model can learn to write it by rephrasing,
and every reason in the review comes from the scenario's truth. Before its sentences an answer's `Shape` is drawn: the
counts and lengths that the metric pays for, since teachers differ in thoroughness, and that, not correctness, is what
their scores differ in. The sentence forms stand in `forms.yaml`; what makes a row of an answer belongs to `records`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random
from typing import Any, Literal

from po_assets.sample_data.domains import article, fill_numbers, forms, pick, pick_some, pick_weighted
from po_assets.sample_data.scenario import Requirement, Scenario
from po_assets.text import first_upper, join

_FIRST_DAY, _DAYS = date(2026, 4, 1), 200
Care = Literal["ordinary", "brief", "thin"]
_MOST_GAPS = 2
"""A review that finds another product's requirements names two missing needs and leaves it at that."""


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


def draw_shape(rng: Random, care: Care = "ordinary") -> Shape:
    """A shape of ordinary care scores about 0.90 where nothing is missing.

    A brief one is for where something is missing or offends: the metric pays for naming it, so the vision is kept
    shorter. A thin one is valid, complete in its keys, and under the score that training asks for.
    """
    return Shape(**{name: _drawn(rng, odds) for name, odds in forms()["shapes"][care].items()})


def _drawn(rng: Random, odds: Any) -> Any:
    """A value as it is given, drawn by weights, or one of two, the first with a share."""
    if isinstance(odds, dict):
        return pick_weighted(rng, odds)
    if isinstance(odds, list):
        value, share, other = odds
        return value if rng.random() < share else other
    return odds


def write_vision(rng: Random, scenario: Scenario, shape: Shape) -> dict[str, Any]:
    """The vision as a mapping in the order of its keys; `last_updated` is ISO text."""
    never, product, organisation = scenario.exclusion.text, scenario.product, scenario.organisation
    user_form = pick(rng, forms()["users"])
    users = [first_upper(user) for user in scenario.users[: shape.users]]
    return {
        "product_name": product,
        "product_summary": _summary(rng, scenario, shape),
        "target_users": [user_form.format(User=user, organisation=organisation) for user in users],
        "value_proposition": [_value(rng, scenario, index) for index in range(shape.values)],
        "key_capabilities": [first_upper(need.text) for need in scenario.needs[: shape.capabilities]],
        "non_goals": [pick(rng, forms()["non_goals"]).format(product=product, never=never, Never=first_upper(never))],
        "success_metrics": [_metric(rng, scenario, index) for index in range(shape.metrics)],
        "last_updated": (_FIRST_DAY + timedelta(days=rng.randrange(_DAYS))).isoformat(),
    }


def _summary(rng: Random, scenario: Scenario, shape: Shape) -> str:
    parts = [pick(rng, forms()["summaries"])]
    if shape.long_summary:
        parts.append(pick(rng, forms()["summary_endings"]))
    gain, users = scenario.needs[0].gain, join(scenario.users)
    return " ".join(parts).format(**_names(scenario), users=users, gain=gain)


def _value(rng: Random, scenario: Scenario, index: int) -> str:
    need = scenario.needs[index]
    if rng.random() < 0.5:
        return first_upper(need.gain)
    return str(pick(rng, forms()["values"]).format(need=need.text, Doer=first_upper(scenario.doer(need))))


def _metric(rng: Random, scenario: Scenario, index: int) -> str:
    text = scenario.needs[index].measure
    if index and rng.random() < 0.3:
        text = f"{{percent}} percent of {scenario.users[index]} use {scenario.product} every week"
    return first_upper(fill_numbers(rng, text))


def write_review(rng: Random, scenario: Scenario, shape: Shape) -> dict[str, Any]:
    """The review as a mapping in the order of its keys; its alignment lists name every requirement id."""
    kind = scenario.pattern if scenario.status == "conflicts" else scenario.status
    words = _words(rng, scenario)
    return {
        "status": scenario.status,
        "summary": [form.format(**words) for form in pick_some(rng, forms()["findings"][kind], shape.findings)],
        "requirements_alignment": {
            "aligned": _aligned(rng, scenario, shape),
            "gaps": _gaps(rng, scenario),
            "conflicts": _conflicts(rng, scenario, shape),
        },
        "recommended_actions": _actions(rng, scenario, words),
        "narrative": _narrative(rng, kind, scenario, shape).format(**words),
    }


def _names(scenario: Scenario) -> dict[str, str]:
    """What the forms of visions and reviews may speak of."""
    return {
        "product": scenario.product,
        "a_category": article(scenario.domain.category),
        "organisation": scenario.organisation,
        "user": scenario.users[0],
        "need": scenario.needs[0].text,
        "second": scenario.needs[1].text,
    }


def _words(rng: Random, scenario: Scenario) -> dict[str, str]:
    """What the forms of reviews may speak of; `missing` is empty where every need is served."""
    violations = [entry.id for entry in scenario.functional if entry.offends]
    fitting = [entry.id for entry in scenario.functional if not entry.offends] or violations
    one = len(violations) == 1
    return {
        **_names(scenario),
        "User": first_upper(scenario.users[0]),
        "missing": join([need.text for need in scenario.missing[:_MOST_GAPS]]),
        "doer": scenario.doer(scenario.missing[0]) if scenario.missing else scenario.product,
        "never": scenario.exclusion.text,
        "foreign": scenario.subject,
        "functional": pick(rng, fitting),
        "limit": pick(rng, scenario.limits).id,
        "limits": join([entry.id for entry in scenario.limits]),
        "violations": join(violations),
        "ask": "asks" if one else "ask",
        "do": "does" if one else "do",
        "describe": "describes" if one else "describe",
    }


def _aligned(rng: Random, scenario: Scenario, shape: Shape) -> list[str]:
    items = []
    style = pick_weighted(rng, forms()["serves"])
    for group in _by_need(scenario.functional, together=rng.random() < shape.grouping):
        first = group[0]
        if first.need is None or first.offends:
            continue
        if rng.random() < 0.3:
            style = pick_weighted(rng, forms()["serves"])
        form = pick(rng, forms()["serve_together"]) if len(group) > 1 else style
        ids = join([entry.id for entry in group])
        items.append(form.format(id=first.id, ids=ids, who=first.who, action=first.action, need=first.need.text))
    return [*items, *_limit_items(rng, "limits_fit", scenario, shape, offending=False)]


def _conflicts(rng: Random, scenario: Scenario, shape: Shape) -> list[str]:
    names = _names(scenario) | {"never": scenario.exclusion.text, "foreign": scenario.subject}
    items = [
        pick(rng, forms()["foreign" if entry.foreign else "breaches"]).format(
            **names, id=entry.id, who=entry.who, action=entry.action
        )
        for entry in scenario.functional
        if entry.offends
    ]
    return [*items, *_limit_items(rng, "foreign_limits", scenario, shape, offending=True)]


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


def _limit_items(rng: Random, pool: str, scenario: Scenario, shape: Shape, *, offending: bool) -> list[str]:
    """Qualities and constraints one by one, or else each kind in one item, or all in one where there are but two."""
    limits = scenario.limits
    groups: list[list[Requirement]] = [[entry] for entry in limits]
    if not shape.item_per_limit:
        groups = [[entry for entry in limits if entry.id.startswith(prefix)] for prefix in ("NFR", "C")]
        groups = groups if len(limits) > len(groups) else [list(limits)]
    items = []
    for group in groups:
        if group[0].offends == offending:
            verbs = {verb: f"{verb}s" if len(group) == 1 else verb for verb in ("cover", "set", "fit", "limit")}
            ids, topics = (join([getattr(entry, name) for entry in group]) for name in ("id", "topic"))
            items.append(pick(rng, forms()[pool]).format(ids=ids, topics=topics, product=scenario.product, **verbs))
    return items


def _gaps(rng: Random, scenario: Scenario) -> list[str]:
    missing = scenario.missing[:_MOST_GAPS]
    chosen = pick_some(rng, forms()["gaps"], len(missing))
    return [form.format(need=need.text) for form, need in zip(chosen, missing, strict=True)]


def _actions(rng: Random, scenario: Scenario, words: dict[str, str]) -> list[str]:
    """Two actions: they complete what is missing, correct what offends, and else prepare the work."""
    if scenario.status == "aligned":
        return [form.format(**words) for form in pick_some(rng, forms()["ready_actions"], 2)]
    if scenario.status == "conflicts":
        second = forms()["restoring_actions" if scenario.missing else "confirming_actions"]
        return [pick(rng, forms()["correcting_actions"]).format(**words), pick(rng, second).format(**words)]
    chosen = pick_some(rng, forms()["completing_actions"], len(scenario.missing))
    actions = [
        form.format(**{**words, "missing": need.text, "doer": scenario.doer(need)})
        for form, need in zip(chosen, scenario.missing, strict=True)
    ]
    return actions if len(actions) > 1 else [*actions, pick(rng, forms()["ready_actions"]).format(**words)]


def _narrative(rng: Random, kind: str, scenario: Scenario, shape: Shape) -> str:
    if shape.narrative == 0:
        return str(pick(rng, forms()["brief_narratives"][scenario.status]))
    parts = [pick(rng, forms()["narratives"][kind])]
    if shape.narrative == 3:
        parts.append(pick(rng, forms()["asides"]))
    if shape.narrative >= 2:
        parts.append(pick(rng, forms()["closings"][scenario.status]))
    return " ".join(parts)
