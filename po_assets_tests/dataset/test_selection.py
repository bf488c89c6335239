"""Which rows are trained on, in which order they are decided about, and what the ledger says of the others."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from po_assets.dataset.publication import TokenBudget, remembered
from po_assets.errors import UserError
from po_assets.product_owner import build_prompt, format_answer
from po_assets.storage import Layout, read_rows, workers
from po_assets_tests.dataset.tables import (
    WORD_COUNT,
    case,
    chosen,
    close,
    kept_numbers,
    normalized_tables,
    number_of,
    outcomes,
    row,
    texts,
    words,
)
from po_assets_tests.intake.landed_rows import pair_row


def entries(layout: Layout) -> list[dict[str, Any]]:
    """The ledger's rows."""
    return list(read_rows(layout.ledger))


def why(layout: Layout, number: int) -> tuple[str, str]:
    """Reason and detail of a ledger row."""
    return entries(layout)[number]["reason"], entries(layout)[number]["detail"]


def test_training_rows_are_prompt_and_response_in_landing_order(tmp_path: Path) -> None:
    """The one prompt, the one form of answer, and no other key."""
    layout = normalized_tables(tmp_path, b=[row(2)], a=[row(1), row(3)])
    close(layout)
    rows = list(read_rows(layout.supervised))
    assert kept_numbers(layout) == [1, 3, 2]
    given = texts(1)
    assert rows[0] == {
        "prompt": build_prompt(given["concept"], given["requirements"]),
        "response": format_answer(given["vision"], given["review"]),
    }


def test_rows_under_the_minimum_are_left_out_with_their_score(tmp_path: Path) -> None:
    """A score of exactly the minimum passes."""
    layout = chosen(tmp_path, [row(1, score=0.8199), row(2, score=0.82), row(3, score=0.9)])
    assert outcomes(layout) == ["below_min_score", "kept", "kept"]
    assert why(layout, 0) == ("declared score under 0.82", "its score is 0.8199")
    assert entries(layout)[0]["decided_by"] == "supervised_dataset"


def test_the_score_may_be_the_metrics_own(tmp_path: Path) -> None:
    """`score_source` says which one counts."""
    poor = texts(2) | {"vision": "product_name: x"}
    layout = chosen(tmp_path, [row(1, score=0.1), pair_row(poor, score=0.99)], invalid_targets="warn")
    assert outcomes(layout) == ["below_min_score", "kept"]
    close(layout, score_source="metric")
    assert outcomes(layout) == ["kept", "below_min_score"]
    assert entries(layout)[1]["reason"] == "metric score under 0.82"


def test_evaluation_inputs_are_held_out_with_the_case(tmp_path: Path) -> None:
    """The same input however it is written, nearly the same, within other text, or with nearly its answer."""
    given = texts(5)
    shouted = given | {"concept": given["concept"].upper(), "requirements": given["requirements"].replace(": ", ":  ")}
    near = given | {"concept": given["concept"] + " now"}
    filler, reference = texts(7), case(5)
    within = filler | {
        "concept": f"{given['concept']}. {filler['concept']}",
        "requirements": f"{given['requirements']}notes:\n- {words(1, 40)}\n",
    }
    answer = filler | {"vision": reference["reference_vision_yaml"], "review": reference["reference_review_yaml"]}
    rows = [row(5), *(pair_row(one, score=0.9) for one in (shouted, near, within, answer)), row(6)]
    layout = normalized_tables(tmp_path, [reference], a=rows)
    close(layout)
    assert outcomes(layout) == ["held_out"] * 5 + ["kept"]
    assert [(entry["reason"], entry["detail"][:24]) for entry in entries(layout)[:5]] == [
        *[("same input as an evaluation case", "case case-5")] * 2,
        ("nearly the input of an evaluation case", "case case-5, similarity "),
        ("an evaluation case's input within other text", "case case-5, similarity "),
        ("nearly the reference answer of an evaluation case", "case case-5, similarity "),
    ]


def test_an_existing_vision_stands_in_the_training_prompt(tmp_path: Path) -> None:
    """As a part of its own, as the agent sends it."""
    existing = "product_name: Old\nproduct_summary: What there was before"
    layout = chosen(tmp_path, [row(1) | {"existing_vision_yaml": existing}, row(2)])
    given = texts(1)
    first, second = read_rows(layout.supervised)
    assert first["prompt"] == build_prompt(given["concept"], given["requirements"], existing)
    assert "EXISTING_VISION" not in second["prompt"]


def test_max_samples_is_a_limit_and_the_rest_say_so(tmp_path: Path) -> None:
    """Neither more nor fewer than asked for, where there are enough; a smaller sample is part of a larger one."""
    layout = chosen(tmp_path, [row(number) for number in range(30)], max_samples=12)
    assert outcomes(layout).count("kept") == 12
    assert outcomes(layout).count("over_max_samples") == 18
    left = next(entry for entry in entries(layout) if entry["outcome"] == "over_max_samples")
    assert left["reason"] == "12 rows are enough (max_samples)"
    twelve = set(kept_numbers(layout))
    close(layout, max_samples=15)
    assert twelve < set(kept_numbers(layout))
    close(layout, max_samples=None)
    assert outcomes(layout) == ["kept"] * 30


def test_the_same_rows_are_chosen_whatever_the_order_of_landing(tmp_path: Path) -> None:
    """The choice depends on content and seed, not on file names, order or record format."""
    rows = [row(number) for number in range(40)]
    one = normalized_tables(tmp_path / "one", a=rows[:20], b=rows[20:])
    close(one, max_samples=10)
    shuffled = Random(1).sample(rows, 40)
    other = normalized_tables(tmp_path / "other", x=shuffled[:7], y=shuffled[7:30], z=shuffled[30:])
    close(other, max_samples=10)
    assert sorted(kept_numbers(one)) == sorted(kept_numbers(other))
    close(other, max_samples=10, seed=43)
    assert sorted(kept_numbers(one)) != sorted(kept_numbers(other))


def test_conflicts_rows_are_never_sampled_away(tmp_path: Path) -> None:
    """Not even where they alone are more than asked for."""
    rows = [row(number, "conflicts") for number in range(5)] + [row(number) for number in range(5, 30)]
    layout = chosen(tmp_path, rows, max_samples=8)
    assert kept_numbers(layout)[:5] == [0, 1, 2, 3, 4]
    assert len(kept_numbers(layout)) == 8
    close(layout, max_samples=3)
    assert kept_numbers(layout) == [0, 1, 2, 3, 4]


def test_rows_over_length_do_not_use_up_the_number(tmp_path: Path) -> None:
    """The next rows in line take their places; lengths are measured only as far as needed."""
    layout = normalized_tables(tmp_path, a=[row(number) for number in range(30)])
    measured: list[str] = []

    def odd_rows_are_long(pairs: Sequence[tuple[str, str]]) -> list[int]:
        measured.extend(prompt for prompt, _ in pairs)
        return [1000 if number_of(prompt) % 2 else 10 for prompt, _ in pairs]

    close(layout, TokenBudget("odd", 600, odd_rows_are_long), max_samples=10)
    assert outcomes(layout).count("kept") == 10
    assert all(number % 2 == 0 for number in kept_numbers(layout))
    assert outcomes(layout).count("over_length") == len(measured) - 10
    assert outcomes(layout).count("over_max_samples") == 30 - len(measured)


def test_drop_duplicates_keeps_the_best_answer_to_a_prompt(tmp_path: Path) -> None:
    """And names the row that is kept instead."""
    other = texts(1) | {"review": texts(1)["review"].replace("serve", "suit")}
    rows = [row(1), pair_row(other, score=0.95), row(1), row(2)]
    layout = chosen(tmp_path, rows, drop_duplicates=True)
    assert outcomes(layout) == ["duplicate", "kept", "duplicate", "kept"]
    assert why(layout, 0) == ("another answer to the same prompt is kept", "kept is a.jsonl, line 2")


def test_drop_duplicates_drops_conflicts_rows_only_as_exact_copies(tmp_path: Path) -> None:
    """Another answer that also says conflicts is kept; the copy and the contradicting answer go."""
    one, other = texts(1, "conflicts"), texts(1, "conflicts")
    other["review"] = other["review"].replace("serve", "suit")
    rows = [pair_row(one, score=0.9), pair_row(other, score=0.95), pair_row(one, score=0.9), row(1, "aligned", 0.99)]
    layout = chosen(tmp_path, rows, drop_duplicates=True)
    assert outcomes(layout) == ["kept", "kept", "duplicate", "duplicate"]
    assert why(layout, 2) == ("exact copy of another row", "kept is a.jsonl, line 1")


def test_rejected_rows_keep_their_entry_when_the_ledger_is_closed(tmp_path: Path) -> None:
    """What normalized_teacher decided stands, and says who decided it."""
    layout = normalized_tables(tmp_path, a=[row(1), {"a": 1}, row(2)])
    opened = entries(layout)[1]
    close(layout)
    assert entries(layout)[1] == opened
    assert outcomes(layout) == ["kept", "rejected", "kept"]


def test_closing_twice_decides_anew(tmp_path: Path) -> None:
    """Another policy needs no other run of normalized_teacher, and leaves no trace of the first."""
    layout = normalized_tables(tmp_path, a=[row(1, score=0.83), row(2)])
    close(layout)
    first = layout.ledger.read_bytes()
    close(layout, min_score=0.85)
    assert outcomes(layout) == ["below_min_score", "kept"]
    close(layout)
    assert layout.ledger.read_bytes() == first


def test_a_ledger_of_other_rows_is_refused(tmp_path: Path) -> None:
    """A crash between two publications must not go unnoticed."""
    layout = normalized_tables(tmp_path, a=[row(1)])
    older = {path: path.read_bytes() for path in layout.ledger.parent.glob(f"{layout.ledger.name}*")}
    normalized_tables(tmp_path, a=[row(2)])
    for path, content in older.items():
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"opened for another normalized table\. Materialize"):
        close(layout)


def test_missing_tables_are_named(tmp_path: Path) -> None:
    """With the way out."""
    layout = normalized_tables(tmp_path, a=[row(1)])
    layout.ledger.unlink()
    with pytest.raises(UserError, match=r"po_teacher_ledger.jsonl is missing.*Materialize raw_teacher and"):
        close(layout)


def test_a_ledger_with_a_row_missing_is_refused_and_nothing_is_published(tmp_path: Path) -> None:
    """Order is what ties the two tables together; it is verified row by row."""
    layout = normalized_tables(tmp_path, a=[row(1), row(2)])
    lines = layout.ledger.read_bytes().splitlines(keepends=True)
    layout.ledger.write_bytes(lines[1] + lines[0])
    with pytest.raises(UserError, match=r"a\.jsonl, line 2 has no normalized row"):
        close(layout)
    assert not layout.supervised.exists()
    assert layout.ledger.read_bytes() == lines[1] + lines[0]


def test_worker_processes_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judging rows in two processes gives the files that one gives."""
    monkeypatch.setattr(workers, "BLOCK_ROWS", 3)
    layout = normalized_tables(tmp_path, a=[row(number, score=0.8 + number / 400) for number in range(40)])
    written = []
    for processes in (1, 2):
        close(layout, workers=processes, max_samples=20)
        written.append((layout.supervised.read_bytes(), layout.ledger.read_bytes()))
    assert written[0] == written[1]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["aligned", "conflicts"]), st.floats(0.7, 1)), max_size=14),
    st.integers(1, 8),
    st.booleans(),
    st.integers(250, 320),
)
def test_every_row_has_one_outcome_and_the_sum_is_what_landed(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[int, str, float]],
    max_samples: int,
    drop: bool,
    max_length: int,
) -> None:
    """For any rows and rules: kept rows are in the file, conflicts that passed and fit are kept, the number is kept to."""
    rows = [row(number, status, score) for number, status, score in drawn] + [{"a": 1}]
    layout = normalized_tables(tmp_path_factory.mktemp("any"), [case(6)], a=rows)
    budget = TokenBudget("words", max_length, WORD_COUNT.row_lengths)
    closed = close(layout, budget, max_samples=max_samples, drop_duplicates=drop)
    found = entries(layout)
    assert len(found) == len(rows) == closed.outcomes.total
    kept = [entry for entry in found if entry["outcome"] == "kept"]
    assert len(list(read_rows(layout.supervised))) == len(kept)
    conflicts = {
        entry["line"] for entry, one in zip(found, [*drawn, (0, "", 0.0)], strict=True) if one[1] == "conflicts"
    }
    kept_others = [entry for entry in kept if entry["line"] not in conflicts]
    assert len(kept_others) <= max(0, max_samples - (len(kept) - len(kept_others)))
    for entry in found:
        if entry["line"] in conflicts:
            assert entry["outcome"] in {"kept", "below_min_score", "held_out", "over_length", "duplicate"}
            assert entry["outcome"] != "duplicate" or entry["reason"] == "exact copy of another row"


def test_a_row_is_counted_once_and_every_change_of_it_anew() -> None:
    counted: list[tuple[str, str]] = []

    def count(rows: list[tuple[str, str]]) -> list[int]:
        counted.extend(rows)
        return [len(prompt) * 10 + len(response) for prompt, response in rows]

    lengths = remembered(count)
    assert lengths([("ab", "c"), ("a", "bc"), ("ab", "c")]) == [21, 12, 21]
    assert lengths([("a", "bc"), ("ab", "d")]) == [12, 21]
    assert counted == [("ab", "c"), ("a", "bc"), ("ab", "d")]
    assert lengths([]) == []
