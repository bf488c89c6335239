"""All landed lines through normalization: every one accounted for, none lost, whatever it holds."""

import base64
import json
import resource
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from po_assets.errors import UserError
from po_assets.intake import ledger as pipeline
from po_assets.intake import normalization
from po_assets.intake.ledger import Outcome, balance
from po_assets.product_owner import documents, fast_yaml
from po_assets.sample_data.records import generate_rows
from po_assets.storage import Layout, read_rows, workers
from po_assets_tests.intake.landed_rows import BUILDERS, encode, land, take_in, teacher_row
from po_assets_tests.product_owner.documents_text import REVIEW

ALIAS_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [" + ", ".join([f"*{old}"] * 9) + "]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def ledger(layout: Layout) -> list[dict[str, Any]]:
    """The ledger's rows."""
    return list(read_rows(layout.ledger))


def test_formats_may_be_mixed_in_one_file(tmp_path: Path) -> None:
    """The format is that of the row, never of the file."""
    layout = land(tmp_path, a=[build() for build in BUILDERS.values()])
    take_in(layout)
    assert [row["format"] for row in read_rows(layout.normalized)] == list(BUILDERS)
    assert [row["outcome"] for row in ledger(layout)] == ["kept"] * len(BUILDERS)


BAD_LINES: dict[str, tuple[bytes, str]] = {
    "blank": (b"", "blank line"),
    "no JSON": (b"{", "not JSON"),
    "Latin-1": ('{"concept": "café"}'.encode("latin-1"), "not UTF-8"),
    "array": (b"[]", "not a JSON object"),
    "NaN score": (encode(teacher_row(score=float("nan"))), "unusable score"),
    "score above 1": (encode(teacher_row(score=89)), "unusable score"),
    "duplicate key": (encode(teacher_row())[:-1] + b', "score": 0.1}', "duplicate JSON key"),
    "deep JSON": (b'{"metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
    "unknown format": (b'{"a": 1}', "unknown format"),
    "missing part": (b'{"prompt": "x", "response": "y"}', "missing part"),
    "10 MB line": (encode(teacher_row({"concept": "x" * 10_000_000})), "line too long"),
    "huge scalar": (encode(teacher_row({"vision": "a: " + "x" * 500_000})), "YAML does not parse"),
    "alias bomb": (encode(teacher_row({"vision": ALIAS_BOMB})), "YAML does not parse"),
    "alias of a long text": (
        encode(teacher_row({"review": 'a: &a "' + "x" * 20_000 + '"\nsummary: [' + ", ".join(["*a"] * 7_000) + "]"})),
        "YAML does not parse",
    ),
    "endless alias": (encode(teacher_row({"vision": "a: &a [*a]"})), "YAML does not parse"),
    "deep YAML": (encode(teacher_row({"vision": "a: " + "[" * 50_000})), "YAML does not parse"),
    "deep YAML blocks": (encode(teacher_row({"vision": "- " * 50_000})), "YAML does not parse"),
    "huge number": (encode(teacher_row({"requirements": "a: " + "9" * 5_000})), "YAML does not parse"),
    "huge status": (encode(teacher_row({"review": REVIEW.replace("needs_adjustment", "0x" + "f" * 5_000)})), "schema"),
    "bad status": (encode(teacher_row({"review": REVIEW.replace("needs_adjustment", "fine")})), "schema"),
}


def test_every_bad_line_gets_a_reason_and_stops_no_other(tmp_path: Path) -> None:
    """Good rows before, between and after are kept; memory and time do not explode."""
    good = encode(teacher_row()) + b"\n"
    layout = land(tmp_path, a=good + b"".join(line + b"\n" + good for line, _ in BAD_LINES.values()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    summary = take_in(layout)
    assert time.monotonic() - start < 15
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 300_000  # KiB
    rows = ledger(layout)
    assert [row["reason"] for row in rows if row["outcome"] == "rejected"] == [
        reason for _, reason in BAD_LINES.values()
    ]
    assert all(row["detail"] for row in rows if row["outcome"] == "rejected")
    assert sum(row["outcome"] == "kept" for row in rows) == len(BAD_LINES) + 1
    assert summary.outcomes.total == len(rows) == 2 * len(BAD_LINES) + 1
    assert not balance(layout).disagreements


def test_what_surrounds_a_row_costs_no_row(tmp_path: Path) -> None:
    """A byte-order mark, CRLF, a last line without newline and a score written as text; blank lines are named."""
    good, texted = encode(teacher_row()), encode(teacher_row(score="0.9"))
    layout = land(
        tmp_path, a=b"\xef\xbb\xbf" + good + b"\r\n" + texted + b"\r\n\r\n  \n" + good, b=b"\xef\xbb\xbf" + good
    )
    take_in(layout)
    found = [(row["file"], row["line"], row["outcome"], row["reason"]) for row in ledger(layout)]
    assert found == [
        ("a.jsonl", 1, "kept", ""),
        ("a.jsonl", 2, "kept", ""),
        ("a.jsonl", 3, "rejected", "blank line"),
        ("a.jsonl", 4, "rejected", "blank line"),
        ("a.jsonl", 5, "kept", ""),
        ("b.jsonl", 1, "kept", ""),
    ]
    assert ledger(layout)[1]["note"] == "the declared score is text ('0.9') and was read as a number"
    assert [row["score"] for row in read_rows(layout.normalized)] == [0.9] * 4
    assert not balance(layout).disagreements


def test_results_are_those_of_the_plain_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """json.loads, PyYAML's own Python parser and one process give the same bytes as the fast readers and workers."""
    monkeypatch.setattr(workers, "BLOCK_ROWS", 20)
    rows = list(generate_rows(200)) + [build() for build in BUILDERS.values()]
    rows += [orjson.loads(line) for line, reason in BAD_LINES.values() if reason in {"schema", "YAML does not parse"}]
    fast = land(tmp_path / "fast", a=rows)
    take_in(fast, workers=2)
    documents._read.cache_clear()
    monkeypatch.setattr(fast_yaml, "_parse", None)
    monkeypatch.setattr(documents, "_C_LOADER", yaml.SafeLoader)
    monkeypatch.setattr(normalization, "read_object", lambda line, *_: json.loads(line))
    plain = land(tmp_path / "plain", a=rows)
    take_in(plain, workers=1)
    documents._read.cache_clear()
    assert fast.normalized.read_bytes() == plain.normalized.read_bytes()
    # The two parsers put a syntax error into different words; which rows have one, and all else, is the same.
    for one, other in zip(ledger(fast), ledger(plain), strict=True):
        assert one | {"detail": ""} == other | {"detail": ""}


def test_rejected_lines_stand_verbatim_in_the_quarantine(tmp_path: Path) -> None:
    """From there they can be corrected and landed again; bytes that are no text are kept as base64."""
    layout = land(tmp_path, a=b'{"a": "\xc3\xa9"}\r\n\xff\xfe\n')
    take_in(layout)
    first, second = read_rows(layout.rejected)
    assert (first["file"], first["line"], first["reason"]) == ("a.jsonl", 1, "unknown format")
    assert first["text"] == '{"a": "é"}\r'
    assert base64.b64decode(second["base64"]) == b"\xff\xfe"
    assert "text" not in second


def test_a_fault_of_ours_costs_one_row_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception nobody thought of must not stop the other rows."""
    real = pipeline.normalize
    monkeypatch.setattr(
        pipeline,
        "normalize",
        lambda line, *_: (_ for _ in ()).throw(ZeroDivisionError("x")) if line.number == 2 else real(line),
    )
    layout = land(tmp_path, a=[teacher_row(), teacher_row(), teacher_row()])
    take_in(layout)
    assert [row["outcome"] for row in ledger(layout)] == ["kept", "rejected", "kept"]
    assert ledger(layout)[1]["reason"] == "unexpected error"
    assert "ZeroDivisionError while reading the row: x; please report this" in ledger(layout)[1]["detail"]


def test_a_lost_worker_is_one_clear_error_and_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory, most likely: the older tables stay."""
    monkeypatch.setattr(workers, "BLOCK_ROWS", 1)
    layout = land(tmp_path, a=[teacher_row()])
    take_in(layout)
    before = {path.name: path.read_bytes() for path in (layout.normalized, layout.ledger, layout.rejected)}
    land(tmp_path, a=[teacher_row()] * 20)
    monkeypatch.setattr(pipeline, "make_work", _die)
    with pytest.raises(UserError, match=r"most likely because memory ran out\. Nothing was published"):
        take_in(layout, workers=2)
    assert {path.name: path.read_bytes() for path in (layout.normalized, layout.ledger, layout.rejected)} == before
    assert not [path.name for path in layout.normalized.parent.iterdir() if path.name.startswith(".staging")]


def _die() -> Any:
    import os

    os._exit(1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.binary(max_size=40)
        | st.sampled_from([encode(build()) for build in BUILDERS.values()])
        | st.sampled_from([line for line, _ in BAD_LINES.values() if len(line) < 5_000]),
        min_size=1,
        max_size=8,
    )
)
def test_landed_is_always_the_sum_of_outcomes(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    """Whatever lands, in any mixture, the files balance."""
    layout = land(tmp_path_factory.mktemp("any"), a=b"\n".join(lines) + b"\n")
    summary = take_in(layout)
    found = balance(layout)
    assert not found.disagreements
    assert found.landed == summary.outcomes.total == sum(found.outcomes.by_outcome().values())
    assert found.outcomes.of(Outcome.KEPT) == summary.rows
