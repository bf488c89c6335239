"""All landed lines through normalization: every one accounted for, none lost, whatever it holds."""

import base64
import gzip
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
from po_assets.intake import normalization, pipeline
from po_assets.intake.ledger import Outcome, balance
from po_assets.intake.pipeline import Summary
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
    "UTF-16": ('{"concept": "x"}'.encode("utf-16"), "not JSON"),
    "Latin-1": ('{"concept": "café"}'.encode("latin-1"), "not UTF-8"),
    "NUL": (b'{"concept": "\x00"}', "not JSON"),
    "array": (b"[]", "not a JSON object"),
    "NaN score": (encode(teacher_row(score=float("nan"))), "unusable score"),
    "infinite score": (encode(teacher_row(score=float("inf"))), "unusable score"),
    "score above 1": (encode(teacher_row(score=89)), "unusable score"),
    "score below 0": (encode(teacher_row(score=-0.01)), "unusable score"),
    "score in words": (encode(teacher_row(score="very good")), "unusable score"),
    "text above 1": (encode(teacher_row(score="89")), "unusable score"),
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
    "huge status": (
        encode(teacher_row({"review": REVIEW.replace("needs_adjustment", "0x" + "f" * 5_000)})),
        "schema",
    ),
    "bad status": (encode(teacher_row({"review": REVIEW.replace("needs_adjustment", "fine")})), "schema"),
}


def test_every_bad_line_gets_a_reason_and_stops_no_other(tmp_path: Path) -> None:
    """Good rows before, between and after are kept; memory and time do not explode."""
    good = encode(teacher_row()) + b"\n"
    layout = land(tmp_path, a=good + b"".join(line + b"\n" + good for line, _ in BAD_LINES.values()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    sources, summary = take_in(layout)
    assert time.monotonic() - start < 15
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 300_000  # KiB
    rows = ledger(layout)
    assert [row["reason"] for row in rows if row["outcome"] == "rejected"] == [
        reason for _, reason in BAD_LINES.values()
    ]
    assert all(row["detail"] for row in rows if row["outcome"] == "rejected")
    assert sum(row["outcome"] == "kept" for row in rows) == len(BAD_LINES) + 1
    assert summary.outcomes.total == len(rows) == 2 * len(BAD_LINES) + 1
    assert not balance(layout.raw, sources, layout.ledger, layout.normalized, layout.rejected).disagreements


def test_what_surrounds_a_row_costs_no_row(tmp_path: Path) -> None:
    """A byte-order mark, CRLF, a last line without newline and a score written as text; blank lines are named."""
    good, texted = encode(teacher_row()), encode(teacher_row(score="0.9"))
    layout = land(
        tmp_path, a=b"\xef\xbb\xbf" + good + b"\r\n" + texted + b"\r\n\r\n  \n" + good, b=b"\xef\xbb\xbf" + good
    )
    sources, _ = take_in(layout)
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
    assert not balance(layout.raw, sources, layout.ledger, layout.normalized, layout.rejected).disagreements


def test_every_line_of_a_packed_file_says_what_the_file_is(tmp_path: Path) -> None:
    """It was named *.jsonl; the other files land."""
    packed = gzip.compress(b"".join(encode(build()) + b"\n" for build in BUILDERS.values()))
    layout = land(tmp_path, a=packed, b=json.dumps([teacher_row()], indent=1).encode(), c=[teacher_row()])
    take_in(layout)
    for row in ledger(layout):
        if row["file"] == "a.jsonl":
            assert row["reason"] == "blank line" or "compressed with gzip" in row["detail"]
        elif row["file"] == "b.jsonl":
            assert "jq -c '.[]'" in row["detail"]
        else:
            assert row["outcome"] == "kept"


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


def test_a_quarantined_line_is_corrected_in_a_new_file(tmp_path: Path) -> None:
    """As rejected_share says: land it anew, delete it from the old file; bytes that are no text come back exactly."""
    latin = encode(teacher_row({"concept": "A café planner"})).decode().encode("latin-1")
    bad = encode(teacher_row(score=2))
    layout = land(tmp_path, a=encode(teacher_row()) + b"\n" + bad + b"\n" + latin + b"\n")
    take_in(layout)
    first, second = read_rows(layout.rejected)
    assert (first["text"].encode(), base64.b64decode(second["base64"])) == (bad, latin)
    corrected = [
        json.loads(first["text"]) | {"score": 0.8},
        json.loads(base64.b64decode(second["base64"]).decode("latin-1")),
    ]
    gone = {first["line"], second["line"]}
    lines = (tmp_path / "incoming" / "a.jsonl").read_bytes().splitlines(keepends=True)
    land(tmp_path, a=b"".join(line for number, line in enumerate(lines, 1) if number not in gone), b=corrected)
    sources, summary = take_in(layout)
    assert summary.outcomes.by_outcome() == {"kept": 3}
    assert [row["concept"] for row in read_rows(layout.normalized)][-1] == "A café planner"
    assert not layout.rejected.read_bytes()
    assert not balance(layout.raw, sources, layout.ledger, layout.normalized, layout.rejected).disagreements


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


def test_worker_processes_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes write the same files as one, in the same order."""
    monkeypatch.setattr(workers, "BLOCK_ROWS", 3)
    rows = [teacher_row(score=number / 100) for number in range(60)]
    written = []
    for name, processes in (("one", 1), ("two", 2)):
        layout = land(tmp_path / name, a=rows, b=b"{\n" * 7)
        _, summary = take_in(layout, processes)
        paths = (layout.normalized, layout.ledger, layout.rejected)
        written.append(([path.read_bytes() for path in paths], summary.outcomes.table()))
    assert written[0] == written[1]


def test_a_lost_worker_is_one_clear_error_and_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory, most likely: the older tables stay."""
    monkeypatch.setattr(workers, "BLOCK_ROWS", 1)
    layout = land(tmp_path, a=[teacher_row()])
    take_in(layout)
    before = layout.normalized.read_bytes()
    land(tmp_path, a=[teacher_row()] * 20)
    monkeypatch.setattr(pipeline, "make_work", _die)
    with pytest.raises(UserError, match=r"most likely because memory ran out\. Nothing was published"):
        take_in(layout, workers=2)
    assert layout.normalized.read_bytes() == before
    assert len(ledger(layout)) == 1
    assert not [path.name for path in layout.normalized.parent.iterdir() if path.name.startswith(".staging")]


def _die() -> Any:
    import os

    os._exit(1)


def test_an_interrupted_pass_leaves_the_older_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ledger, quarantine and table are published at the end or not at all."""
    layout = land(tmp_path, a=[teacher_row()])
    take_in(layout)
    before = {path.name: path.read_bytes() for path in layout.normalized.parent.iterdir() if path != layout.raw}
    land(tmp_path, a=[teacher_row()] * 3)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Summary, "merge", interrupt)
    with pytest.raises(KeyboardInterrupt):
        take_in(layout)
    after = {path.name: path.read_bytes() for path in layout.normalized.parent.iterdir() if path != layout.raw}
    raw = {layout.raw.name, f"{layout.raw.name}.manifest.json"}
    assert {name: data for name, data in after.items() if name not in raw} == {
        name: data for name, data in before.items() if name not in raw
    }


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
    sources, summary = take_in(layout)
    found = balance(layout.raw, sources, layout.ledger, layout.normalized, layout.rejected)
    assert not found.disagreements
    assert found.landed == summary.outcomes.total == sum(found.outcomes.by_outcome().values())
    assert found.outcomes.of(Outcome.KEPT) == summary.rows
