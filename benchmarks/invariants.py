"""What must hold for anything that lands, said once: for the property tests here and for the fuzzer in benchmarks.

Each function raises `AssertionError` when something does not hold; anything else that it raises is a fault as well.
"""

import base64
import time
from typing import Any

import orjson
import yaml

from po_assets.intake.checks import row_faults
from po_assets.intake.ledger import Outcome, WrittenBlock, write_block
from po_assets.intake.lines import Line, Reason
from po_assets.intake.normalization import normalize
from po_assets.intake.record import EXISTING_VISION
from po_assets.product_owner import (
    build_prompt,
    format_answer,
    parse_answer,
    read_yaml,
    score_product_owner,
    split_prompt,
    strip_fences,
    validate_answer,
)
from po_assets.product_owner.metric import PART_POINTS

SECONDS_PER_INPUT = 5.0
"""Far above what the largest row takes that is read at all; on a busy machine, too."""
_BOUNDS = ("characters, at most", "levels deep", "aliases expand to", "base-60 integer")
"""Reasons that stand for our own limits: the plain reader must not be asked about such documents."""


def check_landed(data: bytes) -> None:
    """Every line ends in the ledger once; what is kept is sound, what is not stands verbatim with a reason."""
    lines = [Line("a.jsonl", number, line, len(line)) for number, line in enumerate(data.split(b"\n"), start=1)]
    start = time.monotonic()
    written = write_block(lines)
    assert time.monotonic() - start < SECONDS_PER_INPUT * len(lines)
    entries = [orjson.loads(entry) for entry in written.ledger]
    assert [entry["line"] for entry in entries] == [line.number for line in lines]
    for entry in entries:
        rejected = entry["outcome"] == Outcome.REJECTED
        assert entry["outcome"] in {Outcome.KEPT, Outcome.REJECTED}
        assert rejected == bool(entry["reason"]) == bool(entry["detail"]), entry
        assert entry["reason"] != Reason.UNEXPECTED, entry["detail"]
    kept = [entry["line"] for entry in entries if entry["outcome"] == Outcome.KEPT]
    _check_kept(written, kept)
    _check_quarantine(written, lines, kept)


def _check_kept(written: WrittenBlock, kept: list[int]) -> None:
    rows = [orjson.loads(row) for row in written.normalized]
    assert [row["line"] for row in rows] == kept
    for row in rows:
        assert not row_faults(row), row_faults(row)
        documents = (row["requirements_yaml"], row["vision_yaml"], row["review_yaml"])
        check_documents(*documents)
        assert score_product_owner(*documents).total == row["metric_score"]
        assert validate_answer(*documents[1:]).ok == row["valid"]
        _check_taken_in_again(row)


def _check_taken_in_again(row: dict[str, Any]) -> None:
    """The training row that comes of a row gives the same row when it lands."""
    existing = row["metadata"].get(EXISTING_VISION, "")
    pair = {
        "prompt": build_prompt(row["concept"], row["requirements_yaml"], existing),
        "response": format_answer(row["vision_yaml"], row["review_yaml"]),
    }
    data = orjson.dumps(pair)
    again = normalize(Line("b.jsonl", 1, data, len(data))).row
    for column in ("concept", "requirements_yaml", "vision_yaml", "review_yaml", "status", "input_digest"):
        assert again[column] == row[column], (column, again[column], row[column])
    assert again["metadata"].get(EXISTING_VISION, "") == existing


def _check_quarantine(written: WrittenBlock, lines: list[Line], kept: list[int]) -> None:
    rejected = [orjson.loads(row) for row in written.rejected]
    rest = [line for line in lines if line.number not in set(kept)]
    assert [row["line"] for row in rejected] == [line.number for line in rest]
    for row, line in zip(rejected, rest, strict=True):
        text = row["text"].encode() if "text" in row else base64.b64decode(row["base64"])
        assert text == line.data


def check_documents(requirements: str, vision: str, review: str) -> None:
    """Metric and validator take any text, keep to their bounds, and say what cost points."""
    start = time.monotonic()
    score = score_product_owner(requirements, vision, review)
    verdict = validate_answer(vision, review)
    assert time.monotonic() - start < SECONDS_PER_INPUT
    parts = (score.schema, score.vision, score.alignment, score.specificity)
    assert all(0 <= part <= PART_POINTS for part in parts), parts
    assert 0 <= score.total <= 1
    assert abs(score.total - sum(parts) / (len(parts) * PART_POINTS)) < 1e-9
    assert verdict.ok != bool(verdict.reason)
    costs = [float(problem.rpartition(" (-")[2].removesuffix(" points)")) for problem in score.problems]
    assert costs == sorted(costs, reverse=True), score.problems
    assert abs(sum(costs) - (1 - score.total) * 4 * PART_POINTS) <= 0.051 * len(costs), score.problems
    for text in (requirements, vision, review):
        check_yaml(text)


def check_yaml(text: str) -> None:
    """A document is read as PyYAML's own Python parser reads it, or refused for a limit of ours."""
    reading = read_yaml(text, unique_keys=False)  # PyYAML takes the last of two equal keys
    if reading.error and any(bound in reading.error for bound in _BOUNDS):
        assert reading.value == {}
        return
    try:
        plain = yaml.safe_load(strip_fences(text))
    except Exception:  # noqa: BLE001 - PyYAML raises many kinds
        plain = None
    expected = plain if isinstance(plain, dict) else {}
    try:
        assert repr(reading.value) == repr(expected), text
    except ValueError:  # an integer of more digits than Python prints
        assert reading.value == expected
    assert (reading.error is None) == isinstance(plain, dict), (text, reading.error)


def check_texts(prompt: str, answer: str) -> None:
    """The parts of a prompt and of an answer are found in any text; what is found can be written and read again."""
    start = time.monotonic()
    parts, parsed = split_prompt(prompt), parse_answer(answer)
    assert time.monotonic() - start < SECONDS_PER_INPUT
    assert all(part is None or part.strip() for part in (parts.concept,))
    assert bool(parsed.missing) == (parsed.vision_yaml is None or parsed.review_yaml is None)
    vision, review = parsed.vision_yaml or "", parsed.review_yaml or ""
    if not any(_FENCE in text for text in (vision, review)):
        again = parse_answer(format_answer(vision, review))
        for found, text in ((again.vision_yaml, vision), (again.review_yaml, review)):
            assert (found or "").split() == text.split()


_FENCE = "```"
