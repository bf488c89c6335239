"""Many different rows and evaluation cases, the tables made from them, and the graph that makes these, for tests."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import dagster as dg
import orjson
import pytest

from po_assets.dag.verdict import to_check_result
from po_assets.dataset import assets, checks
from po_assets.dataset.cases import EvalCase, read_eval_cases
from po_assets.dataset.evidence import DatasetEvidence
from po_assets.dataset.publication import SelectionResult, TokenBudget, build_supervised
from po_assets.dataset.settings import PromptSettings, SelectionSettings
from po_assets.intake.assets import normalized_teacher, raw_teacher
from po_assets.intake.checks import teacher_checks
from po_assets.model import BaseModel
from po_assets.product_owner.templates import Prompt
from po_assets.storage import Layout, read_rows
from po_assets_tests.intake.landed_rows import land, materialize, take_in, teacher_row
from po_assets_tests.product_owner.documents_text import REVIEW, VISION

_TEXT = (
    "harbour lantern copper orchard signal meadow violin ledger compass quarry tunnel archive beacon cedar "
    "drizzle ember fable glacier hammock island juniper kettle lagoon marble nectar olive pepper quilt ribbon "
    "saddle thistle umbrella velvet walnut yarrow zephyr anchor basil canyon dune elm fern grove heron iris "
    "jasper kelp lotus maple nutmeg"
)
WORDS = _TEXT.split()

WORD_COUNT = TokenBudget(
    "word-counter", 600, lambda rows: [len(f"{prompt} {response}".split()) for prompt, response in rows]
)
"""A stand-in for the tokenizer: one token per word."""


def words(number: int, count: int) -> str:
    """So many words that depend on the number alone."""
    return " ".join(Random(number).choices(WORDS, k=count))


def texts(number: int, status: str = "aligned") -> dict[str, str]:
    """The texts of a row; rows of different numbers share next to nothing."""
    said = [words(number * 10 + part, 8) for part in range(4)]
    return {
        "concept": f"A {said[0]} service, number {number}",
        "requirements": (
            f"title: Product {number}\nfunctional_requirements:\n- id: FR001\n  description: {said[1]}.\n"
            f"- id: FR002\n  description: {said[2]}.\nconstraints:\n- id: C001\n  description: {said[3]}.\n"
        ),
        "vision": VISION.replace("Route Planner", f"Product {number}").replace(
            "prove every delivery", words(number, 4)
        ),
        "review": REVIEW.replace("needs_adjustment", status).replace("NFR001", "FR002"),
    }


def row(number: int, status: str = "aligned", score: float | None = 0.9, **more: Any) -> dict[str, Any]:
    """A landed row in the teacher format."""
    return teacher_row(texts(number, status), score=score, **more)


GOOD = [row(number) for number in range(9)] + [row(9, "conflicts")]
"""All of which are kept."""


def case(number: int, status: str = "aligned") -> dict[str, str]:
    """An evaluation case; the row of the same number has its input."""
    given = texts(number)
    return {
        "case_id": f"case-{number}",
        "tier": "simple",
        "concept": given["concept"],
        "requirements_yaml": given["requirements"],
        # Not the row's answer: all rows' answers are much alike.
        "reference_vision_yaml": f"product_name: Case {number}\nproduct_summary: {words(number * 10 + 4, 40)}\n",
        "reference_review_yaml": f"status: {status}\nsummary:\n- {words(number * 10 + 5, 40)}\n",
        "status": status,
    }


def write_cases(layout: Layout, cases: Iterable[Mapping[str, Any]] = (case(900), case(901))) -> list[EvalCase]:
    """Put evaluation cases where they are read from."""
    layout.eval_cases.parent.mkdir(parents=True, exist_ok=True)
    layout.eval_cases.write_text("".join(json.dumps(one) + "\n" for one in cases))
    return read_eval_cases(layout.eval_cases)


def normalized_tables(root: Path, cases: Iterable[Mapping[str, Any]] = (case(900), case(901)), **files: Any) -> Layout:
    """Land files, write cases, snapshot and normalize."""
    layout = land(root, **files)
    write_cases(layout, cases)
    take_in(layout)
    return layout


def close(layout: Layout, budget: TokenBudget = WORD_COUNT, workers: int = 1, **settings: Any) -> SelectionResult:
    """Select with these settings and publish."""
    cases = read_eval_cases(layout.eval_cases)
    staged, chosen = build_supervised(layout, SelectionSettings(**settings), cases, budget, workers)
    staged.publish()
    return chosen


def chosen(tmp_path: Path, rows: bytes | list[Any], **policy: Any) -> Layout:
    """The tables made of these rows, as the graph makes them."""
    layout = normalized_tables(tmp_path, a=rows)
    close(layout, **policy)
    return layout


def judged(layout: Layout, check: str, budget: TokenBudget = WORD_COUNT, **settings: Any) -> dg.AssetCheckResult:
    """What a check of the training rows says of the files as they stand, as its page shows it."""
    found = DatasetEvidence(layout, SelectionSettings(**settings), budget)
    return to_check_result(
        check, checks.supervised_checks.asset, checks.supervised_checks.verdicts(found, {check})[check]
    )


def rewrite(layout: Layout, rows: Iterable[Mapping[str, Any]]) -> None:
    """Change the training rows by hand."""
    layout.supervised.write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in rows))


def outcomes(layout: Layout) -> list[str]:
    """The outcomes in the ledger, in landing order."""
    return [entry["outcome"] for entry in read_rows(layout.ledger)]


def kept_numbers(layout: Layout) -> list[int]:
    """The numbers of the rows that are trained on."""
    return [number_of(entry["prompt"]) for entry in read_rows(layout.supervised)]


def number_of(prompt: str) -> int:
    """The number of the row that a prompt was made from."""
    return int(prompt.partition("service, number ")[2].partition("\n")[0])


def words_for_tokens(_model: BaseModel, _layout: Layout, prompt: Prompt) -> TokenBudget:
    """Words instead of a model's tokens, in the asset and in its checks."""
    return replace(WORD_COUNT, prompt=prompt)


def run(
    layout: Layout,
    selection: Any = None,
    cases: Iterable[Mapping[str, Any]] | None = (case(900), case(901)),
    prompt: PromptSettings | None = None,
    budget: Callable[..., TokenBudget] = words_for_tokens,
    **policy: Any,
) -> dg.ExecuteInProcessResult:
    """Materialize the graph up to the dataset with all checks, or only what is selected."""
    if cases is not None:
        write_cases(layout, cases)
    prompt = prompt or PromptSettings()
    settings = {"selection": SelectionSettings(**policy), "base_model": BaseModel(), "prompt": prompt}
    made = [raw_teacher, normalized_teacher, assets.eval_cases, assets.supervised_dataset]
    with pytest.MonkeyPatch.context() as patch:
        for module in (assets, checks):
            patch.setattr(module, "token_budget", budget)
        return materialize(layout, [*made, *teacher_checks, *checks.dataset_checks], selection, settings)
