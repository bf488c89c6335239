"""Lessons in judging: what a small student has to compare before it judges, about products that no row is about.

The teacher's rows know a few dozen trades, whose requirements a model of this size has by heart before it has learned
to compare. So the lessons are drawn from authored trades (`sample_data`: those for training and 108 for this alone,
never those of the evaluation), in the form of the student's own evidence (`evidence`). Training on such a task first is
intermediate-task training (Phang et al. 2018, https://arxiv.org/abs/1811.01088). Of two kinds:

- *comparisons*: a REVIEW's summary and status alone, without a question; only the verdicts are trained, and
- *documents*: a whole question; the vision is given, and the answer is trained up to its status.

Where a concept excludes something, it is mostly a need of the trade that the concept does not state: what serves such a
need demands what is excluded, in words that do not tell.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from po_assets.product_owner.contract import REVIEW
from po_assets.product_owner.prompts import Prompt
from po_assets.sample_data.answers import draw_shape, write_vision
from po_assets.sample_data.domains import Domain, Exclusion, forms, load_domains
from po_assets.sample_data.scenario import Requirement, Scenario, Status, draw_case, worded
from po_assets.training.evidence import EXCLUDED, FOREIGN, WeightedText, opening, summary_and_status

_SWAPPED = 0.6
"""Of the exclusions are needs that the concept does not state."""
_LINES = (8, 9, 10, 11, 12)
"""Requirements of a comparison, as far as the trade has as many."""
_STATUSES: tuple[Status, ...] = ("aligned", "needs_adjustment", "conflicts", "conflicts")
"""Of documents. Offences are learned last, and half of the lessons hold some."""
_KINDS = (*["all served"] * 2, *["need not served"] * 2, *["offences"] * 5, "all of another product")
"""Of comparisons."""


@dataclass(frozen=True)
class Lessons:
    """What is drawn."""

    comparisons: list[WeightedText]
    documents: list[WeightedText]


def lesson_domains() -> list[Domain]:
    """The trades that lessons may be drawn from."""
    return [*load_domains("training"), *load_domains("lessons")]


def make_lessons(domains: Sequence[Domain], prompt: Prompt, *, comparisons: int, documents: int, seed: int) -> Lessons:
    """So many of each, about these trades (two at least), the questions worded by this prompt."""
    draw = random.Random(f"{seed}/lessons")  # noqa: S311  # reproducible, not secret
    return Lessons(
        [_comparison(draw.choice(domains), domains, draw) for _ in range(comparisons)],
        [_document(domains, prompt, draw) for _ in range(documents)],
    )


def _comparison(domain: Domain, domains: Sequence[Domain], draw: random.Random) -> WeightedText:
    needs = draw.sample(domain.needs, draw.choice((3, 3, 3, 4)))
    exclusion = draw.choice(_exclusions(domain, draw))
    while exclusion.text in (need.text for need in needs):
        exclusion = draw.choice(_exclusions(domain, draw))
    other = draw.choice([other for other in domains if other is not domain])
    foreign = [line for need in draw.sample(other.needs, 4) for line in need.served_by]
    kind, count = draw.choice(_KINDS), draw.choice(_LINES)
    lines: dict[str, str] = {}
    if kind == "all of another product":
        lines |= dict.fromkeys(draw.sample(foreign, count // 2), FOREIGN)
    else:
        if kind == "offences":
            lines |= dict.fromkeys(draw.sample(exclusion.breaches, draw.choice((1, 2, 2))), EXCLUDED)
            lines |= dict.fromkeys(draw.sample(foreign, draw.choice((1, 2, 3))), FOREIGN)
        one_is_missing = kind == "need not served" or (kind == "offences" and draw.random() < 0.5)
        served = needs[1:] if one_is_missing else needs
        lines |= {draw.choice(need.served_by): need.text for need in served}
        more = [(line, need.text) for need in served for line in need.served_by if line not in lines]
        lines |= dict(draw.sample(more, min(len(more), max(0, count - len(lines)))))
    told = [
        (f"FR{at:03}", worded(draw.choice(forms()["requirements"]), *line.split(" can ", 1)), lines[line])
        for at, line in enumerate(draw.sample(list(lines), len(lines)), start=1)
    ]
    stated = [need.text for need in draw.sample(needs, len(needs))]
    (restated, copied), *judged = summary_and_status(stated, exclusion.text, told, copies=False)
    return WeightedText("", [(f"```yaml {REVIEW}\n{restated}", copied), *judged])


def _document(domains: Sequence[Domain], prompt: Prompt, draw: random.Random) -> WeightedText:
    scenario = _scenario(domains, draw)
    needs, exclusion = [need.text for need in scenario.needs], scenario.exclusion.text
    told = [(line.id, line.text.rstrip("."), purpose_of(line)) for line in scenario.functional]
    vision = opening(write_vision(draw, scenario, draw_shape(draw)), needs, exclusion)
    asked = prompt.user(scenario.concept, scenario.requirements_yaml)
    return WeightedText(asked, [(vision, 0.0), *summary_and_status(needs, exclusion, told)])


def purpose_of(line: Requirement) -> str:
    """What an authored functional requirement is for, as the evidence has it."""
    if line.foreign:
        return FOREIGN
    return line.need.text if line.need else EXCLUDED


def _scenario(domains: Sequence[Domain], draw: random.Random) -> Scenario:
    """A case of one of `_STATUSES` that does not exclude what it asks for."""
    while True:
        domain = draw.choice(domains)
        domain = replace(domain, exclusions=tuple(_exclusions(domain, draw)))
        scenario = draw_case(draw, domains, status=draw.choice(_STATUSES), domain=domain)
        if scenario.exclusion.text not in {need.text for need in scenario.needs}:
            return scenario


def _exclusions(domain: Domain, draw: random.Random) -> Sequence[Exclusion]:
    """Its own, or all its needs in their place."""
    if draw.random() < _SWAPPED:
        return [Exclusion(need.text, need.served_by) for need in domain.needs]
    return domain.exclusions
