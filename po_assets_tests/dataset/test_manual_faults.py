"""What the manual process got wrong and nobody noticed: for each fault, a small data set that has it, and what says so.

Design.md counts eleven. Those of training (8: padding, end of sequence) and of evaluation (10: what a broken REVIEW
costs; 11: failures left out of the mean) have their tests with `student` and `evaluation`; of 8 and 10, what concerns the
data is here.
"""

from pathlib import Path

import dagster as dg
import pytest

from po_assets.dataset.token_budget import TokenBudget
from po_assets.product_owner import build_prompt, score_product_owner
from po_assets.storage import read_manifest
from po_assets.teacher.ledger import read_rows
from po_assets_tests.dataset.tables import WORD_COUNT, case, kept_numbers, outcomes, row, texts, write_cases
from po_assets_tests.dataset.test_checks import (
    GOOD,
    budget_of,
    evaluations,
    rewrite,
    run,
    table,
    words_for_tokens,
)
from po_assets_tests.product_owner.documents_text import REVIEW
from po_assets_tests.teacher.landed_rows import land, pair_row, prompt_output_row, vision_prompt_row

__all__ = ["words_for_tokens"]  # the fixture that counts words for tokens


def test_1_rows_of_another_format_are_taken_in_or_named(tmp_path: Path) -> None:
    """Ten hand-made records in another format were skipped without a word."""
    handmade = [prompt_output_row(texts(number, "conflicts")) for number in range(20, 24)]
    layout = land(tmp_path, first=GOOD, handmade=[*handmade, {"question": "?", "answer": "!"}])
    result = run(layout, max_rejected_share=0.1)
    assert {20, 21, 22, 23} <= set(kept_numbers(layout))
    found = evaluations(result)["rejected_share"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "1 of 15 landed rows (6.7%) was rejected" in found.description
    (offender,) = table(found)
    assert (offender["file"], offender["line"], offender["reason"]) == ("handmade.jsonl", 5, "unknown format")
    assert str(offender["detail"]).startswith("the row has question, answer; known formats are")


def test_2_the_numbers_are_counted_from_the_files(tmp_path: Path) -> None:
    """What was printed as written was counted before incomplete rows were skipped."""
    incomplete = row(30)
    del incomplete["teacher_product_vision"]
    layout = land(tmp_path, a=[*GOOD, incomplete])
    result = run(layout, max_rejected_share=0.1)
    (made,) = result.asset_materializations_for_node("supervised_dataset")
    lines = layout.supervised.read_bytes().count(b"\n")
    manifest = read_manifest(layout.supervised)
    assert manifest is not None
    assert made.metadata["dagster/row_count"].value == lines == manifest.rows == outcomes(layout).count("kept") == 10
    (offender,) = table(evaluations(result)["rejected_share"])
    assert offender["detail"] == "teacher_product_vision is missing"


def test_2_a_missing_score_is_computed(tmp_path: Path) -> None:
    """It counted as 1.0, so that a bad row without a score was trained on."""
    bare = texts(31) | {"vision": "product_name: x", "review": REVIEW.replace("needs_adjustment", "aligned")}
    layout = land(tmp_path, a=[*GOOD, pair_row(bare)])
    result = run(layout)
    measured = score_product_owner(bare["requirements"], bare["vision"], bare["review"]).total
    assert measured < 0.82
    assert outcomes(layout)[-1] == "below_min_score"
    assert list(read_rows(layout.ledger))[-1]["note"] == f"no score was declared; the metric gives {measured:.3f}"
    found = evaluations(result)["declared_scores_match_metric"]
    assert "1 row declares none; the metric's score stands in." in found.description


def test_3_flattering_scores_are_listed(tmp_path: Path) -> None:
    """Hand-made records declared 0.85 to 0.90; the metric gives them 0.64 to 0.72."""
    flat = texts(32, "conflicts") | {"requirements": "FR001: one thing\nFR002: another thing"}
    result = run(land(tmp_path, a=[*GOOD, prompt_output_row(flat, score=0.9)]))
    found = evaluations(result)["declared_scores_match_metric"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    worst = table(found)[0]
    assert (worst["line"], worst["declared"]) == (11, 0.9)
    assert 0.6 < float(str(worst["metric"])) < 0.76


def test_4_evaluation_inputs_do_not_reach_the_training_rows(tmp_path: Path) -> None:
    """26 of 34 evaluation cases had the byte-identical prompt in the training file."""
    layout = land(tmp_path, a=[*GOOD, row(900), row(901)])
    result = run(layout)
    assert outcomes(layout)[-2:] == ["held_out", "held_out"]
    cases = [case(900), case(901)]
    trained = {entry["prompt"] for entry in read_rows(layout.supervised)}
    assert not trained & {build_prompt(one["concept"], one["requirements_yaml"]) for one in cases}
    assert evaluations(result)["no_eval_overlap"].passed
    write_cases(layout, [*cases, case(1), case(2)])  # now cases are added for what is trained on already
    overlap = dg.AssetCheckKey(dg.AssetKey("supervised_dataset"), "no_eval_overlap")
    found = evaluations(run(layout, dg.AssetSelection.checks(overlap), cases=None))["no_eval_overlap"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "2 of 10 training rows give 2 evaluation cases away: 2 with the same input" in found.description
    assert [one["case"] for one in table(found)] == ["case-1", "case-2"]


def test_5_few_different_prompts_are_noticed(tmp_path: Path) -> None:
    """359 rows held only 177 different prompts; comparing whole rows finds 2."""
    answers = [
        pair_row(texts(3) | {"review": texts(3)["review"].replace("well", f"well, {word}")}, score=0.9)
        for word in ("all", "each", "both")
    ]
    found = evaluations(run(land(tmp_path, a=[*GOOD, *answers])))["duplicate_prompts"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "13 rows have only 10 different prompts: 1 of them has several answers" in found.description
    assert "0 rows are exact copies" in found.description
    assert table(found)[0]["answers"] == 4


def test_6_an_answer_in_the_prompt_is_cut_out_and_told(tmp_path: Path) -> None:
    """The prompt of a conflicts record contained the vision that the student should produce."""
    layout = land(tmp_path, a=[*GOOD, vision_prompt_row(texts(33, "conflicts"))])
    found = evaluations(run(layout))["answer_not_in_prompt"]
    assert not found.passed
    assert "A vision was cut out of 1 landed prompt." in found.description
    last = list(read_rows(layout.supervised))[-1]
    assert "key_capabilities" not in last["prompt"]
    assert list(read_rows(layout.ledger))[-1]["note"].endswith("it was left out of the prompt")


def test_7_targets_that_fail_the_validator_are_counted(tmp_path: Path) -> None:
    """118 of 359 training targets failed the validator that the student's answers must pass."""
    one_action = REVIEW.replace("- Keep FR001 and FR002 as they are.\n", "").replace("needs_adjustment", "aligned")
    bad = [pair_row(texts(number) | {"review": one_action}, score=0.9) for number in range(40, 45)]
    found = evaluations(run(land(tmp_path, a=[*GOOD, *bad])))["targets_pass_validator"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "5 of 15 responses (33.3%) fail the validator" in found.description
    assert found.metadata["invalid_targets"].value == 5


def test_8_no_row_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows were cut silently at 768 tokens, with real rows of 750 to 1,530 tokens."""
    long = texts(34) | {"concept": " ".join([texts(34)["concept"], *["word"] * 700])}
    layout = land(tmp_path, a=[*GOOD, pair_row(long, score=0.9)])
    found = evaluations(run(layout))["fits_context"]
    assert found.passed
    assert "10 of 10 rows fit into 600 tokens" in found.description
    entry = list(read_rows(layout.ledger))[-1]
    assert (entry["outcome"], entry["reason"]) == ("over_length", "longer than 600 tokens")
    assert int(entry["detail"].split()[2]) > 700
    budget_of(monkeypatch, TokenBudget("older-model", 100, WORD_COUNT.row_lengths))  # rows for another, shorter model
    alone = dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("supervised_dataset"), "fits_context"))
    found = evaluations(run(layout, alone, cases=None))["fits_context"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "10 of 10 rows have more than the 100 tokens that older-model is trained with" in found.description


def test_9_training_and_evaluation_ask_with_one_prompt(tmp_path: Path) -> None:
    """Whatever the landed prompt said, the training row asks as the evaluation does."""
    landed = prompt_output_row(texts(35))
    assert landed["prompt"] != build_prompt(texts(35)["concept"], texts(35)["requirements"])
    layout = land(tmp_path, a=[*GOOD, landed])
    result = run(layout)
    last = list(read_rows(layout.supervised))[-1]
    assert last["prompt"] == build_prompt(texts(35)["concept"], texts(35)["requirements"])
    schema = dg.AssetCheckKey(dg.AssetKey("supervised_dataset"), "schema")
    assert {one.asset_check_key: one.passed for one in result.get_asset_check_evaluations()}[schema]
    rewrite(layout, [*list(read_rows(layout.supervised))[:-1], last | {"prompt": landed["prompt"]}])
    found = evaluations(run(layout, dg.AssetSelection.checks(schema), cases=None))["schema"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "1 of 11 rows is not of the one form" in found.description
    assert table(found)[0]["fault"] == "its prompt is not the one that evaluation uses"


def test_10_a_review_that_does_not_parse_is_told_apart_from_a_wrong_status(tmp_path: Path) -> None:
    """A score of 0.375 was read as "wrong status"; it was a REVIEW that is no YAML."""
    broken = texts(36) | {"review": "status: aligned\nsummary: a: b"}
    wrong = texts(37) | {"review": REVIEW.replace("needs_adjustment", "misaligned")}
    layout = land(tmp_path, a=[*GOOD, pair_row(broken, score=0.375), pair_row(wrong, score=0.9)])
    run(layout, max_rejected_share=0.2)
    unparsed, misnamed = list(read_rows(layout.ledger))[-2:]
    assert unparsed["reason"] == "YAML does not parse"
    assert "REVIEW: line 2, column 11: mapping values are not allowed" in unparsed["detail"]
    assert misnamed["reason"] == "schema"
    assert "the REVIEW's status is 'misaligned'" in misnamed["detail"]


@pytest.mark.parametrize("format_name", ["teacher", "pair"])
def test_taking_in_what_was_written_gives_the_same_rows(tmp_path: Path, format_name: str) -> None:
    """An old training file, landed again, becomes the same training file (fault 1: formats must not matter)."""
    first = land(tmp_path / "first", a=GOOD)
    run(first)
    again = land(tmp_path / "again", a=first.supervised.read_bytes() if format_name == "pair" else GOOD)
    run(again)
    assert again.supervised.read_bytes() == first.supervised.read_bytes()
