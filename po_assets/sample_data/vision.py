"""Writing the vision of a case: what the product is, for whom, what it is worth, can do and will not do.

Everything but the success metrics comes from the concept, so that a small model can learn to write it by rephrasing.
"""

from datetime import date, timedelta
from random import Random

from po_assets.sample_data.draws import pick
from po_assets.sample_data.prose import article, fill_numbers, first_upper, join
from po_assets.sample_data.scenario import Scenario
from po_assets.sample_data.shape import Shape

_SUMMARIES = (
    "{product} is {a_category} that helps {user} {need}.",
    "{product} gives {user} {a_category} to {need}.",
    "With {product}, {a_category}, {user} can {need}.",
    "{product} is {a_category} for {users} who need to {need}.",
)
_SUMMARY_ENDINGS = (
    "It also lets them {second}, so that {organisation} get {gain}.",
    "It brings {organisation} {gain} and helps them {second}.",
    "Beyond that it helps {organisation} {second}, with {gain} as the aim.",
)
_VALUES = (
    "Makes it easy to {need}",
    "One place to {need}",
    "Less effort to {need}",
    "{Doer} can {need} without delay",
)
_USERS = ("{User}", "{User}", "{User}", "{User}", "{User} at {organisation}")
_USAGE = "{percent} percent of {user} use {product} every week"
_NON_GOALS = ("{Never}", "{Never}", "{product} does not {never}")
_FIRST_DAY = date(2026, 4, 1)
_DAYS = 200


def write_vision(rng: Random, scenario: Scenario, shape: Shape) -> dict[str, object]:
    """The vision as a mapping in the order of its keys; `last_updated` is ISO text."""
    user_form = pick(rng, _USERS)
    return {
        "product_name": scenario.product,
        "product_summary": _summary(rng, scenario, shape),
        "target_users": [
            user_form.format(User=first_upper(user), organisation=scenario.organisation)
            for user in scenario.users[: shape.users]
        ],
        "value_proposition": [_value(rng, scenario, index) for index in range(shape.values)],
        "key_capabilities": [first_upper(need.text) for need in scenario.needs[: shape.capabilities]],
        "non_goals": [
            pick(rng, _NON_GOALS).format(
                product=scenario.product, never=scenario.exclusion.text, Never=first_upper(scenario.exclusion.text)
            )
        ],
        "success_metrics": [_metric(rng, scenario, index) for index in range(shape.metrics)],
        "last_updated": (_FIRST_DAY + timedelta(days=rng.randrange(_DAYS))).isoformat(),
    }


def _summary(rng: Random, scenario: Scenario, shape: Shape) -> str:
    needs = scenario.needs
    words = {
        "product": scenario.product,
        "a_category": article(scenario.domain.category),
        "user": scenario.users[0],
        "users": join(scenario.users),
        "need": needs[0].text,
        "second": needs[1].text,
        "organisation": scenario.organisation,
        "gain": needs[0].gain,
    }
    summary = pick(rng, _SUMMARIES).format(**words)
    if shape.long_summary:
        summary += " " + pick(rng, _SUMMARY_ENDINGS).format(**words)
    return summary


def _value(rng: Random, scenario: Scenario, index: int) -> str:
    need = scenario.needs[index]
    if rng.random() < 0.5:
        return first_upper(need.gain)
    return pick(rng, _VALUES).format(need=need.text, Doer=first_upper(scenario.doer(need)))


def _metric(rng: Random, scenario: Scenario, index: int) -> str:
    text = scenario.needs[index].measure
    if index and rng.random() < 0.3:
        text = _USAGE.replace("{user}", scenario.users[index]).replace("{product}", scenario.product)
    return first_upper(fill_numbers(rng, text))
