"""Drawing one case: a concept, a requirements document, and the truth about how they agree.

The status follows from content alone. All statuses share one plan (number of needs, entries per section, order,
sentence forms), so that nothing in the form of a prompt tells them apart: a missing need gives its place to further
requirements on the other needs, a breach takes the place of a requirement. What a review says about the case belongs to
`answers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

from po_assets.sample_data.domains import (
    Domain,
    Exclusion,
    Need,
    article,
    fill_numbers,
    forms,
    pick,
    pick_some,
    pick_weighted,
    shuffled,
)
from po_assets.text import first_upper, join

Status = Literal["aligned", "needs_adjustment", "conflicts"]
Tier = Literal["simple", "medium", "corporate"]
Pattern = Literal["none", "violated_non_goal", "scope_mismatch"]


@dataclass(frozen=True)
class TierPlan:
    """How many needs a concept of the tier states, and how many entries each section of its requirements holds."""

    needs: tuple[int, ...]
    functional: int
    quality: int
    constraint: int


TIERS: dict[Tier, TierPlan] = {
    "simple": TierPlan(needs=(3,), functional=3, quality=1, constraint=1),
    "medium": TierPlan(needs=(3, 3, 4), functional=4, quality=1, constraint=1),
    "corporate": TierPlan(needs=(3, 4), functional=4, quality=2, constraint=2),
}
_STATUS_WEIGHTS: dict[Status, float] = {"aligned": 66, "needs_adjustment": 30, "conflicts": 4}
_TIER_WEIGHTS: dict[Tier, float] = {"simple": 70, "medium": 24, "corporate": 6}
_PRIORITIES = ("High", "Medium", "Low")


@dataclass(frozen=True)
class Requirement:
    """One entry of the document, and what it really is: it serves a need, limits the product, or offends."""

    id: str
    text: str
    who: str = ""
    action: str = ""
    need: Need | None = None
    topic: str = ""
    breaks: Exclusion | None = None
    foreign: bool = False

    @property
    def offends(self) -> bool:
        """Whether it does what the concept excludes, or belongs to another product."""
        return self.foreign or self.breaks is not None


@dataclass(frozen=True)
class Scenario:
    """A case before anyone has answered it."""

    domain: Domain
    tier: Tier
    status: Status
    pattern: Pattern
    product: str
    subject: str
    """The product that the requirements were written for: another one when the scope is wrong."""
    organisation: str
    users: tuple[str, str]
    needs: tuple[Need, ...]
    missing: tuple[Need, ...]
    exclusion: Exclusion
    functional: tuple[Requirement, ...]
    limits: tuple[Requirement, ...]
    concept: str
    requirements_yaml: str

    def doer(self, need: Need) -> str:
        """Whoever of the concept's users acts on a need, else the product itself."""
        return next((user for user in actors(need) if user in self.users), self.product)


def draw_case(
    rng: Random,
    domains: Sequence[Domain],
    *,
    regions: Sequence[str] = (),
    status: Status | None = None,
    tier: Tier | None = None,
    domain: Domain | None = None,
) -> Scenario:
    """A case of the given status, tier and domain, or of ones drawn in the sample data's proportions.

    Without `regions` it plays in one of the training regions. `domains` are also those of which another's requirements
    may come instead.
    """
    drawn_status: Status = pick_weighted(rng, _STATUS_WEIGHTS) if status is None else status
    drawn_tier: Tier = pick_weighted(rng, _TIER_WEIGHTS) if tier is None else tier
    regions = regions or forms()["regions"]["training"]
    domain = domain or pick(rng, domains)
    plan = TIERS[drawn_tier]
    product, organisation = pick(rng, domain.products), pick(rng, domain.organisations)
    needs = tuple(pick_some(rng, domain.needs, pick(rng, plan.needs)))
    # Two of the domain's users, those first who act on the needs that the concept names.
    acting = [user for need in needs for user in actors(need) if user in domain.users]
    first, second = list(dict.fromkeys([*acting, *shuffled(rng, domain.users)]))[:2]
    users = (first, second)
    exclusion = pick(rng, domain.exclusions)
    patterns: tuple[Pattern, ...] = ("violated_non_goal", "scope_mismatch")
    pattern: Pattern = pick(rng, patterns) if drawn_status == "conflicts" else "none"

    source, subject = domain, product
    if pattern == "scope_mismatch":
        source = pick(rng, [other for other in domains if other is not domain])
        subject = pick(rng, source.products)
        lines = _serve(rng, pick_some(rng, source.needs, len(needs)), plan.functional, foreign=True)
        missing: tuple[Need, ...] = needs
    else:
        missing = _missing(rng, needs, plan.functional) if drawn_status == "needs_adjustment" else ()
        breaches: Sequence[str] = ()
        if pattern == "violated_non_goal":
            # A third of the violations are double, as far as the exclusion has two.
            breaches = pick_some(rng, exclusion.breaches, 2 if rng.random() < 0.33 else 1)
        served = [need for need in needs if need not in missing]
        lines = _serve(rng, served, plan.functional, breaches=breaches, breaks=exclusion)
        covered = {line.need for line in lines}
        missing = tuple(need for need in needs if need not in covered)

    functional = _number_functional(rng, lines)
    limits = _limits(rng, source, plan, foreign=pattern == "scope_mismatch")
    title = pick(rng, forms()["titles"]).format(product=subject, category=source.category)
    region, problem = pick(rng, regions), pick(rng, domain.problems)
    named = {"a_category": article(domain.category), "organisation": organisation, "users": join(users)}
    named["problem"] = problem
    named |= {first_upper(name): first_upper(text) for name, text in named.items()}
    named |= {"product": product, "category": domain.category, "region": region, "never": exclusion.text}
    concept = pick(rng, forms()["concepts"]).format(**named, needs=join([need.text for need in needs]))
    return Scenario(
        domain=domain,
        tier=drawn_tier,
        status=drawn_status,
        pattern=pattern,
        product=product,
        subject=subject,
        organisation=organisation,
        users=users,
        needs=needs,
        missing=missing,
        exclusion=exclusion,
        functional=functional,
        limits=limits,
        concept=concept,
        requirements_yaml=_requirements_yaml(rng, title, functional, limits),
    )


def actors(need: Need) -> list[str]:
    """Who acts in the requirements that serve a need."""
    return [line.split(" can ", 1)[0] for line in need.served_by]


def _drafted(text: str, **meaning: Any) -> Requirement:
    """A requirement without its place in the document."""
    who, action = text.split(" can ", 1)
    return Requirement("", text, who, action, **meaning)


def _serve(
    rng: Random,
    needs: Sequence[Need],
    count: int,
    *,
    breaches: Sequence[str] = (),
    breaks: Exclusion | None = None,
    foreign: bool = False,
) -> list[Requirement]:
    """`count` requirement lines: the breaches, one line a need as far as they fit, then second lines; shuffled."""
    first = [_drafted(pick(rng, need.served_by), need=need, foreign=foreign) for need in needs]
    second = [
        _drafted(text, need=need, foreign=foreign)
        for need, line in zip(needs, first, strict=True)
        for text in need.served_by
        if text != line.text
    ]
    lines = [*(_drafted(text, breaks=breaks) for text in breaches), *first, *shuffled(rng, second)]
    return shuffled(rng, lines[:count])


def _missing(rng: Random, needs: tuple[Need, ...], functional: int) -> tuple[Need, ...]:
    """One or two needs that no requirement will serve; the others must still be able to fill the document."""
    most = len(needs) - -(-functional // 2)  # every need has at least two requirements
    return tuple(pick_some(rng, needs, 2 if most >= 2 and rng.random() < 0.4 else 1))


def _number_functional(rng: Random, lines: Sequence[Requirement]) -> tuple[Requirement, ...]:
    form, stop = pick(rng, forms()["requirements"]), "." if rng.random() < 0.15 else ""
    numbered = []
    for number, line in enumerate(lines, start=1):
        if rng.random() < 0.15:  # documents that several people wrote are not of one form
            form = pick(rng, forms()["requirements"])
        numbered.append(replace(line, id=f"FR{number:03d}", text=worded(form, line.who, line.action) + stop))
    return tuple(numbered)


def worded(form: str, who: str, action: str) -> str:
    """A requirement in one of the sentence forms."""
    return form.format(who=who, Who=first_upper(who), action=action)


def _limits(rng: Random, source: Domain, plan: TierPlan, *, foreign: bool) -> tuple[Requirement, ...]:
    drawn = [
        ("NFR", pick_some(rng, source.qualities, plan.quality)),
        ("C", pick_some(rng, source.constraints, plan.constraint)),
    ]
    return tuple(
        Requirement(id=f"{prefix}{number:03d}", text=fill_numbers(rng, limit.text), topic=limit.topic, foreign=foreign)
        for prefix, limits in drawn
        for number, limit in enumerate(limits, start=1)
    )


def _requirements_yaml(
    rng: Random, title: str, functional: Sequence[Requirement], limits: Sequence[Requirement]
) -> str:
    with_priority = rng.random() < 0.08
    sections = {
        "functional_requirements": functional,
        "non_functional_requirements": [entry for entry in limits if entry.id.startswith("NFR")],
        "constraints": [entry for entry in limits if entry.id.startswith("C")],
    }
    lines = [f"title: {title}"]
    for section, entries in sections.items():
        lines.append(f"{section}:")
        for entry in entries:
            lines += [f"- id: {entry.id}", f"  description: {entry.text}"]
            if with_priority:
                lines.append(f"  priority: {pick(rng, _PRIORITIES)}")
    return "\n".join(lines)
