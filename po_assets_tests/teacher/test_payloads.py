"""Payloads: read from a file with all its faults named, or drawn; never an evaluation case."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from upath import UPath

from po_assets.dag import Artifacts
from po_assets.dataset.cases import read_eval_cases
from po_assets.errors import UserError
from po_assets.product_owner import requirement_entries
from po_assets.teacher.payloads import Payload, choose, generate_payloads, read_payloads
from po_assets_tests.evaluation.scenes import REQUIREMENTS
from po_assets_tests.teacher.scenes import make_layout, payload, write_payloads


def test_payloads_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Tier and concept id may be missing, and a byte order mark may stand in front."""
    wanted = [payload(1), replace(payload(2), tier=None, concept_id=None)]
    path = write_payloads(tmp_path / "p.jsonl", wanted)
    assert read_payloads(UPath(path)) == wanted
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert read_payloads(UPath(path)) == wanted


def test_every_faulty_line_is_named(tmp_path: Path) -> None:
    """And nothing is asked."""
    lines = [
        "no json",
        "[1]",
        json.dumps({"concept": "x"}),
        json.dumps({"concept": " ", "requirements_yaml": REQUIREMENTS, "tier": 3}),
        json.dumps({"concept": "x", "requirements_yaml": "a: [b"}),
        json.dumps({"concept": "x", "requirements_yaml": "FR001: text"}),
        json.dumps({"concept": "x\0", "requirements_yaml": REQUIREMENTS}),
        json.dumps(asdict(payload(1))),
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        read_payloads(UPath(path))
    head, *faults = str(caught.value).split("\n- ")
    assert head.endswith("cannot be used, and nothing was asked:")
    wanted = (
        "line 1: invalid literal, expected 'null' at character 1: 'no json'",
        "line 2: the line holds an array, a row is a JSON object",
        "line 3: requirements_yaml is missing",
        "line 4: concept must be a string that is not blank, got ' '",
        "line 4: tier must be a string, got 3",
        "line 5: requirements_yaml does not parse",
        "line 6: requirements_yaml holds no entry",
        "line 7: concept holds a NUL character",
    )
    assert all(fault.startswith(part) for fault, part in zip(faults, wanted, strict=True))


@pytest.mark.parametrize("content", [None, "folder", "", "\n\n"])
def test_a_missing_or_empty_file_is_refused(tmp_path: Path, content: str | None) -> None:
    """With the way out."""
    path = tmp_path / "p.jsonl"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"do not exist|it is empty"):
        read_payloads(UPath(path))


def test_the_generator_draws_different_products_in_a_fixed_order() -> None:
    """A longer list begins with the shorter one; another seed gives others."""
    twenty = list(generate_payloads(20, seed=3))
    assert list(generate_payloads(8, seed=3)) == twenty[:8]
    assert len({one.key for one in twenty}) == 20
    assert not {one.key for one in twenty} & {one.key for one in generate_payloads(20, seed=4)}
    assert all(requirement_entries(one.requirements_yaml) for one in twenty)


def test_the_generator_never_meets_the_projects_evaluation_cases() -> None:
    """Not even nearly: they are about other products of other domains."""
    cases = read_eval_cases(Artifacts().layout.eval_cases)
    wanted, left_out = choose(generate_payloads(200, seed=7), cases)
    assert (len(wanted), left_out) == (200, [])
    products = {case.reference_vision_yaml.split("\n")[0].split(": ")[1] for case in cases}
    assert not [one for one in wanted for product in products if product in one.concept]


def test_evaluation_cases_and_repetitions_are_left_out_and_named(tmp_path: Path) -> None:
    """What is held out of training later is not paid for now."""
    cases = read_eval_cases(make_layout(tmp_path).eval_cases)
    same = Payload(cases[0].concept.upper(), cases[0].requirements_yaml, concept_id="SAME")
    near = Payload(cases[0].concept + " Today.", cases[0].requirements_yaml, concept_id="NEAR")
    again = replace(payload(1), concept=payload(1).concept + "  ", concept_id="AGAIN")
    wanted, left_out = choose([payload(1), same, near, again, payload(2)], cases)
    assert wanted == [payload(1), payload(2)]
    assert [(one["payload"], str(one["reason"])[:12]) for one in left_out] == [
        ("SAME", "it equals ev"),
        ("NEAR", "it resembles"),
        ("AGAIN", "it asks the "),
    ]
