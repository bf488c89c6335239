"""Data of the shape that teams bring: long rows in many formats, a third of them not fit, cases in the nested format.

    python -m benchmarks.real_shape FOLDER                          379 rows, 34 cases
    python -m benchmarks.real_shape FOLDER --rows 40 --cases 6      a small one

FOLDER gets `incoming/*.jsonl` and `cases/*.jsonl`, so that `po-assets run --data FOLDER` takes them. The content is
drawn from the project's own sample data, the form from what was seen in a team's files: documents with rationale and
acceptance, 750 to 1,600 tokens a row (1,150 on average); YAML as PyYAML dumps it, with unquoted times and items that
parse to mappings; several rows to a prompt; a third of the answers with a single recommended action, too long a
narrative or no id; `misaligned` for `conflicts`; a thinking model's drafts; logs of the running agent; scores that are
missing or too good.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import yaml

from po_assets.product_owner import build_prompt, format_answer, score_product_owner
from po_assets.product_owner.contract import MAX_NARRATIVE_WORDS
from po_assets.product_owner.templates import AGENT
from po_assets.sample_data.answers import Shape, write_review, write_vision
from po_assets.sample_data.domains import (
    Purpose,
    fill_numbers,
    forms,
    load_domains,
    pick,
    pick_some,
    pick_weighted,
    shuffled,
)
from po_assets.sample_data.records import review_prompt, to_line
from po_assets.sample_data.scenario import Requirement, Scenario, Status, Tier, draw_case
from po_assets.text import first_upper

_STATUS_WEIGHTS: dict[Status, float] = {"aligned": 63, "needs_adjustment": 31, "conflicts": 6}
_CASE_STATUSES: tuple[Status, ...] = (
    "aligned",
    "needs_adjustment",
    "aligned",
    "conflicts",
    "aligned",
    "needs_adjustment",
)
_TIERS: tuple[Tier, ...] = ("simple", "medium", "corporate")
_DIFFERENT_PROMPTS = 0.45
_INVALID = 1 / 3
_FAULT_WEIGHTS = {"one action": 75, "long narrative": 15, "no ids": 10}
_NO_SCORE = 0.06

_RATIONALES = (
    "The concept names this as a reason why the product is wanted",
    "Asked for in {count} of the interviews that were held before the concept was written",
    "Without it people go on with paper lists and telephone calls",
    "It was the first wish in the workshop with those who do the work every day",
    "Errors made here are found late and cost more than any other",
)
_ACCEPTANCE = (
    "Shown in a trial with {count} real cases, none of which needs help from the developers",
    "Two people who have not seen the product before manage it within {count} minutes",
    "A test record proves it on each of the devices that are in use",
    "The result is the same after the connection was lost and restored",
    "Whoever accepts the release has tried it and signed the protocol",
)
_TAILS = (
    "as the concept asks for",
    "which supports the vision directly",
    "and needs no further clarification",
    "so that the stated value reaches the people it is meant for",
)
_ASIDES = (
    "The entries were compared with the concept one by one",
    "Priorities should be confirmed with the people who use the product before the work is planned",
    "The acceptance notes are specific enough to be tested",
    "What was said in earlier rounds about scope still holds",
    "Nothing in the document speaks against delivering it in small steps",
    "The success metrics can be measured with the data that the product keeps anyway",
    "Further questions belong into the next review and do not change this verdict",
)


@dataclass(frozen=True)
class Row:
    """A case, one teacher's answer to it, and the score that the metric gives it."""

    scenario: Scenario
    vision_yaml: str
    review_yaml: str
    score: float


def main() -> None:
    """Write the files and say what they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=379)
    parser.add_argument("--cases", type=int, default=34, help="at most 40, one for each evaluation product")
    parser.add_argument("--seed", type=int, default=42)
    given = parser.parse_args()
    for path, lines in write_data(given.folder, given.rows, given.cases, given.seed).items():
        print(f"{path}: {lines}")


def write_data(folder: Path, rows: int, cases: int, seed: int = 42) -> dict[Path, int]:
    """Write rows and cases under `folder`, the same bytes for the same arguments; returns the lines of each file."""
    files = {f"incoming/{name}.jsonl": records for name, records in landed_files(rows, seed).items()}
    files["cases/eval_cases.jsonl"] = evaluation_cases(cases, seed)
    written: dict[Path, int] = {}
    for name, records in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(to_line(record) for record in records))
        written[path] = len(records)
    return written


def landed_files(count: int, seed: int = 42) -> dict[str, list[dict[str, Any]]]:
    """`count` rows in all, by the name of the file that they land in."""
    rng = Random(seed)
    counts = {name: max(1, count * share // 100) for name, (share, _) in FILES.items()}
    counts["first_teacher"] += count - sum(counts.values())
    drawn = [_scenario(rng, "training") for _ in range(max(1, round(count * _DIFFERENT_PROMPTS)))]
    asked = drawn + [pick(rng, drawn) for _ in range(count - len(drawn))]
    asked = shuffled(rng, asked)
    files: dict[str, list[dict[str, Any]]] = {}
    for name, rows in counts.items():
        _, write = FILES[name]
        files[name] = [write(rng, asked.pop(), f"{name.upper()}-{number:04d}") for number in range(1, rows + 1)]
    return files


def evaluation_cases(count: int, seed: int = 42) -> list[dict[str, Any]]:
    """Cases in the nested format, each about another product of the evaluation domains; every third without a tier."""
    rng = Random(seed + 1)
    products = [(domain, product) for domain in load_domains("evaluation") for product in domain.products]
    if count > len(products):
        raise SystemExit(f"--cases is {count}; there are {len(products)} evaluation products.")
    cases = []
    for number, (domain, product) in enumerate(pick_some(rng, products, count), start=1):
        scenario = None
        while scenario is None or scenario.product != product:
            scenario = _scenario(rng, "evaluation", domain.name, _CASE_STATUSES[number % len(_CASE_STATUSES)])
        case = _nested(rng, scenario, f"CASE-{number:04d}")
        if number % 3 == 0:
            del case["input"]["tier"]
        cases.append(case)
    return cases


def _scenario(rng: Random, purpose: Purpose, domain: str | None = None, status: Status | None = None) -> Scenario:
    """A case with a document of eight entries, whatever its tier, that says more of each than the sample data do."""
    domains = load_domains(purpose)
    drawn = draw_case(
        rng,
        domains,
        regions=forms()["regions"][purpose],
        status=status or pick_weighted(rng, _STATUS_WEIGHTS),
        tier="corporate",
        domain=next((one for one in domains if one.name == domain), None),
    )
    return replace(drawn, tier=pick(rng, _TIERS), requirements_yaml=_requirements(rng, drawn))


def _requirements(rng: Random, scenario: Scenario) -> str:
    notes = [key for key in ("rationale", "acceptance") if rng.random() < 0.55]
    sections = {
        "functional_requirements": scenario.functional,
        "non_functional_requirements": [entry for entry in scenario.limits if entry.id.startswith("NFR")],
        "constraints": [entry for entry in scenario.limits if entry.id.startswith("C")],
    }
    document: dict[str, Any] = {
        "title": f"{scenario.subject} requirements",
        "description": f"What {scenario.subject} has to do in its first release, collected from the people who use it.",
        **{section: [_entry(rng, entry, notes) for entry in entries] for section, entries in sections.items()},
        "meta": {"original_request": scenario.concept},
    }
    return _dump(document)


def _entry(rng: Random, entry: Requirement, notes: Sequence[str]) -> dict[str, str]:
    said = {"id": entry.id, "description": entry.text, "priority": pick(rng, ("High", "Medium", "Low"))}
    texts = {"rationale": _RATIONALES, "acceptance": _ACCEPTANCE}
    return said | {key: pick(rng, texts[key]).format(count=rng.randrange(3, 20)) for key in notes}


def _answer(rng: Random, scenario: Scenario, *, says: str = "", fault: str | None = None) -> Row:
    """A long answer; one of three has a fault for which the validator rejects it, unless `fault` says which."""
    if fault is None:
        fault = pick_weighted(rng, _FAULT_WEIGHTS) if rng.random() < _INVALID else ""
    needs = len(scenario.needs)
    shape = Shape(
        users=2,
        values=needs,
        capabilities=needs,
        metrics=2,
        long_summary=rng.random() < 0.7,
        findings=pick_weighted(rng, {1: 1, 2: 2}),
        item_per_limit=rng.random() < 0.6,
        grouping=0.2,
        narrative=pick_weighted(rng, {2: 1, 3: 2}),
    )
    vision = _long_vision(rng, scenario, write_vision(rng, scenario, shape))
    review = _long_review(rng, write_review(rng, scenario, shape), fault)
    if says:
        review["status"] = says
    vision_yaml, review_yaml = _dump(vision), _dump(review)
    score = score_product_owner(scenario.requirements_yaml, vision_yaml, review_yaml).total
    return Row(scenario, vision_yaml, review_yaml, score)


def _long_vision(rng: Random, scenario: Scenario, vision: dict[str, Any]) -> dict[str, Any]:
    gains = {first_upper(need.text): need.gain for need in scenario.needs}
    capabilities = [f"{text}, which brings {gains[text]}" for text in vision["key_capabilities"]]
    metrics = [first_upper(fill_numbers(rng, need.measure)) for need in scenario.needs[2:]]
    written = datetime(2026, rng.randrange(1, 10), rng.randrange(1, 28), 10, 0, tzinfo=UTC)
    quoted = rng.random() < 0.15
    return vision | {
        "key_capabilities": capabilities,
        "success_metrics": [*vision["success_metrics"], *metrics],
        "last_updated": written.isoformat() if quoted else written,  # unquoted, it parses to a time
    }


def _long_review(rng: Random, review: dict[str, Any], fault: str) -> dict[str, Any]:
    alignment = dict(review["requirements_alignment"])
    aligned = [f"{item}, {pick(rng, _TAILS)}" for item in alignment["aligned"]]
    style = "text" if fault == "no ids" else pick_weighted(rng, {"text": 40, "id as key": 45, "id and text": 15})
    alignment["aligned"] = [_styled(item, style) for item in aligned]
    if review["status"] == "aligned" and rng.random() < 0.15:
        alignment["conflicts"] = ["None identified"]
    narrative = [review["narrative"], *(f"{text}." for text in pick_some(rng, _ASIDES, rng.randrange(3)))]
    changed = review | {"requirements_alignment": alignment, "narrative": " ".join(narrative)}
    if len(review["summary"]) == 1 and rng.random() < 0.3:
        changed["summary"] = review["summary"][0]
    if fault == "one action":
        changed["recommended_actions"] = review["recommended_actions"][:1]
    elif fault == "long narrative":
        changed["narrative"] = _too_long(changed["narrative"])
    elif fault == "no ids":
        changed["requirements_alignment"] = {
            "aligned": ["The functional entries serve what the concept asks for", "So do qualities and limits"],
            "gaps": ["A need of the concept is not served"] if alignment["gaps"] else [],
            "conflicts": ["One entry does what the concept excludes"] if review["status"] == "conflicts" else [],
        }
    return changed


def _styled(item: str, style: str) -> Any:
    first, rest = item.split(" ", 1)
    if style == "text" or rest.startswith("and ") or first.endswith(",") or not first[-1].isdigit():
        return item
    return {first: first_upper(rest)} if style == "id as key" else {"id": first, "description": first_upper(rest)}


def _too_long(narrative: str) -> str:
    while len(narrative.split()) <= MAX_NARRATIVE_WORDS:
        narrative = " ".join([narrative, *(f"{text}." for text in _ASIDES)])
    return narrative


def _dump(document: Any) -> str:
    """As teams' scripts write YAML: lines folded at 80 characters, keys in their order."""
    return yaml.dump(document, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True).rstrip("\n")


def _often_misaligned(rng: Random, scenario: Scenario) -> str:
    return "misaligned" if scenario.status == "conflicts" and rng.random() < 0.5 else ""


def _teacher(rng: Random, scenario: Scenario, _: str) -> dict[str, Any]:
    row = _answer(rng, scenario, says=_often_misaligned(rng, scenario))
    record = {
        "concept": scenario.concept,
        "requirements_yaml": scenario.requirements_yaml,
        "teacher_product_vision": row.vision_yaml,
        "teacher_product_owner_review": row.review_yaml,
        "score": row.score,
        "metadata": {"model": "first-teacher", "provider": "po_assets"},
    }
    if rng.random() < _NO_SCORE:
        record["score"] = None
    return record


def _nested(rng: Random, scenario: Scenario, concept_id: str) -> dict[str, Any]:
    row = _answer(rng, scenario, says=_often_misaligned(rng, scenario))
    return {
        "input": {
            "concept_id": concept_id,
            "concept": scenario.concept,
            "requirements_yaml": scenario.requirements_yaml,
            "tier": scenario.tier,
            "metadata": {"origin": "synthetic", "domain": scenario.domain.name, "seed_index": rng.randrange(1000)},
        },
        "output": {"product_vision": row.vision_yaml, "product_owner_review": row.review_yaml},
        "metadata": {"duration_seconds": round(15 + 30 * rng.random(), 3), "exit_code": 0},
        "score": row.score,
    }


def _thinking(rng: Random, scenario: Scenario, _: str) -> dict[str, Any]:
    """A chat whose answer comes after reasoning that holds a draft of it: in tags, in a field, or behind a lone tag."""
    row = _answer(rng, scenario, says=_often_misaligned(rng, scenario))
    draft = _answer(rng, replace(scenario, status="aligned", missing=()), fault="one action")
    thought = f"Let me draft first.\n\n{format_answer(draft.vision_yaml, draft.review_yaml)}\n\nThat misses something."
    answer = format_answer(row.vision_yaml, row.review_yaml)
    said: dict[str, str] = {"role": "assistant"}
    where = pick(rng, ("tags", "field", "lone tag"))
    if where == "field":
        said |= {"content": answer, "reasoning_content": thought}
    else:
        said["content"] = f"{'<think>' if where == 'tags' else ''}\n{thought}\n</think>\n\n{answer}"
    ask = pick(rng, (review_prompt, build_prompt))
    question = {"role": "user", "content": ask(scenario.concept, scenario.requirements_yaml)}
    return {"messages": [question, said], "score": row.score}


def _agent_log(rng: Random, _: Scenario, log_id: str) -> dict[str, Any]:
    """What the running agent sent and got: its statuses are its own, a score nobody gave; often a vision exists."""
    status: Status = pick_weighted(rng, {"aligned": 50, "needs_adjustment": 25, "conflicts": 25})
    scenario = _scenario(rng, "training", status=status)
    row = _answer(rng, scenario, says="misaligned" if scenario.status == "conflicts" else "")
    existing = _answer(rng, scenario).vision_yaml if rng.random() < 0.4 else ""
    asked = AGENT.turns(scenario.concept, scenario.requirements_yaml, existing)
    answer = {"role": "assistant", "content": format_answer(row.vision_yaml, row.review_yaml)}
    return {"messages": [*asked, answer], "metadata": {"log_id": log_id, "agent": "product_owner"}}


def _conflicts(rng: Random, _: Scenario, concept_id: str) -> dict[str, Any]:
    """An example that a person made: ids as keys, the vision given away in the prompt, a score that is too good."""
    scenario = _scenario(rng, "training", status="conflicts")
    row = _answer(rng, scenario, fault="")
    requirements = _dump({entry.id: entry.text for entry in (*scenario.functional, *scenario.limits)})
    prompt = (
        "You are a Product Owner. Review the requirements against the product vision.\n\n"
        f"```yaml VISION\n{row.vision_yaml}\n```\n\n```yaml REQUIREMENTS\n{requirements}\n```\n\n"
        "Respond with two fenced YAML blocks: VISION and REVIEW."
    )
    return {
        "concept_id": concept_id,
        "tier": scenario.tier,
        "prompt": prompt,
        "output": format_answer(row.vision_yaml, row.review_yaml),
        "score": pick(rng, (0.85, 0.87, 0.89, 0.9)),
    }


FILES: dict[str, tuple[int, Callable[[Random, Scenario, str], dict[str, Any]]]] = {
    "first_teacher": (68, _teacher),
    "second_teacher": (12, _nested),
    "thinking_model": (8, _thinking),
    "agent_logs": (9, _agent_log),
    "conflicts": (3, _conflicts),
}
"""Landed files, their percentage of the rows, and what writes a row of theirs."""

if __name__ == "__main__":
    main()
