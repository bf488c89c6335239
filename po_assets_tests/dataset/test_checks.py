"""The assets and checks of the dataset in Dagster: passing on good data, and what they say on bad data.

The graph is run where it is promised that it stops or goes on; what a check says is asked of the check.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import orjson
import pytest
from upath import UPath

from po_assets.dag import Artifacts, JsonlIOManager, read_gate
from po_assets.dataset import assets, checks
from po_assets.dataset.assets import eval_cases, supervised_dataset
from po_assets.dataset.checks import dataset_checks
from po_assets.dataset.publication import TokenBudget, publication_fault, refusal
from po_assets.dataset.settings import PromptSettings, SelectionSettings
from po_assets.errors import UserError
from po_assets.evaluation.answers import Answer
from po_assets.evaluation.scoring import score_answers
from po_assets.intake.assets import normalized_teacher, raw_teacher
from po_assets.intake.checks import teacher_checks
from po_assets.model import BaseModel
from po_assets.product_owner import build_prompt, format_answer, score_product_owner
from po_assets.storage import Layout, file_digest, read_manifest, read_rows
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
    words,
    write_cases,
)
from po_assets_tests.evaluation.scenes import GOOD as GOOD_ANSWER
from po_assets_tests.evaluation.scenes import VISION as EVALUATED_VISION
from po_assets_tests.evaluation.scenes import cases as evaluation_cases
from po_assets_tests.evaluation.scenes import scored
from po_assets_tests.intake import landed_rows
from po_assets_tests.intake.landed_rows import land, pair_row, prompt_output_row, vision_prompt_row
from po_assets_tests.intake.test_checks import evaluations, failure_message, table
from po_assets_tests.product_owner.documents_text import REVIEW

EVERYTHING = [raw_teacher, normalized_teacher, eval_cases, supervised_dataset, *teacher_checks, *dataset_checks]
OF_DATASET = dg.AssetSelection.checks_for_assets(supervised_dataset)
ALONE = dg.AssetSelection.assets(supervised_dataset).without_checks()
GOOD = [row(number) for number in range(9)] + [row(9, "conflicts")]


@pytest.fixture(autouse=True, scope="module")
def words_for_tokens() -> Iterator[None]:
    """Count words instead of a model's tokens, in the asset and in its checks."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (assets, checks):
            patch.setattr(module, "token_budget", lambda _model, _layout, prompt: replace(WORD_COUNT, prompt=prompt))
        yield


def run(
    layout: Layout,
    selection: Any = None,
    cases: Iterable[Mapping[str, Any]] | None = (case(900), case(901)),
    prompt: PromptSettings | None = None,
    **policy: Any,
) -> dg.ExecuteInProcessResult:
    """Materialize the graph up to the dataset with all checks, or only what is selected."""
    if cases is not None:
        write_cases(layout, cases)
    artifacts = Artifacts(root=str(layout.root))
    return dg.materialize(
        EVERYTHING,
        selection=selection,
        resources={
            "artifacts": artifacts,
            "io_manager": JsonlIOManager(artifacts=artifacts),
            "selection": SelectionSettings(**policy),
            "base_model": BaseModel(),
            "prompt": prompt or PromptSettings(),
        },
        raise_on_error=False,
    )


def recheck(layout: Layout, **policy: Any) -> dict[str, dg.AssetCheckEvaluation]:
    """Run the checks of the dataset alone, on the files as they stand."""
    return evaluations(run(layout, OF_DATASET, cases=None, **policy))


class Finished(NamedTuple):
    """A root in which the graph ran once, to be copied and not changed, and the run."""

    layout: Layout
    result: dg.ExecuteInProcessResult


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Ten good rows, all kept."""
    layout = land(tmp_path_factory.mktemp("good"), a=GOOD)
    return Finished(layout, run(layout))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Of ten rows kept, one rejected and three below the minimum score, in this order."""
    low = [row(number, score=0.1) for number in range(20, 23)]
    layout = land(tmp_path_factory.mktemp("mixed"), a=GOOD, b=b"{\n", c=low)
    return Finished(layout, run(layout, max_rejected_share=0.5))


@pytest.fixture
def layout(good: Finished, tmp_path: Path) -> Layout:
    """The good rows, made, in a place of their own."""
    return copied(good, tmp_path)


@pytest.fixture
def closed(mixed: Finished, tmp_path: Path) -> tuple[Layout, list[bytes]]:
    """The mixed rows, made, in a place of their own; and the lines of their closed ledger."""
    layout = copied(mixed, tmp_path)
    return layout, layout.ledger.read_bytes().splitlines(keepends=True)


def copied(finished: Finished, folder: Path) -> Layout:
    """A copy of the root that may be changed."""
    shutil.copytree(str(finished.layout.root), folder / "copy")
    return Layout(UPath(folder / "copy"))


def chosen(tmp_path: Path, rows: bytes | list[Any], **policy: Any) -> Layout:
    """The tables made of these rows, as the graph makes them."""
    layout = normalized_tables(tmp_path, a=rows)
    close(layout, **policy)
    return layout


def test_good_rows_pass_every_check_and_open_the_gate(good: Finished) -> None:
    """And the sentences give the numbers."""
    layout, result = good
    assert result.success
    found = {name: one for name, one in evaluations(result).items() if one.asset_key == supervised_dataset.key}
    longest = found["fits_context"].metadata["longest_row_tokens"].value
    assert {name: (one.passed, one.description) for name, one in found.items()} == {
        "schema": (True, "10 of 10 rows are a prompt and a response of the one form, as many as the ledger says."),
        "ledger_balances": (True, "10 landed lines = 10 kept."),
        "conflicts_share": (
            True,
            (
                "1 of 10 training rows (10.0%) is conflicts, at least 2.5% are needed; every one that passed the score "
                "filter is here."
            ),
        ),
        "no_eval_overlap": (
            True,
            "None of 10 training rows has the input or the answer of an evaluation case, or one at least 80% similar.",
        ),
        "fits_context": (True, f"10 of 10 rows fit into 600 tokens of word-counter; the longest has {longest:.0f}."),
        "targets_pass_validator": (True, "10 of 10 responses pass the validator."),
        "answer_not_in_prompt": (True, "None of 10 prompts holds the vision of its answer."),
        "duplicate_prompts": (True, "10 rows, 10 different prompts."),
        "retention": (
            True,
            "10 of 10 landed rows (100.0%) are fit for training, between 80% and 100% are expected: 10 kept.",
        ),
    }
    assert refusal(layout.supervised_gate, file_digest(layout.supervised)) is None


def test_the_asset_says_what_came_out(mixed: Finished) -> None:
    """Row count, outcomes, preview, pictures with the thresholds, and a manifest that names the inputs."""
    layout, result = mixed
    (made,) = result.asset_materializations_for_node("supervised_dataset")
    assert made.metadata["dagster/row_count"].value == 10
    kept, below, rejected = str(made.metadata["outcomes"].value).splitlines()
    assert kept == "- **kept**: 10 rows (71.4%)"
    assert below.startswith("- **below_min_score**, ")
    assert below.endswith(": 3 rows (21.4%)")
    assert rejected == "- **rejected**, not JSON: 1 row (7.1%)"
    for picture in ("statuses", "tiers", "scores", "lengths"):
        assert "data:image/png;base64," in str(made.metadata[picture].value)
    manifest, normalized = read_manifest(layout.supervised), read_manifest(layout.normalized)
    assert manifest.inputs == {"normalized_teacher": normalized.sha256, "eval_cases": file_digest(layout.eval_cases)}
    assert manifest.sha256 == file_digest(layout.supervised)
    assert manifest.extra["outcomes"] == {"kept": 10, "rejected": 1, "below_min_score": 3}
    assert made.tags is not None
    assert made.tags["dagster/data_version"] == manifest.sha256


def test_the_config_digest_follows_the_rules(layout: Layout) -> None:
    """Dagster does not count settings; the manifest does."""
    digests = [read_manifest(layout.supervised).config]
    for policy in ({}, {"min_score": 0.8}, {"seed": 7}, {"max_samples": None}):
        run(layout, ALONE, cases=None, **policy)
        digests.append(read_manifest(layout.supervised).config)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_the_closed_ledger_balances(closed: tuple[Layout, list[bytes]]) -> None:
    """Every final outcome counts, for the check of normalized_teacher too."""
    layout, _ = closed
    both = dg.AssetSelection.checks_for_assets(normalized_teacher, supervised_dataset)
    every = run(layout, both, cases=None).get_asset_check_evaluations()
    found = [(one.passed, one.description) for one in every if one.check_name == "ledger_balances"]
    assert found == [(True, "14 landed lines = 10 kept + 1 rejected + 3 below_min_score.")] * 2


@pytest.mark.parametrize("gone", [slice(11, 14), slice(11, 12), slice(13, 14)])
def test_rows_gone_from_the_closed_ledger_are_missed(closed: tuple[Layout, list[bytes]], gone: slice) -> None:
    """All left out for their score, one of them, the last line: each stops the graph and shuts the gate."""
    layout, lines = closed
    left = len(lines) - len(lines[gone])
    del lines[gone]
    layout.ledger.write_bytes(b"".join(lines))
    found = recheck(layout)["ledger_balances"]
    assert (found.passed, found.severity, found.blocking) == (False, dg.AssetCheckSeverity.ERROR, True)
    assert "The ledger does not balance: 14 lines landed, the ledger says 10 kept + 1 rejected" in found.description
    faults = [one["fault"] for one in table(found)]
    assert f"{left} found where 14 are due: rows in the ledger, one for each landed line" in faults
    message = refusal(layout.supervised_gate, file_digest(layout.supervised))
    assert message is not None
    assert "ledger_balances: The ledger does not balance" in message


def test_a_ledger_that_is_only_opened_is_not_final(closed: tuple[Layout, list[bytes]]) -> None:
    """Normalizing again opens it anew; the training rows are then those of a ledger that is gone."""
    layout, _ = closed
    run(layout, dg.AssetSelection.assets(normalized_teacher).without_checks(), cases=None)
    faults = [one["fault"] for one in table(judged(layout, "ledger_balances"))]
    assert faults[:2] == [
        "13 found where 0 are due: rows that supervised_dataset has not decided about",
        "10 found where 13 are due: training rows, one for each row that the ledger calls kept",
    ]
    assert faults[2].startswith("po_teacher_supervised.jsonl was made with the ledger ")
    assert faults[2].endswith(": they are of different runs")


def test_ledger_and_rows_of_different_runs_are_told(closed: tuple[Layout, list[bytes]]) -> None:
    """A run was killed after it had closed the ledger and before its rows were there; counting alone shows nothing."""
    layout, _ = closed
    before = {path: path.read_bytes() for path in layout.supervised.parent.glob("po_teacher_supervised.*")}
    run(layout, ALONE, cases=None, min_score=0.05, seed=1)
    for path, content in before.items():
        path.write_bytes(content)
    assert publication_fault(layout)
    faults = [str(one["fault"]) for one in table(judged(layout, "ledger_balances"))]
    assert any("was made with the ledger" in fault and "different runs" in fault for fault in faults)


def test_eval_cases_are_read_and_never_rewritten(tmp_path: Path) -> None:
    """Its data version is the file's digest."""
    layout = land(tmp_path, a=GOOD)
    write_cases(layout)
    before = layout.eval_cases.read_bytes(), layout.eval_cases.stat().st_mtime_ns
    result = run(layout, [eval_cases], cases=None)
    (made,) = result.asset_materializations_for_node("eval_cases")
    assert made.tags is not None
    assert made.tags["dagster/data_version"] == file_digest(layout.eval_cases)
    assert made.metadata["dagster/row_count"].value == 2
    assert (layout.eval_cases.read_bytes(), layout.eval_cases.stat().st_mtime_ns) == before
    assert [path.name for path in layout.eval_cases.parent.iterdir()] == [layout.eval_cases.name]


def test_faulty_eval_cases_stop_the_graph_with_one_message(layout: Layout) -> None:
    """Every fault of the file in it."""
    layout.eval_cases.unlink()
    below = [eval_cases, supervised_dataset]
    result = run(layout, below, cases=None)
    assert "do not exist" in failure_message(result, "eval_cases")
    assert not result.asset_materializations_for_node("supervised_dataset")
    layout.eval_cases.write_text("{}\n[]\n")
    message = failure_message(run(layout, below, cases=None), "eval_cases")
    assert "line 1: unknown format" in message
    assert "line 2: not a JSON object" in message


def test_a_base_model_that_is_not_there_leaves_the_dataset_as_it_was(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One clear message; the older dataset and its closed ledger stay."""
    made = {path.name: path.read_bytes() for path in (layout.supervised, layout.ledger, layout.supervised_gate)}

    def no_model(*_: object) -> TokenBudget:
        raise UserError("The base model 'x' is neither a folder nor a Hub id")

    monkeypatch.setattr(assets, "token_budget", no_model)
    result = run(layout, [supervised_dataset], cases=None)
    assert "The base model 'x' is neither a folder nor a Hub id" in failure_message(result, "supervised_dataset")
    assert {path.name: path.read_bytes() for path in (layout.supervised, layout.ledger, layout.supervised_gate)} == made


def test_conflicts_share_says_what_is_missing_and_which_file_is_gone(tmp_path: Path) -> None:
    """Also when the run before this one had missed it already; and which job makes such rows."""
    layout = land(tmp_path, a=GOOD[:9], conflicts=[row(number, "conflicts") for number in (20, 21)])
    made = dg.AssetSelection.assets(*EVERYTHING[:4])
    run(layout, made.without_checks())
    (layout.incoming / "conflicts.jsonl").unlink()
    for selection in (made.without_checks(), ALONE):
        run(layout, selection, cases=None)
        found = judged(layout, "conflicts_share", min_conflicts_share=0.2)
        assert "0 of 9 training rows (0.0%) are conflicts, at least 20.0% are needed: 3 rows more." in (
            found.description
        )
        assert found.metadata["missing_conflicts"].value == 3
        assert "Gone from incoming/ since an earlier run: conflicts.jsonl (2 conflicts rows)." in found.description
        assert "The job conflicts_on_demand makes them" in found.description


NOT_VALID = texts(30, "conflicts")
NOT_VALID["review"] = NOT_VALID["review"].replace("- Keep FR001 and FR002 as they are.\n", "")
MANY = [*GOOD, *(row(number, "conflicts") for number in range(20, 26))]


@pytest.mark.parametrize(
    ("rows", "policy", "passed", "said"),
    [
        (GOOD[:9], {}, False, "0 of 9 training rows (0.0%) are conflicts, at least 2.5% are needed: 1 row more."),
        (GOOD[:9], {"conflicts_share": "warn"}, False, "at least 2.5% are needed: 1 row more."),
        # Where there are enough rows, they replace others.
        (GOOD[:9], {"max_samples": 9, "min_conflicts_share": 0.2}, False, "at least 20.0% are needed: 2 rows more."),
        # What is left out on purpose is said and not missed.
        (
            [*GOOD, pair_row(NOT_VALID, score=0.9)],
            {},
            True,
            "1 more is left out, since the validator rejects the answer.",
        ),
        ([*GOOD, row(900, "conflicts")], {}, True, "1 more is held out for evaluation."),
        # They are never sampled away, so a small sample may hold nothing else.
        (MANY, {"max_samples": 5}, False, "7 of 7 training rows (100.0%) are conflicts, at most 50.0% are expected."),
    ],
)
def test_conflicts_share_says_how_many_there_are(
    tmp_path: Path, rows: list[Any], policy: dict[str, Any], passed: bool, said: str
) -> None:
    """Too few, too many, and those that are left out on purpose; a warning where the selection says so."""
    found = judged(chosen(tmp_path, rows, **policy), "conflicts_share", **policy)
    assert (found.passed, said in found.description) == (passed, True), found.description
    warns = "conflicts_share" in policy or policy == {"max_samples": 5}
    assert passed or found.severity == (dg.AssetCheckSeverity.WARN if warns else dg.AssetCheckSeverity.ERROR)


def test_conflicts_share_fails_when_one_that_passed_is_missing(tmp_path: Path) -> None:
    """It names the row and why it is missing; rows under the score filter are not missed."""
    long = texts(20, "conflicts") | {"concept": "and " * 700}
    rows = [*GOOD, pair_row(long, score=0.9), row(21, "conflicts", score=0.1)]
    found = judged(chosen(tmp_path, rows), "conflicts_share")
    assert not found.passed
    assert "1 conflicts row passed the score filter and is not among the training rows" in found.description
    (lost,) = table(found)
    assert (lost["line"], lost["outcome"]) == (11, "over_length")
    assert str(lost["reason"]).startswith("longer than 600 tokens: it has ")


def test_no_eval_overlap_sees_a_reference_answer(layout: Layout) -> None:
    """And a case within other text."""
    rows, reference, given = list(read_rows(layout.supervised)), case(900), texts(900)
    answer = texts(0) | {"vision": reference["reference_vision_yaml"], "review": reference["reference_review_yaml"]}
    within = texts(1) | {"concept": f"{given['concept']} {words(1, 90)}", "requirements": given["requirements"]}
    rewrite(layout, [pair_row(answer), pair_row(within), *rows[2:]])
    found = judged(layout, "no_eval_overlap")
    assert (
        "2 of 10 training rows give 1 evaluation case away: 0 with the same input, 0 with one at least 80% similar, "
        in (found.description)
    )
    assert "1 with one within other text, 1 with nearly its reference answer." in found.description


def test_a_whole_vision_in_a_training_prompt_is_named(layout: Layout) -> None:
    """Here in a file changed by hand."""
    rows = list(read_rows(layout.supervised))
    rows[3]["prompt"] = rows[3]["prompt"].replace("REQUIREMENTS:", "VISION:\nproduct_name: x\n\nREQUIREMENTS:")
    rewrite(layout, rows)
    (offender,) = table(judged(layout, "answer_not_in_prompt"))
    assert (offender["line"], offender["given_away"]) == (4, "a VISION stands in the prompt")


def test_retention_warns_outside_the_expected_band(tmp_path: Path) -> None:
    """It says where the rows went."""
    layout = chosen(tmp_path, [*GOOD, *(row(number, score=0.1) for number in range(20, 30))])
    found = judged(layout, "retention")
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert (
        "10 of 20 landed rows (50.0%) are fit for training, between 80% and 100% are expected: 10 kept, "
        "10 below_min_score." in found.description
    )
    assert table(found)[0]["reason"] == "declared score under 0.82"
    assert judged(layout, "retention", min_retention=0.4).passed
    assert not judged(layout, "retention", min_retention=0.1, max_retention=0.4).passed
    # Of the snapshot's lines, not of the ledger's rows, which may be too few.
    layout.ledger.write_bytes(b"".join(layout.ledger.read_bytes().splitlines(keepends=True)[:15]))
    assert "10 of 20 landed rows (50.0%) are fit for training" in judged(layout, "retention").description


def test_schema_fails_on_other_keys_prompts_and_answers(layout: Layout) -> None:
    """What a trainer would trip over, and fault 9: a training prompt that is not the evaluation's."""
    rows = list(read_rows(layout.supervised))
    rows[0] |= {"score": 1}
    rows[1]["prompt"] = rows[1]["prompt"].replace("You are a Product Owner.", "You are an analyst.")
    rows[2]["response"] = rows[2]["response"][:-4]
    rows[3] = {"prompt": None, "response": 5}
    rewrite(layout, rows)
    found = judged(layout, "schema")
    assert "4 of 10 rows are not of the one form" in found.description
    assert [(one["line"], one["fault"]) for one in table(found)] == [
        (1, "its keys are prompt, response, score, expected are prompt, response"),
        (2, "its prompt is not the one that evaluation uses"),
        (3, "the REVIEW block is not closed"),
        (4, "its prompt is not the one that evaluation uses; the VISION block is missing; the REVIEW block is missing"),
    ]


def test_schema_fails_when_no_row_is_left(layout: Layout) -> None:
    """An empty dataset is never trained on."""
    result = run(layout, dg.AssetSelection.assets(supervised_dataset), cases=None, min_score=1)
    found = evaluations(result)["schema"]
    assert not found.passed
    assert "There is no training row." in found.description
    assert not result.success
    assert refusal(layout.supervised_gate, file_digest(layout.supervised)) is not None


def test_the_gate_record_is_tied_to_the_data(layout: Layout) -> None:
    """Data that changed after its checks ran, or whose checks never all ran, is refused with the reason."""
    layout.supervised_gate.unlink()
    run(layout, ALONE, cases=None)
    digest = file_digest(layout.supervised)
    assert "has no gate record" in str(refusal(layout.supervised_gate, digest))
    key = dg.AssetCheckKey(supervised_dataset.key, "schema")
    run(layout, dg.AssetSelection.checks(key), cases=None)
    assert "has no gate record" in str(refusal(layout.supervised_gate, digest))
    recheck(layout)
    assert refusal(layout.supervised_gate, digest) is None
    gate = read_gate(layout.supervised_gate)
    assert gate.checks["schema"]["passed"] is True
    rewrite(layout, list(read_rows(layout.supervised))[:9])
    assert "changed after its checks ran" in str(refusal(layout.supervised_gate, file_digest(layout.supervised)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("min_score", 1.2), ("min_score", "high"), ("max_samples", 0), ("score_source", "teacher"), ("seed", -1)],
        *[("near_duplicate_threshold", 0), ("min_conflicts_share", 3), ("max_rejected_share", -0.1)],
        *[("score_tolerance", -1), ("min_scores", 0.8)],
    ],
)
def test_a_wrong_setting_is_refused_with_its_name(name: str, value: object) -> None:
    """Before anything runs; a misspelt name is wrong too."""
    with pytest.raises(UserError, match=name):
        SelectionSettings(**{name: value})


# What the manual process got wrong and nobody noticed, by the number that design.md gives the fault: a small data set
# that has it, and what says so. That only the answer and its end are trained (8) is tested in `training`, what the gate
# makes of answers (10, 11) in `evaluation`.


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


def test_10_an_answer_whose_review_does_not_parse_is_told_apart_from_a_wrong_status() -> None:
    """It scores 0.375; what is said of it is that its REVIEW is no YAML, not that its status is wrong."""
    answer = scored(evaluation_cases(1)[0], format_answer(EVALUATED_VISION, "status: aligned\nsummary: a: b"))
    assert answer.total == pytest.approx(0.375, abs=0.03)
    assert (answer.valid, answer.status) == (False, None)
    assert "REVIEW" in answer.invalid_reason
    assert "line 2, column 11" in answer.invalid_reason
    assert any("REVIEW" in problem for problem in answer.problems)


def test_11_cases_without_an_answer_count() -> None:
    """They were left out of the mean; here they get what the metric gives nothing at all."""
    cases = evaluation_cases(40)
    given = [Answer(one.case_id, GOOD_ANSWER, "stop", 300, 2.0) for one in cases[:30]]
    answers = score_answers(cases, given, model="student", model_digest="m" * 64, decoding="d" * 64)
    assert [one.case_id for one in answers] == [one.case_id for one in cases]
    assert min(answer.total for answer in answers[:30]) > 0.82
    assert {(answer.total, answer.valid) for answer in answers[30:]} == {(1 / 64, False)}


@pytest.mark.parametrize("format_name", ["teacher", "pair"])
def test_taking_in_what_was_written_gives_the_same_rows(good: Finished, tmp_path: Path, format_name: str) -> None:
    """An old training file, landed again, becomes the same training file (fault 1: formats must not matter)."""
    first = good.layout.supervised.read_bytes()
    again = chosen(tmp_path, first if format_name == "pair" else GOOD)
    assert again.supervised.read_bytes() == first
