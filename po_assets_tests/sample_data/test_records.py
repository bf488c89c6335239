"""Streaming any number of sample rows."""

import json
from collections import Counter
from itertools import islice

from po_assets.product_owner import score_product_owner
from po_assets.sample_data import generate_rows
from po_assets.sample_data.records import to_line
from po_assets_tests.sample_data.sample_rows import to_row


def test_a_longer_run_begins_with_the_rows_of_a_shorter_one():
    """Row i depends on the seed and i alone, so benchmarks of different size share their data."""
    assert list(generate_rows(30)) == list(islice(generate_rows(1_000_000), 30))
    assert list(generate_rows(20, start=10)) == list(generate_rows(30))[10:]


def test_seeds_give_different_rows():
    """Another seed is another data set, not the same one shifted."""
    assert not {to_line(row) for row in generate_rows(50, 1)} & {to_line(row) for row in generate_rows(50, 2)}


def test_rows_are_json_lines_that_read_back_as_they_are():
    """One line, one object, no NaN and no newline inside."""
    for row in generate_rows(50):
        line = to_line(row)
        assert line.count(b"\n") == 1
        assert json.loads(line) == row


def test_declared_scores_are_the_metrics_own():
    """In every format, as the row is read again."""
    for row in map(to_row, generate_rows(100, 5)):
        assert row.score == score_product_owner(row.requirements_yaml, row.vision_yaml, row.review_yaml).total


def test_formats_statuses_and_low_scores_come_in_the_proportions_of_the_sample_data():
    """A stream holds all three formats, about 4 % conflicts and about 5 % rows under the filter."""
    rows = list(generate_rows(1500, 9))
    formats = Counter("nested" if "input" in row else "prompt" if "prompt" in row else "teacher" for row in rows)
    assert formats["teacher"] > formats["nested"] > formats["prompt"] > 15
    conflicts = sum(to_row(row).status == "conflicts" for row in rows)
    assert 0.02 < conflicts / len(rows) < 0.07
    assert 0.025 < sum(row["score"] < 0.82 for row in rows) / len(rows) < 0.08


def test_concepts_of_a_long_stream_stay_varied():
    """Hardly any concept comes twice among thousands of rows."""
    concepts = [to_row(row).concept for row in generate_rows(3000, 4)]
    assert len(set(concepts)) >= 0.995 * len(concepts)
