"""Sample rows in the three formats that teacher data lands in, each with the metric's own score.

`generate_rows` streams any number of them; `landing` picks the ones that are committed as files.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from textwrap import indent
from typing import Any, Literal

from po_assets.product_owner import format_answer, score_product_owner
from po_assets.product_owner.contract import MIN_SCORE
from po_assets.sample_data.answers import Care, draw_shape, write_review, write_vision
from po_assets.sample_data.domains import Domain, forms, load_domains, pick, pick_weighted
from po_assets.sample_data.scenario import Scenario, Status, Tier, draw_scenario

RecordFormat = Literal["teacher", "nested", "prompt_output"]

GENERATOR = "po-sample-generator"
LOW_BAND = (0.80, MIN_SCORE)
ORDINARY_BAND = (0.84, 1.0)
CONFLICTS_BAND = (0.85, 0.90)

_STATUSES: tuple[Status, ...] = ("aligned", "needs_adjustment", "conflicts")
_STATUS_WEIGHTS = (66, 30, 4)
_TIERS: tuple[Tier, ...] = ("simple", "medium", "corporate")
_TIER_WEIGHTS = (70, 24, 6)
_FORMATS: tuple[RecordFormat, ...] = ("teacher", "nested", "prompt_output")
_FORMAT_WEIGHTS = (84, 13, 3)
_LOW_SHARE = 0.05
_MOST_ATTEMPTS = 2_000


@dataclass(frozen=True)
class Answered:
    """A case with one answer to it and the answer's score."""

    scenario: Scenario
    vision_yaml: str
    review_yaml: str
    score: float


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

    Without `regions` it plays in one of the training regions.
    """
    drawn: Status = pick_weighted(rng, _STATUSES, _STATUS_WEIGHTS) if status is None else status
    drawn_tier: Tier = pick_weighted(rng, _TIERS, _TIER_WEIGHTS) if tier is None else tier
    regions = regions or forms()["regions"]["training"]
    return draw_scenario(rng, domain or pick(rng, domains), domains, regions, status=drawn, tier=drawn_tier)


def answer_case(rng: Random, scenario: Scenario, *, low: bool = False) -> Answered:
    """Answer a case so that the score lies in the band of its kind; answers outside it are written anew.

    Raises:
        RuntimeError: when none of many answers lies in the band, which the authored material should not allow.
    """
    care: Care = "thin" if low else "ordinary" if scenario.status == "aligned" else "brief"
    least, below = LOW_BAND if low else CONFLICTS_BAND if scenario.status == "conflicts" else ORDINARY_BAND
    for _ in range(_MOST_ATTEMPTS):
        shape = draw_shape(rng, care)
        vision, review = write_vision(rng, scenario, shape), write_review(rng, scenario, shape)
        quirk = rng.random()
        vision_yaml, review_yaml = as_yaml(vision), as_yaml(review, id_as_key=quirk < 0.03)
        score = score_product_owner(scenario.requirements_yaml, vision_yaml, review_yaml).total
        if least <= score < below:
            return Answered(scenario, vision_yaml, review_yaml, score)
    raise RuntimeError(
        f"None of {_MOST_ATTEMPTS} answers about {scenario.product} ({scenario.status}, {scenario.tier}) scores "
        f"between {least} and {below}: widen the shapes in po_assets/sample_data/forms.yaml."
    )


def generate_rows(count: int, seed: int = 42, start: int = 0) -> Iterator[dict[str, Any]]:
    """`count` landing rows (mappings that are valid JSON objects), in all three formats, all statuses and tiers.

    Row i depends on `seed` and i alone, so that processes can share the work by `start`, and a longer run begins with
    the rows of a shorter one. Memory does not grow with `count`.
    """
    domains = load_domains("training")
    for index in range(start, start + count):
        rng = Random(seed * 1_000_000_007 + index)  # noqa: S311 - sample data, no secrets
        scenario = draw_case(rng, domains)
        low = scenario.status != "conflicts" and rng.random() < _LOW_SHARE
        answered = answer_case(rng, scenario, low=low)
        yield as_record(answered, pick_weighted(rng, _FORMATS, _FORMAT_WEIGHTS), f"SAMPLE-{index:07d}")


def as_record(answered: Answered, record_format: RecordFormat, concept_id: str) -> dict[str, Any]:
    """The row as it lands in one of the three formats."""
    scenario, score = answered.scenario, answered.score
    asked = {"concept": scenario.concept, "requirements_yaml": scenario.requirements_yaml}
    names = {"concept_id": concept_id, "tier": scenario.tier}
    origin = {"model": GENERATOR, "provider": "po_assets"}
    if record_format == "teacher":
        answer = {
            "teacher_product_vision": answered.vision_yaml,
            "teacher_product_owner_review": answered.review_yaml,
        }
        return {**asked, **answer, "score": score, "metadata": {**origin, "generation": "first", **names}}
    if record_format == "nested":
        about = {"origin": "synthetic", "domain": scenario.domain.name}
        return {
            "input": {"concept_id": concept_id, **asked, "tier": scenario.tier, "metadata": about},
            "output": {"product_vision": answered.vision_yaml, "product_owner_review": answered.review_yaml},
            "metadata": {**origin, "generation": "second"},
            "score": score,
        }
    prompt, output = review_prompt(**asked), format_answer(answered.vision_yaml, answered.review_yaml)
    return {**names, "prompt": prompt, "output": output, "score": score}


def review_prompt(concept: str, requirements_yaml: str) -> str:
    """The prompt of prompt/output rows: another wording than the project's own, as older data have it; no vision."""
    return (
        "You are a Product Owner. Review the requirements against the product concept.\n\n"
        f"CONCEPT:\n{concept}\n\nREQUIREMENTS:\n{requirements_yaml}\n\n"
        "Respond with two fenced YAML blocks: VISION and REVIEW."
    )


def as_yaml(document: dict[str, Any], *, id_as_key: bool = False) -> str:
    """A vision or review as YAML, dates quoted so that they stay text.

    With `id_as_key` the aligned items read `- FR001: lets …`, which parses to a mapping: a habit of teacher models that
    readers of this data must cope with.
    """
    lines: list[str] = []
    for key, value in document.items():
        if isinstance(value, dict):
            lines += [f"{key}:", indent(as_yaml(value, id_as_key=id_as_key), "  ")]
        elif isinstance(value, list):
            lines.append(f"{key}:" if value else f"{key}: []")
            for item in value:
                first, _, rest = item.partition(" ")
                as_key = id_as_key and key == "aligned" and not rest.startswith("and ")
                lines.append(f"- {first}: {rest}" if as_key else f"- {item}")
        else:
            lines.append(f"{key}: '{value}'" if key == "last_updated" else f"{key}: {value}")
    return "\n".join(lines)


def to_line(row: dict[str, Any]) -> bytes:
    """One JSON line, keys in their order, newline included."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
