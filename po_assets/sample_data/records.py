"""Sample rows in the three formats that teacher data lands in, each with the metric's own score, and the files of them.

`generate_rows` streams any number of them. The committed files, byte for byte reproducible, tell how teacher data came
in: a first generation with a tail of thin answers, a second teacher in another format, and a few conflicts examples,
because neither teacher had produced any; and the evaluation cases.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from random import Random
from textwrap import indent
from typing import Any, Literal

import yaml

from po_assets.product_owner import format_answer, score_product_owner
from po_assets.product_owner.contract import MIN_SCORE
from po_assets.sample_data.answers import Care, draw_shape, write_review, write_vision
from po_assets.sample_data.domains import Domain, T, forms, load_domains, pick_some, pick_weighted, shuffled
from po_assets.sample_data.scenario import Scenario, Status, Tier, draw_case
from po_assets.storage import replace_file

RecordFormat = Literal["teacher", "nested", "prompt_output"]

GENERATOR = "po-sample-generator"
LOW_BAND = (0.80, MIN_SCORE)
ORDINARY_BAND = (0.84, 1.0)
CONFLICTS_BAND = (0.85, 0.90)

_FORMAT_WEIGHTS: dict[RecordFormat, float] = {"teacher": 84, "nested": 13, "prompt_output": 3}
_LOW_SHARE = 0.05
_MOST_ATTEMPTS = 2_000

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


@dataclass(frozen=True)
class Answered:
    """A case with one answer to it and the answer's score."""

    scenario: Scenario
    vision_yaml: str
    review_yaml: str
    score: float


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


def generate_rows(count: int, seed: int = SEED, start: int = 0) -> Iterator[dict[str, Any]]:
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
        yield as_record(answered, pick_weighted(rng, _FORMAT_WEIGHTS), f"SAMPLE-{index:07d}")


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
        SECOND_TEACHER: list(_rows(draw, _dealt(draw.rng, _SECOND_PLAN), "nested", "SECOND-{:04d}")),
        CONFLICTS: [
            *_handmade_conflicts(),
            *_rows(draw, [("conflicts", False)] * _TEMPLATED_CONFLICTS, "prompt_output", "CONFLICT-TEMPLATE-{:02d}"),
        ],
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


def _rows(
    draw: _Draw, wanted: Iterable[tuple[Status, bool]], record_format: RecordFormat, name: str
) -> Iterator[dict[str, Any]]:
    """Rows of cases that no other row has, one for each of `wanted`: a status, and whether the score is low."""
    for index, (status, low) in enumerate(wanted, start=1):
        yield as_record(answer_case(draw.rng, draw.case(status), low=low), record_format, name.format(index))


def _dealt(rng: Random, counts: Mapping[T, int]) -> list[T]:
    """Each item as often as is said, in random order."""
    return shuffled(rng, [item for item, count in counts.items() for _ in range(count)])


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
