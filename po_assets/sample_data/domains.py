"""The authored material that sample rows are made from, and the few tools to draw from it and to write English.

The material itself is YAML: trades (products, needs, requirements, exclusions) under `domains/training` and
`domains/evaluation`, sentence forms in `forms.yaml`. How a case is drawn belongs to `scenario`.

Draws need nothing but `Random.random`: three times faster than `choice`, `sample` and `choices`, which matters where
rows are made by the million, and fixed in their results by this file alone, whatever Python does in those methods.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, Literal, TypeVar

import yaml

T = TypeVar("T")
Purpose = Literal["training", "evaluation"]

# Text that stands as a plain YAML scalar as it is: no quoting, so that answers cost no needless tokens.
_PLAIN = re.compile(r"[A-Za-z0-9][^\n#:]*[^\s:]")
_RESERVED = frozenset(["true", "false", "yes", "no", "on", "off", "null", "y", "n"])


@dataclass(frozen=True)
class Need:
    """Something the product must do, as a verb phrase; what it brings, how that is measured, what serves it."""

    text: str
    gain: str
    measure: str
    served_by: tuple[str, ...]
    """Requirements, each "<who> can <do what>"."""


@dataclass(frozen=True)
class Exclusion:
    """Something the product does not do, as a verb phrase, and requirements that would make it do so."""

    text: str
    breaches: tuple[str, ...]


@dataclass(frozen=True)
class Limit:
    """A quality or a constraint: the topic in a word or two, and the requirement text."""

    topic: str
    text: str


@dataclass(frozen=True)
class Domain:
    """One trade, with everything that a concept, its requirements and their review speak of."""

    name: str
    category: str
    organisations: tuple[str, ...]
    products: tuple[str, ...]
    users: tuple[str, ...]
    problems: tuple[str, ...]
    needs: tuple[Need, ...]
    qualities: tuple[Limit, ...]
    constraints: tuple[Limit, ...]
    exclusions: tuple[Exclusion, ...]


@cache
def forms() -> dict[str, Any]:
    """The sentence forms by what they say, with the regions and figures that fill them."""
    text = files("po_assets.sample_data").joinpath("forms.yaml").read_text("utf-8")
    return dict(yaml.safe_load(text))


@cache
def load_domains(purpose: Purpose) -> tuple[Domain, ...]:
    """All domains of one purpose, in file order.

    Raises:
        ValueError: naming every text that is not fit for use, when the authored material has faults.
    """
    folder = files("po_assets.sample_data").joinpath("domains", purpose)
    texts = [entry.read_text("utf-8") for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)]
    domains = tuple(_domain(raw) for text in texts for raw in yaml.safe_load(text))
    faults = [fault for domain in domains for fault in domain_faults(domain)]
    if faults:
        raise ValueError(
            f"The {purpose} domains have {len(faults)} faults, to be corrected in {folder}: {'; '.join(faults)}."
        )
    return domains


def domain_faults(domain: Domain) -> list[str]:
    """What keeps a domain from being used, in words; empty when it is fit."""
    served = [line for need in domain.needs for line in need.served_by]
    breaches = [line for exclusion in domain.exclusions for line in exclusion.breaches]
    faults = [
        f"{domain.name}: {text!r} must be plain YAML text"
        for text in _texts(domain)
        if not _PLAIN.fullmatch(text) or text.lower() in _RESERVED
    ]
    faults += [f"{domain.name}: {line!r} lacks ' can '" for line in [*served, *breaches] if " can " not in line]
    faults += [f"{domain.name}: under 2 lines serve {need.text!r}" for need in domain.needs if len(need.served_by) < 2]
    least = {"needs": 6, "users": 3, "qualities": 4, "constraints": 4, "exclusions": 2, "products": 4, "problems": 2}
    faults += [
        f"{domain.name}: {len(getattr(domain, key))} {key}, at least {minimum} are needed"
        for key, minimum in least.items()
        if len(getattr(domain, key)) < minimum
    ]
    return faults


def _texts(domain: Domain) -> Iterator[str]:
    yield from (domain.name, domain.category)
    for group in (domain.organisations, domain.products, domain.users, domain.problems):
        yield from group
    for need in domain.needs:
        yield from (need.text, need.gain, need.measure, *need.served_by)
    for limit in (*domain.qualities, *domain.constraints):
        yield from (limit.topic, limit.text)
    for exclusion in domain.exclusions:
        yield from (exclusion.text, *exclusion.breaches)


def _domain(raw: dict[str, Any]) -> Domain:
    return Domain(
        name=raw["name"],
        category=raw["category"],
        organisations=tuple(raw["organisations"]),
        products=tuple(raw["products"]),
        users=tuple(raw["users"]),
        problems=tuple(raw["problems"]),
        needs=tuple(
            Need(text=need["need"], gain=need["gain"], measure=need["measure"], served_by=tuple(need["served_by"]))
            for need in raw["needs"]
        ),
        qualities=_limits(raw["qualities"]),
        constraints=_limits(raw["constraints"]),
        exclusions=tuple(Exclusion(item["never"], tuple(item["breaches"])) for item in raw["exclusions"]),
    )


def _limits(raw: list[dict[str, str]]) -> tuple[Limit, ...]:
    return tuple(Limit(topic, text) for item in raw for topic, text in item.items())


def pick(rng: Random, items: Sequence[T]) -> T:
    """One item, all alike likely."""
    return items[int(rng.random() * len(items))]


def pick_some(rng: Random, items: Sequence[T], count: int) -> list[T]:
    """`count` different items in random order, at most all there are."""
    pool = list(items)
    return [pool.pop(int(rng.random() * len(pool))) for _ in range(min(count, len(pool)))]


def shuffled(rng: Random, items: Sequence[T]) -> list[T]:
    """All items in random order."""
    return pick_some(rng, items, len(items))


def pick_weighted(rng: Random, items: Sequence[T], weights: Sequence[float]) -> T:
    """One item, likely in proportion to its weight."""
    point = rng.random() * sum(weights)
    for item, weight in zip(items, weights, strict=True):
        point -= weight
        if point < 0:
            return item
    return items[-1]


def fill_numbers(rng: Random, text: str) -> str:
    """The text with each placeholder such as `{percent}` replaced by a drawn figure."""
    if "{" not in text:
        return text
    for name, figures in forms()["figures"].items():
        if f"{{{name}}}" in text:
            text = text.replace(f"{{{name}}}", pick(rng, figures))
    return text


def article(noun: str) -> str:
    """The noun behind "a" or "an", chosen by its first letter."""
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"
