"""What the manual process got wrong and nobody noticed: for each fault, a small data set that has it, and what says so.

Design.md counts eleven; every test is named by the fault's number.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import dagster as dg
import orjson
import pytest
from upath import UPath

from po_assets.dag import Artifacts
from po_assets.dataset.cases import COLUMNS, read_eval_cases
from po_assets.dataset.publication import TokenBudget
from po_assets.evaluation.answers import Answer
from po_assets.evaluation.checks import evaluation_checks
from po_assets.evaluation.scoring import ScoredAnswer, answers_frame, score_answers
from po_assets.evaluation.settings import GateProfile
from po_assets.model import ChatTemplate
from po_assets.product_owner import build_prompt, format_answer, score_product_owner
from po_assets.storage import Layout, read_manifest, read_rows
from po_assets.training import checks as training_checks
from po_assets.training.gradients import Batch, collate
from po_assets.training.rows import TokenizedRow
from po_assets_tests.dataset.tables import (
    WORD_COUNT,
    case,
    close,
    judged,
    kept_numbers,
    normalized_tables,
    outcomes,
    rewrite,
    row,
    texts,
    write_cases,
)
from po_assets_tests.dataset.test_checks import (
    GOOD,
    Finished,
    chosen,
    copied,
    evaluations,
    finish,
    good,
    recheck,
    run,
    table,
    words_for_tokens,
)
from po_assets_tests.evaluation.scenes import GOOD as GOOD_ANSWER
from po_assets_tests.evaluation.scenes import VISION as EVALUATED_VISION
from po_assets_tests.evaluation.scenes import cases as evaluation_cases
from po_assets_tests.evaluation.scenes import scored
from po_assets_tests.intake import landed_rows
from po_assets_tests.intake.landed_rows import land, pair_row, prompt_output_row, teacher_row, vision_prompt_row
from po_assets_tests.product_owner.documents_text import REVIEW
from po_assets_tests.training.test_asset import materialize as train
from po_assets_tests.training.test_asset import run_checks as adapter_checks
from po_assets_tests.training.tiny_training import make_artifacts

SAMPLES = Path(__file__).resolve().parents[2] / "artifacts" / "evaluation" / "po_eval_cases.jsonl"
__all__ = ["finish", "good", "words_for_tokens"]  # fixtures


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
    (offender,) = table(found)
    assert offender["detail"] == "teacher_product_vision is missing"


def test_2_rows_skipped_after_they_were_counted_are_missed(good: Finished, tmp_path: Path) -> None:
    """Here the file holds one row less than the ledger says was written."""
    layout = copied(good, tmp_path)
    rewrite(layout, list(read_rows(layout.supervised))[:9])
    found = recheck(layout)
    assert (found["schema"].passed, found["schema"].severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "The file has 9 rows, the ledger calls 10 kept." in found["schema"].description
    balance = found["ledger_balances"]
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


def test_3_flattering_scores_are_listed(tmp_path: Path) -> None:
    """Hand-made records declared 0.85 to 0.90; the metric gives them 0.64 to 0.72."""
    flat = texts(32, "conflicts") | {"requirements": "FR001: one thing\nFR002: another thing"}
    layout = chosen(tmp_path, [*GOOD, prompt_output_row(flat, score=0.9)])
    found = landed_rows.judged(layout, "declared_scores_match_metric")
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    worst = table(found)[0]
    assert (worst["line"], worst["declared"]) == (11, 0.9)
    assert 0.6 < float(str(worst["metric"])) < 0.76


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


def test_4_a_reference_answer_under_another_prompt_is_held_out(tmp_path: Path) -> None:
    """The row asks something else, and teaches what a case's answer is."""
    cases = [{name: getattr(one, name) for name in COLUMNS} for one in read_eval_cases(UPath(SAMPLES))]
    given = texts(50) | {"vision": cases[0]["reference_vision_yaml"], "review": cases[0]["reference_review_yaml"]}
    layout = normalized_tables(tmp_path, cases, a=[*GOOD, row(50) | teacher_row(given, score=0.95)])
    close(layout)
    last = list(read_rows(layout.ledger))[-1]
    assert (last["outcome"], last["reason"]) == ("held_out", "nearly the reference answer of an evaluation case")
    assert last["detail"].startswith(f"case {cases[0]['case_id']}, similarity ")
    assert judged(layout, "no_eval_overlap").passed


def test_5_few_different_prompts_are_noticed(tmp_path: Path) -> None:
    """359 rows held only 177 different prompts; comparing whole rows finds 2."""
    answers = [
        pair_row(texts(3) | {"review": texts(3)["review"].replace("well", f"well, {word}")}, score=0.9)
        for word in ("all", "each", "both")
    ]
    found = judged(chosen(tmp_path, [*GOOD, *answers]), "duplicate_prompts")
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "13 rows have only 10 different prompts: 1 of them has several answers" in found.description
    assert "0 rows are exact copies" in found.description
    assert table(found)[0]["answers"] == 4


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


def test_7_targets_that_fail_the_validator_are_counted(tmp_path: Path) -> None:
    """118 of 359 training targets failed the validator that the student's answers must pass."""
    one_action = REVIEW.replace("- Keep FR001 and FR002 as they are.\n", "").replace("needs_adjustment", "aligned")
    bad = [pair_row(texts(number) | {"review": one_action}, score=0.9) for number in range(40, 45)]
    layout = chosen(tmp_path, [*GOOD, *bad])
    found = judged(layout, "targets_pass_validator")
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "5 rows are left out, since the validator rejects their answers." in found.description
    assert outcomes(layout)[-5:] == ["invalid_target"] * 5
    close(layout, invalid_targets="warn")
    found = judged(layout, "targets_pass_validator", invalid_targets="warn")
    assert "5 of 15 responses (33.3%) fail the validator" in found.description
    assert found.metadata["invalid_targets"].value == 5


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
    older = TokenBudget("older-model", 100, WORD_COUNT.row_lengths)  # rows for another, shorter model
    found = judged(layout, "fits_context", older)
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "10 of 10 rows have more than the 100 tokens that older-model is trained with" in found.description
    assert "their ends would be lost" in found.description
    assert table(found)[0]["over"] == table(found)[0]["tokens"] - 100
    assert "data:image/png" in str(found.metadata["lengths"].value)


def test_8_training_on_the_wrong_tokens_is_noticed(tmp_path: Path) -> None:
    """The loss was computed on the prompt, too, and no row ended in an end-of-sequence token."""
    layout = make_artifacts(tmp_path / "artifacts")
    assert train(layout).success
    whole = ChatTemplate.answer_ids

    def all_tokens(rows: Sequence[TokenizedRow]) -> Batch:
        batch = collate(rows)
        return replace(batch, token_weights=batch.token_weights * 0 + 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_checks, "collate", all_tokens)
        everything = adapter_checks(layout)["training_is_sane"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChatTemplate, "answer_ids", lambda chat, response: whole(chat, response)[:-1])
        endless = adapter_checks(layout)["training_is_sane"]
    for found in (everything, endless):
        assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
        assert "12 of 12 rows are trained on the wrong tokens." in found.description
    assert {one["reason"] for one in table(everything)} == {"a prompt token is trained"}
    assert {one["reason"] for one in table(endless)} == {"it does not end in a trained end-of-sequence token"}


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


def gate_of(tmp_path: Path, student: Sequence[ScoredAnswer]) -> dict[str, dg.AssetCheckEvaluation]:
    """The gate's checks on these answers of a student, beside a baseline that answered the same cases well."""
    layout = Layout(UPath(tmp_path))
    layout.student_answers.parent.mkdir()
    answered = {answer.case_id for answer in student}
    baseline = [scored(one, model="baseline") for one in evaluation_cases(40) if one.case_id in answered]
    for path, answers in ((layout.baseline_answers, baseline), (layout.student_answers, student)):
        answers_frame(answers).to_json(path.path, orient="records", lines=True)
    result = dg.materialize(
        evaluation_checks,
        selection=dg.AssetSelection.checks(*evaluation_checks),
        resources={"artifacts": Artifacts(root=str(layout.root)), "gate": GateProfile()},
        raise_on_error=False,
    )
    return evaluations(result)


def test_10_an_answer_whose_review_does_not_parse_is_told_apart_from_a_wrong_status(tmp_path: Path) -> None:
    """Six answers score 0.375; the checks say that their REVIEW is no YAML, not that a status is wrong."""
    broken = format_answer(EVALUATED_VISION, "status: aligned\nsummary: a: b")
    cases = evaluation_cases(40)
    answers = [scored(one, broken) for one in cases[:6]] + [scored(one) for one in cases[6:]]
    assert answers[0].total == pytest.approx(0.375, abs=0.03)
    found = gate_of(tmp_path, answers)
    valid = found["valid_answers"]
    assert (valid.passed, valid.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "34 of 40 answers are valid (85.0%); at least 90% is asked for." in valid.description
    assert [one["case"] for one in table(valid)] == [one.case_id for one in cases[:6]]
    assert all("REVIEW" in str(one["reason"]) and "line 2, column 11" in str(one["reason"]) for one in table(valid))
    worst = found["worst_case"]
    assert (worst.passed, worst.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "6 of 40 cases score under 0.70" in worst.description
    assert all("REVIEW" in str(one["what cost points"]) for one in table(worst))
    statuses = {one["case"]: one["given"] for one in table(found["status_accuracy"])}
    assert all(statuses[one.case_id] == "no status" for one in cases[:6])


def test_11_cases_without_an_answer_count(tmp_path: Path) -> None:
    """They were left out of the mean; the 30 answers that are there would pass."""
    cases = evaluation_cases(40)
    good = [Answer(one.case_id, GOOD_ANSWER, "stop", 300, 2.0) for one in cases[:30]]
    answers = score_answers(cases, good, model="student", model_digest="m" * 64, decoding="d" * 64)
    assert min(answer.total for answer in answers[:30]) > 0.82
    found = gate_of(tmp_path, answers)
    assert found["case_count"].passed  # every case is there
    mean = found["mean_score"]
    assert (mean.passed, mean.severity) == (False, dg.AssetCheckSeverity.ERROR)
    expected = (30 * answers[0].total + 10 / 64) / 40
    assert f"The student scores {expected:.3f} on average over all 40 cases" in mean.description
    assert {one["case"] for one in table(mean)} == {one.case_id for one in cases[30:]}
    valid = found["valid_answers"]
    assert (valid.passed, valid.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "30 of 40 answers are valid (75.0%)" in valid.description


def test_11_too_few_cases_do_not_pass_for_a_gate(tmp_path: Path) -> None:
    """With the failures taken out of both tables the mean is fine, and so few cases cannot resolve the margin."""
    found = gate_of(tmp_path, [scored(one) for one in evaluation_cases(30)])
    assert found["mean_score"].passed
    count = found["case_count"]
    assert (count.passed, count.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "30 cases were evaluated, 40 are wanted." in count.description
    assert "with fewer, a difference of 0.03 cannot be told from chance" in count.description


@pytest.mark.parametrize("format_name", ["teacher", "pair"])
def test_taking_in_what_was_written_gives_the_same_rows(good: Finished, tmp_path: Path, format_name: str) -> None:
    """An old training file, landed again, becomes the same training file (fault 1: formats must not matter)."""
    first = good.layout.supervised.read_bytes()
    again = chosen(tmp_path, first if format_name == "pair" else GOOD)
    assert again.supervised.read_bytes() == first
