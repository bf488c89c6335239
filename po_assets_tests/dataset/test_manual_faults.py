"""What the manual process got wrong and nobody noticed: a small data set that has the fault, and what says so.

Every test is named by the number that design.md gives the fault. That only the answer and its end are trained (8) is
tested in `training`, what becomes of answers that do not parse (10) or are missing (11) in `evaluation`.
"""

from pathlib import Path

import dagster as dg
import orjson
import pytest

from po_assets.dataset.publication import TokenBudget
from po_assets.product_owner import build_prompt, score_product_owner
from po_assets.storage import read_manifest, read_rows
from po_assets_tests.dataset.tables import (
    GOOD,
    WORD_COUNT,
    case,
    chosen,
    close,
    judged,
    kept_numbers,
    normalized_tables,
    outcomes,
    rewrite,
    row,
    run,
    texts,
    write_cases,
)
from po_assets_tests.intake import landed_rows
from po_assets_tests.intake.landed_rows import land, pair_row, prompt_output_row, vision_prompt_row
from po_assets_tests.intake.test_checks import evaluations, table
from po_assets_tests.product_owner.documents_text import REVIEW


def test_1_rows_of_another_format_are_taken_in_or_named(tmp_path: Path) -> None:
    """Ten hand-made records in another format were skipped without a word."""
    handmade = [prompt_output_row(texts(number, "conflicts")) for number in range(20, 24)]
    layout = normalized_tables(tmp_path, first=GOOD, handmade=[*handmade, {"question": "?", "answer": "!"}])
    close(layout)
    assert {20, 21, 22, 23} <= set(kept_numbers(layout))
    found = landed_rows.judged(layout, "rejected_share", max_rejected_share=0.1)
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
    assert made.metadata["dagster/row_count"].value == lines == manifest.rows == outcomes(layout).count("kept") == 10
    found = evaluations(result)["rejected_share"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "1 of 11 landed rows (9.1%) was rejected, at most 10.0% may be: 1 missing part." in found.description
    assert result.success  # even one rejected row is shown; the graph goes on
    (offender,) = table(found)
    assert offender["detail"] == "teacher_product_vision is missing"


def test_2_rows_skipped_after_they_were_counted_are_missed(tmp_path: Path) -> None:
    """Here the file holds one row less than the ledger says was written."""
    layout = chosen(tmp_path, GOOD)
    rewrite(layout, list(read_rows(layout.supervised))[:9])
    schema, balance = judged(layout, "schema"), judged(layout, "ledger_balances")
    assert (schema.passed, schema.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "The file has 9 rows, the ledger calls 10 kept." in schema.description
    assert (balance.passed, balance.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "The ledger does not balance: 10 lines landed, the ledger says 10 kept; 1 disagreement found." in (
        balance.description
    )
    (fault,) = table(balance)
    assert fault["fault"] == "9 found where 10 are due: training rows, one for each row that the ledger calls kept"


def test_2_a_missing_score_is_computed(tmp_path: Path) -> None:
    """It counted as 1.0, so that a bad row without a score was trained on."""
    bare = texts(31) | {"vision": "product_name: x", "review": REVIEW.replace("needs_adjustment", "aligned")}
    layout = chosen(tmp_path, [*GOOD, pair_row(bare)])
    measured = score_product_owner(bare["requirements"], bare["vision"], bare["review"]).total
    assert measured < 0.82
    assert outcomes(layout)[-1] == "below_min_score"
    assert list(read_rows(layout.ledger))[-1]["note"] == f"no score was declared; the metric gives {measured:.3f}"
    found = landed_rows.judged(layout, "declared_scores_match_metric")
    assert "1 row declares none; the metric's score stands in." in found.description
    lines = layout.normalized.read_bytes().splitlines(keepends=True)
    perfect = orjson.loads(lines[-1]) | {"score": 1.0}  # as the manual process had it
    layout.normalized.write_bytes(b"".join([*lines[:-1], orjson.dumps(perfect), b"\n"]))
    found = landed_rows.judged(layout, "schema")
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "1 of 11 normalized rows breaks the schema." in found.description
    assert [(one["line"], one["fault"]) for one in table(found)] == [(11, "score is not the metric score")]


def test_3_flattering_scores_are_listed_worst_first(tmp_path: Path) -> None:
    """Hand-made records declared 0.85 to 0.90; the metric gives them 0.64 to 0.72."""
    flat = texts(32, "conflicts") | {"requirements": "FR001: one thing\nFR002: another thing"}
    layout = chosen(tmp_path, [*GOOD, prompt_output_row(flat, score=0.9), row(33, score=0.2)])
    found = landed_rows.judged(layout, "declared_scores_match_metric")
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "score_source: metric" in found.description
    assert [(one["line"], one["declared"]) for one in table(found)[:2]] == [(12, 0.2), (11, 0.9)]
    assert 0.6 < float(str(table(found)[1]["metric"])) < 0.76


def test_4_evaluation_inputs_do_not_reach_the_training_rows(tmp_path: Path) -> None:
    """26 of 34 evaluation cases had the byte-identical prompt in the training file."""
    layout = chosen(tmp_path, [*GOOD, row(900), row(901)])
    assert outcomes(layout)[-2:] == ["held_out", "held_out"]
    cases = [case(900), case(901)]
    trained = {entry["prompt"] for entry in read_rows(layout.supervised)}
    assert not trained & {build_prompt(one["concept"], one["requirements_yaml"]) for one in cases}
    assert judged(layout, "no_eval_overlap").passed
    write_cases(layout, [*cases, case(1), case(2)])  # now cases are added for what is trained on already
    found = judged(layout, "no_eval_overlap")
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "2 of 10 training rows give 2 evaluation cases away: 2 with the same input" in found.description
    assert [one["case"] for one in table(found)] == ["case-1", "case-2"]


def test_5_few_different_prompts_are_noticed_and_contradictions_come_first(tmp_path: Path) -> None:
    """359 rows held only 177 different prompts; comparing whole rows finds 2."""
    found = judged(chosen(tmp_path, [*GOOD, row(1), row(1), row(2), row(3, "conflicts")]), "duplicate_prompts")
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert (
        "14 rows have only 10 different prompts: 3 of them have several answers, 1 with different statuses; "
        "3 rows are exact copies." in found.description
    )
    assert "drop_duplicates: true" in found.description
    assert [(one["line"], one["answers"], one["statuses"]) for one in table(found)] == [
        (4, 2, "1 aligned, 1 conflicts"),
        (2, 3, "3 aligned"),
        (3, 2, "2 aligned"),
    ]


def test_6_an_answer_in_the_prompt_is_cut_out_and_told(tmp_path: Path) -> None:
    """The prompt of a conflicts record contained the vision that the student should produce."""
    layout = land(tmp_path, a=[*GOOD, vision_prompt_row(texts(33, "conflicts"))])
    found = evaluations(run(layout))["answer_not_in_prompt"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "1 of 11 prompts holds the vision that the answer must contain" in found.description
    assert "A vision was cut out of 1 landed prompt." in found.description
    (offender,) = table(found)  # what is left of the vision in the prompt is its summary
    assert (offender["line"], offender["status"]) == (11, "conflicts")
    assert str(offender["given_away"]).startswith("product_summary: A planner that helps")
    last = list(read_rows(layout.supervised))[-1]
    assert "key_capabilities" not in last["prompt"]
    assert list(read_rows(layout.ledger))[-1]["note"].endswith("it was left out of the prompt")


@pytest.mark.parametrize(
    ("policy", "severity", "said"),
    [
        (
            {},
            dg.AssetCheckSeverity.WARN,
            "10 of 10 responses pass the validator; 1 row is left out, since the validator rejects its answer.",
        ),
        (
            {"invalid_targets": "warn"},
            dg.AssetCheckSeverity.WARN,
            "1 of 11 responses (9.1%) fails the validator that the student's answers must pass, most often (1 time)",
        ),
        ({"invalid_targets": "block"}, dg.AssetCheckSeverity.ERROR, "invalid_targets: leave_out"),
    ],
)
def test_7_targets_that_fail_the_validator_are_named(
    tmp_path: Path, policy: dict[str, str], severity: dg.AssetCheckSeverity, said: str
) -> None:
    """118 of 359 targets failed it: now left out, trained on with a warning, or none is, as the selection says."""
    one_action = REVIEW.replace("- Keep FR001 and FR002 as they are.\n", "").replace("needs_adjustment", "aligned")
    rows = [*GOOD, pair_row(texts(30) | {"review": one_action}, score=0.9)]
    layout = chosen(tmp_path, rows, **policy)
    found = judged(layout, "targets_pass_validator", **policy)
    assert (found.passed, found.severity) == (False, severity)
    assert said in found.description
    assert [(one["line"], one.get("detail", one["reason"])) for one in table(found)] == [
        (11, "recommended_actions holds 1, at least 2 are needed")
    ]
    last = list(read_rows(layout.ledger))[-1]
    left_out = ("invalid_target", "not valid: recommended_actions holds …, at least … are needed")
    assert (last["outcome"], last["reason"]) == (("kept", "") if policy else left_out)


def test_8_no_row_is_cut(tmp_path: Path) -> None:
    """Rows were cut silently at 768 tokens, with real rows of 750 to 1,530 tokens."""
    long = texts(34) | {"concept": " ".join([texts(34)["concept"], *["word"] * 700])}
    layout = chosen(tmp_path, [*GOOD, pair_row(long, score=0.9)])
    found = judged(layout, "fits_context")
    assert found.passed
    assert "10 of 10 rows fit into 600 tokens" in found.description
    entry = list(read_rows(layout.ledger))[-1]
    assert (entry["outcome"], entry["reason"]) == ("over_length", "longer than 600 tokens")
    assert int(entry["detail"].split()[2]) > 700
    tokens = int(close(layout).decisions.tokens[0])
    for limit, outcome in ((tokens, "kept"), (tokens - 1, "over_length")):  # a row of exactly the limit fits
        close(layout, TokenBudget("exact", limit, WORD_COUNT.row_lengths))
        assert outcomes(layout)[0] == outcome
    close(layout)
    older = TokenBudget("older-model", 100, WORD_COUNT.row_lengths)  # rows for another, shorter model
    found = judged(layout, "fits_context", older)
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "10 of 10 rows have more than the 100 tokens that older-model is trained with" in found.description
    assert "their ends would be lost" in found.description
    assert table(found)[0]["over"] == table(found)[0]["tokens"] - 100
    assert "data:image/png" in str(found.metadata["lengths"].value)


def test_9_training_and_evaluation_ask_with_one_prompt(tmp_path: Path) -> None:
    """Whatever the landed prompt said, the training row asks as the evaluation does."""
    landed = prompt_output_row(texts(35))
    assert landed["prompt"] != build_prompt(texts(35)["concept"], texts(35)["requirements"])
    layout = chosen(tmp_path, [*GOOD, landed])
    last = list(read_rows(layout.supervised))[-1]
    assert last["prompt"] == build_prompt(texts(35)["concept"], texts(35)["requirements"])
    assert judged(layout, "schema").passed
    rewrite(layout, [*list(read_rows(layout.supervised))[:-1], last | {"prompt": landed["prompt"]}])
    found = judged(layout, "schema")
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "1 of 11 rows is not of the one form" in found.description
    assert table(found)[0]["fault"] == "its prompt is not the one that evaluation uses"


def test_10_a_landed_review_that_does_not_parse_is_told_apart_from_a_wrong_status(tmp_path: Path) -> None:
    """A score of 0.375 was read as "wrong status"; it was a REVIEW that is no YAML."""
    broken = texts(36) | {"review": "status: aligned\nsummary: a: b"}
    wrong = texts(37) | {"review": REVIEW.replace("needs_adjustment", "unaligned")}
    layout = normalized_tables(tmp_path, a=[*GOOD, pair_row(broken, score=0.375), pair_row(wrong, score=0.9)])
    found = landed_rows.judged(layout, "rejected_share")
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "2 of 12 landed rows (16.7%) were rejected, at most 5.0% may be: 1 YAML does not parse, 1 schema." in (
        found.description
    )
    unparsed, misnamed = table(found)
    assert unparsed["reason"] == "YAML does not parse"
    assert "REVIEW: line 2, column 11: mapping values are not allowed" in str(unparsed["detail"])
    assert misnamed["reason"] == "schema"
    assert "the REVIEW's status is 'unaligned'" in str(misnamed["detail"])
