"""The committed sample data: three landing files of teacher rows and the evaluation cases, byte for byte reproducible.

The files tell how teacher data came in: a first generation with a tail of thin answers, a second teacher in another
format, and a few conflicts examples, because neither teacher had produced any.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

import yaml

from po_assets.product_owner import format_answer, score_product_owner
from po_assets.sample_data.domains import Domain, T, forms, load_domains, pick_some, shuffled
from po_assets.sample_data.records import Answered, answer_case, as_record, draw_case, review_prompt, to_line
from po_assets.sample_data.scenario import Scenario, Status, Tier
from po_assets.storage import replace_file

SEED = 42
FIRST_GENERATION = "incoming/2026-05-first_generation.jsonl"
SECOND_TEACHER = "incoming/2026-08-second_teacher.jsonl"
CONFLICTS = "incoming/2026-09-conflicts.jsonl"
EVALUATION_CASES = "evaluation/po_eval_cases.jsonl"

_Plan = dict[tuple[Status, bool], int]
_FIRST_PLAN: _Plan = {
    ("aligned", False): 206,
    ("aligned", True): 19,
    ("needs_adjustment", False): 93,
    ("needs_adjustment", True): 1,
}
"""Rows by status and whether the score is low: 319 in all."""
_SECOND_PLAN: _Plan = {("aligned", False): 34, ("needs_adjustment", False): 16}
_TEMPLATED_CONFLICTS = 7
_ANSWERED_TWICE = 8
"""Cases of the first generation that were sent to the teacher twice, and are answered differently."""
_EVALUATION_STATUSES: dict[Status, int] = {"aligned": 22, "needs_adjustment": 12, "conflicts": 6}
_EVALUATION_TIERS: dict[Tier, int] = {"simple": 25, "medium": 11, "corporate": 4}
"""40 cases, as many as there are evaluation products."""
_LEAST_REFERENCE_SCORE = 0.85


@dataclass
class _Draw:
    """Cases drawn so far, so that no concept comes twice unless it is meant to."""

    rng: Random
    concepts: set[str] = field(default_factory=set)

    def case(self, status: Status) -> Scenario:
        while True:
            scenario = draw_case(self.rng, load_domains("training"), status=status)
            if scenario.concept not in self.concepts:
                self.concepts.add(scenario.concept)
                return scenario


def write_sample_data(root: Path, seed: int = SEED) -> dict[Path, int]:
    """Write all four files under `root` (made where missing) and return the rows of each."""
    written = {}
    for name, rows in sample_files(seed).items():
        path = root / name
        replace_file(path, b"".join(to_line(row) for row in rows))
        written[path] = len(rows)
    return written


def sample_files(seed: int = SEED) -> dict[str, list[dict[str, Any]]]:
    """The rows of each file, by its path under the artifacts root."""
    draw = _Draw(Random(seed))  # noqa: S311 - sample data, no secrets
    return {
        FIRST_GENERATION: list(_first_generation(draw)),
        SECOND_TEACHER: list(_second_teacher(draw)),
        CONFLICTS: [*_handmade_conflicts(), *_templated_conflicts(draw)],
        EVALUATION_CASES: list(_evaluation_cases(Random(seed + 1))),  # noqa: S311
    }


def _first_generation(draw: _Draw) -> Iterator[dict[str, Any]]:
    wanted = _dealt(draw.rng, _FIRST_PLAN)
    again = set(pick_some(draw.rng, range(len(wanted) // 2, len(wanted)), _ANSWERED_TWICE))
    earlier: dict[Status, list[Scenario]] = {"aligned": [], "needs_adjustment": []}
    for index, (status, low) in enumerate(wanted):
        if index in again:
            scenario = earlier[status].pop(draw.rng.randrange(len(earlier[status])))
        else:
            scenario = draw.case(status)
            earlier[status].append(scenario)
        yield as_record(answer_case(draw.rng, scenario, low=low), "teacher", f"FIRST-{index + 1:04d}")


def _second_teacher(draw: _Draw) -> Iterator[dict[str, Any]]:
    for index, (status, low) in enumerate(_dealt(draw.rng, _SECOND_PLAN), start=1):
        answered = answer_case(draw.rng, draw.case(status), low=low)
        yield as_record(answered, "nested", f"SECOND-{index:04d}")


def _dealt(rng: Random, counts: Mapping[T, int]) -> list[T]:
    """Each item as often as is said, in random order."""
    return shuffled(rng, [item for item, count in counts.items() for _ in range(count)])


def _templated_conflicts(draw: _Draw) -> Iterator[dict[str, Any]]:
    for index in range(1, _TEMPLATED_CONFLICTS + 1):
        answered = answer_case(draw.rng, draw.case("conflicts"))
        yield as_record(answered, "prompt_output", f"CONFLICT-TEMPLATE-{index:02d}")


def _handmade_conflicts() -> Iterator[dict[str, Any]]:
    text = files("po_assets.sample_data").joinpath("handmade_conflicts.yaml").read_text("utf-8")
    for raw in yaml.safe_load(text):
        yield {
            "concept_id": raw["concept_id"],
            "tier": raw["tier"],
            "prompt": review_prompt(raw["concept"], raw["requirements_yaml"]),
            "output": format_answer(raw["vision_yaml"], raw["review_yaml"]),
            "score": score_product_owner(raw["requirements_yaml"], raw["vision_yaml"], raw["review_yaml"]).total,
        }


def _evaluation_cases(rng: Random) -> Iterator[dict[str, Any]]:
    """Every evaluation product once, so that domains have equal weight; statuses and tiers dealt out over them."""
    products = [(domain, product) for domain in load_domains("evaluation") for product in domain.products]
    statuses, tiers = _dealt(rng, _EVALUATION_STATUSES), _dealt(rng, _EVALUATION_TIERS)
    dealt = zip(shuffled(rng, products), statuses, tiers, strict=True)
    for index, ((domain, product), status, tier) in enumerate(dealt, start=1):
        answered = _reference(rng, domain, product, status, tier)
        yield {
            "case_id": f"EVAL-{index:02d}",
            "tier": tier,
            "concept": answered.scenario.concept,
            "requirements_yaml": answered.scenario.requirements_yaml,
            "reference_vision_yaml": answered.vision_yaml,
            "reference_review_yaml": answered.review_yaml,
            "status": status,
        }


def _reference(rng: Random, domain: Domain, product: str, status: Status, tier: Tier) -> Answered:
    domains, regions = load_domains("evaluation"), forms()["regions"]["evaluation"]
    scenario = None
    while scenario is None or scenario.product != product:
        scenario = draw_case(rng, domains, regions=regions, status=status, tier=tier, domain=domain)
    while True:
        answered = answer_case(rng, scenario)
        if answered.score >= _LEAST_REFERENCE_SCORE:
            return answered
