"""The assets and checks of the dataset in Dagster: passing on good data, and what they say on bad data.

The graph is run where it is promised that it stops or goes on; what a check says is asked of the check.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import pytest
from upath import UPath

from po_assets.dag import read_gate
from po_assets.dataset.assets import eval_cases, supervised_dataset
from po_assets.dataset.publication import TokenBudget, publication_fault, refusal
from po_assets.dataset.settings import SelectionSettings
from po_assets.errors import UserError
from po_assets.intake.assets import normalized_teacher
from po_assets.storage import Layout, file_digest, read_manifest, read_rows
from po_assets_tests.dataset.tables import GOOD, case, chosen, judged, rewrite, row, run, texts, words, write_cases
from po_assets_tests.intake.landed_rows import land, pair_row
from po_assets_tests.intake.test_checks import evaluations, failure_message, table

MADE = dg.AssetSelection.all().without_checks()
OF_DATASET = dg.AssetSelection.checks_for_assets(supervised_dataset)
ALONE = dg.AssetSelection.assets(supervised_dataset).without_checks()


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


def test_taking_in_what_was_written_gives_the_same_rows(good: Finished, tmp_path: Path) -> None:
    """An old training file, landed again, becomes the same training file (fault 1: formats must not matter)."""
    first = good.layout.supervised.read_bytes()
    assert chosen(tmp_path, first).supervised.read_bytes() == first


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


def test_a_base_model_that_is_not_there_leaves_the_dataset_as_it_was(layout: Layout) -> None:
    """One clear message; the older dataset and its closed ledger stay."""
    made = {path.name: path.read_bytes() for path in (layout.supervised, layout.ledger, layout.supervised_gate)}

    def no_model(*_: object) -> TokenBudget:
        raise UserError("The base model 'x' is neither a folder nor a Hub id")

    result = run(layout, [supervised_dataset], cases=None, budget=no_model)
    assert "The base model 'x' is neither a folder nor a Hub id" in failure_message(result, "supervised_dataset")
    assert {path.name: path.read_bytes() for path in (layout.supervised, layout.ledger, layout.supervised_gate)} == made


def test_conflicts_share_says_what_is_missing_and_which_file_is_gone(tmp_path: Path) -> None:
    """Also when the run before this one had missed it already; and which job makes such rows."""
    layout = land(tmp_path, a=GOOD[:9], conflicts=[row(number, "conflicts") for number in (20, 21)])
    run(layout, MADE)
    (layout.incoming / "conflicts.jsonl").unlink()
    for selection in (MADE, ALONE):
        run(layout, selection, cases=None)
        found = judged(layout, "conflicts_share", min_conflicts_share=0.2)
        assert "0 of 9 training rows (0.0%) are conflicts, at least 20.0% are needed: 3 rows more." in (
            found.description
        )
        assert found.metadata["missing_conflicts"].value == 3
        assert "Gone from incoming/ since an earlier run: conflicts.jsonl (2 conflicts rows)." in found.description
        assert "the job conflicts_on_demand makes them" in found.description


NOT_VALID = texts(30, "conflicts")
NOT_VALID["review"] = NOT_VALID["review"].replace("- Keep FR001 and FR002 as they are.\n", "")
MANY = [*GOOD, *(row(number, "conflicts") for number in range(20, 26))]


@pytest.mark.parametrize(
    ("rows", "policy", "passed", "said"),
    [
        (GOOD[:9], {}, False, "0 of 9 training rows (0.0%) are conflicts, at least 2.5% are needed: 1 row more."),
        (GOOD[:9], {"conflicts_share": "warn"}, False, "at least 2.5% are needed: 1 row more."),
        (GOOD[:7], {"min_conflicts_share": 0.3}, False, "at least 30.0% are needed: 3 rows more."),
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
    """Here in a file changed by hand; a line `Vision:` of a concept is none."""
    rows = list(read_rows(layout.supervised))
    rows[2]["prompt"] = rows[2]["prompt"].replace("REQUIREMENTS:", "Vision:\nThe first choice.\n\nREQUIREMENTS:")
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
