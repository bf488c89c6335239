"""The authored material that sample rows are made from, and the few tools to draw from it and to write English.

The material itself is YAML: trades (products, needs, requirements, exclusions) under `domains/training`,
`domains/lessons` (of which no sample row is made, `training.evidence`) and `domains/evaluation`; sentence forms in
`forms.yaml`. How a case is drawn belongs to `scenario`.

Draws need nothing but `Random.random`: three times faster than `choice`, `sample` and `choices`, which matters where
rows are made by the million, and fixed in their results by this file alone, whatever Python does in those methods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, Literal, TypeVar

import yaml

T = TypeVar("T")
Purpose = Literal["training", "lessons", "evaluation"]


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
    """All domains of one purpose, in file order."""
    folder = files("po_assets.sample_data").joinpath("domains", purpose)
    texts = [entry.read_text("utf-8") for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)]
    return tuple(_domain(raw) for text in texts for raw in yaml.safe_load(text))


def _domain(raw: dict[str, Any]) -> Domain:
    texts: dict[str, Any] = {key: tuple(raw[key]) for key in ("organisations", "products", "users", "problems")}
    for key in ("qualities", "constraints"):
        texts[key] = tuple(Limit(topic, text) for item in raw[key] for topic, text in item.items())
    needs = tuple(Need(item["need"], item["gain"], item["measure"], tuple(item["served_by"])) for item in raw["needs"])
    exclusions = tuple(Exclusion(item["never"], tuple(item["breaches"])) for item in raw["exclusions"])
    return Domain(raw["name"], raw["category"], **texts, needs=needs, exclusions=exclusions)


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


def pick_weighted(rng: Random, weights: Mapping[T, float]) -> T:
    """One item, likely in proportion to its weight."""
    point = rng.random() * sum(weights.values())
    for item, weight in weights.items():
        point -= weight
        if point < 0:
            return item
    return item


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
