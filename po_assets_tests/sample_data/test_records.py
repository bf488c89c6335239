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
    assert not {to_line(row) for row in generate_rows(50, 1)} & {to_line(row) for row in generate_rows(50, 2)}


def test_rows_are_json_lines_of_every_format_with_the_metrics_own_score():
    """One line, one object, no NaN and no newline inside; the score is that of the row as it is read again."""
    for row in generate_rows(100, 5):
        line = to_line(row)
        assert line.count(b"\n") == 1
        assert json.loads(line) == row
        read = to_row(row)
        assert read.score == score_product_owner(read.requirements_yaml, read.vision_yaml, read.review_yaml).total


def test_a_long_stream_keeps_the_proportions_of_the_sample_data_and_stays_varied():
    """All three formats, about 4 % conflicts, about 5 % rows under the filter; hardly any concept comes twice."""
    rows = list(generate_rows(3000, 4))
    formats = Counter("nested" if "input" in row else "prompt" if "prompt" in row else "teacher" for row in rows)
    assert formats["teacher"] > formats["nested"] > formats["prompt"] > 30
    read = list(map(to_row, rows))
    assert 0.02 < sum(row.status == "conflicts" for row in read) / len(rows) < 0.07
    assert 0.025 < sum(row.score < 0.82 for row in read) / len(rows) < 0.08
    assert len({row.concept for row in read}) >= 0.995 * len(rows)
