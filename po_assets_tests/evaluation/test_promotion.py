"""Promotion: only what passed, in one switch, and the old one stays when something goes wrong."""

import json
import multiprocessing
import shutil
from pathlib import Path

import pytest
from upath import UPath

from po_assets.dag import GateRecord, read_gate, write_gate
from po_assets.evaluation.checks import Evidence
from po_assets.evaluation.gate import current_gate, gate_path, judge, promote, settle, verdict_rows
from po_assets.storage import Layout, Manifest, published_directory, write_manifest
from po_assets_tests.evaluation.scenes import both_sides


def record(adapter: str, *, passed: bool = True) -> GateRecord:
    checks = {} if passed else {"mean_score": {"passed": False, "severity": "ERROR", "required": "", "value": ""}}
    context = {"profile": {"name": "literal"}, "sentence": f"The student {'passes' if passed else 'fails'}."}
    return GateRecord(adapter * 64, passed, checks, "2026-11-22T10:00", context)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(UPath(tmp_path))


def train(layout: Layout, weights: str) -> Path:
    """An adapter folder in its place, as training leaves it."""
    layout.adapter.mkdir(parents=True, exist_ok=True)
    (layout.adapter / "adapter_model.safetensors").write_text(weights)
    return Path(str(layout.adapter))


def is_current(layout: Layout, adapter: str) -> bool:
    """Both its weights and its record."""
    folder = published_directory(layout.current)
    return (folder / "adapter_model.safetensors").read_text() == adapter and current_gate(layout).sha256 == adapter * 64


def test_a_passed_adapter_becomes_current_and_stays_when_the_next_is_trained(layout: Layout) -> None:
    """Training replaces the adapter's folder, never the promoted one; an adapter whose gate failed changes nothing."""
    assert current_gate(layout) is None
    promote(layout, record("1"), train(layout, "1"))
    assert Path(str(layout.current)).is_symlink()
    second = train(layout, "2")
    assert is_current(layout, "1")
    with pytest.raises(ValueError, match="did not pass"):
        promote(layout, record("2", passed=False), second)
    assert is_current(layout, "1")


def test_a_crash_while_copying_leaves_the_old_one(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link is switched after everything is there."""
    promote(layout, record("1"), train(layout, "1"))

    def full(*_arguments: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("po_assets.evaluation.gate.write_gate", full)
    with pytest.raises(OSError, match="No space left"):
        promote(layout, record("2"), train(layout, "2"))
    assert is_current(layout, "1")


def test_a_few_old_versions_are_kept_and_a_folder_made_by_hand_is_not_lost(layout: Layout) -> None:
    """Three versions at most; the same adapter again is no new one."""
    layout.current.mkdir(parents=True)
    (layout.current / "by_hand").write_text("x")
    for adapter in "12344":
        promote(layout, record(adapter), train(layout, adapter))
    versions = sorted(path.name for path in (layout.root / "models" / "promoted").iterdir())
    assert len(versions) == 3
    assert "4" * 16 in versions
    assert is_current(layout, "4")


def test_an_object_store_gets_a_folder_with_the_record(layout: Layout) -> None:
    """There are no links there."""
    store = Layout(UPath("memory://promotion"))
    promote(store, record("1"), train(layout, "1"))
    assert is_current(store, "1")


def test_the_gates_record_is_read_back_for_the_table(layout: Layout) -> None:
    """And there is none before the first evaluation, or where the file is damaged."""
    path = gate_path(layout)
    assert read_gate(path) is None
    written = judge(Evidence(*both_sides([0.9] * 40)), "a" * 64, cases_sha256="c" * 64, decoding="constrained")
    write_gate(path, written)
    assert read_gate(path) == written
    assert verdict_rows(written)[1] == {
        "criterion": "mean_score", "required": ">= 0.82", "value": "0.900", "verdict": "pass",
    }  # fmt: skip
    assert {row["criterion"]: row["verdict"] for row in verdict_rows(written)}["consumer_prompts"] == "-", "not asked"
    path.write_text(json.dumps({"sha256": "a"}))
    assert read_gate(path) is None


def evaluated(layout: Layout, adapter: str, *, passed: bool) -> str:
    """What is said of the adapter after its evaluation; the adapter has its card and manifest."""
    folder, copy = train(layout, adapter), Path(str(layout.root)) / "copy"
    (folder / "README.md").write_text("# Student\n")
    write_manifest(layout.adapter, Manifest(sha256=adapter * 64))
    shutil.rmtree(copy, ignore_errors=True)
    return settle(layout, record(adapter, passed=passed), Path(shutil.copytree(folder, copy)))


def test_what_becomes_of_an_adapter_is_said_by_its_digest(layout: Layout) -> None:
    """Also of the current one when it fails a later gate: it is in use, and there is one truth about it."""
    one, two, then = f"Adapter {'1' * 12}", f"Adapter {'2' * 12}", "2026-11-22T10:00"
    assert evaluated(layout, "1", passed=False) == f"{one} is not promoted; no adapter is current yet."
    assert evaluated(layout, "1", passed=True) == f"{one} is now models/current."
    assert evaluated(layout, "1", passed=True) == f"{one} stays models/current: it passed again, as on {then}."
    assert evaluated(layout, "2", passed=False) == (
        f"{two} is not promoted; adapter {'1' * 12}, which passed on {then}, stays models/current."
    )
    assert evaluated(layout, "1", passed=False) == (
        f"{one} is models/current since an earlier gate (it passed last on {then}), and fails now (mean_score; profile "
        "literal). It stays in use until another passes: train again, or point models/current to an earlier one in "
        "models/promoted."
    )
    assert is_current(layout, "1")


def test_one_adapter_has_one_card_with_the_history_of_its_verdicts(layout: Layout) -> None:
    """Every copy's is the same, also of one that was current before and may be again; others' verdicts are not in it."""
    for adapter, passed in (("2", True), ("1", True), ("2", False)):
        evaluated(layout, adapter, passed=passed)
    second = layout.root / "models" / "promoted" / ("2" * 16) / "README.md"
    assert second.read_text() == (layout.adapter / "README.md").read_text()
    assert "The gate **failed**" in second.read_text()
    assert "The gate **passed**" in (layout.current / "README.md").read_text()
    evaluated(layout, "1", passed=False)
    card = (layout.adapter / "README.md").read_text()
    assert card == (layout.current / "README.md").read_text()
    assert "The gate **failed** on 2026-11-22T10:00 (profile literal). The student fails." in card
    assert "- 2026-11-22T10:00, profile literal: passed. The student passes." in card
    assert card.count("2026-11-22") == 2
    assert "What it cannot do" in card


def test_what_is_no_verdict_in_the_history_is_left_out(layout: Layout) -> None:
    """Bytes that a power cut left, and records of another version: the evaluation goes on."""
    evaluated(layout, "1", passed=True)
    history = layout.report_json.parent / "po_eval_gate_history.jsonl"
    other = {"sha256": "1" * 64, "passed": True, "checks": {}, "time": "then", "context": {}}
    history.write_bytes(b"\xff\x00\n5\n[]\n" + json.dumps(other).encode() + b"\n" + history.read_bytes())
    evaluated(layout, "1", passed=False)
    assert (layout.current / "README.md").read_text().count("2026-11-22") == 2


def promote_often(root: Path, adapters: str) -> None:
    """Evaluate and promote adapters in turn, as a run does at its end."""
    layout, source = Layout(UPath(root)), root / adapters
    source.mkdir()
    for adapter in adapters * 5:
        (source / "adapter_model.safetensors").write_text(adapter)
        settle(layout, record(adapter), source)


def test_runs_that_race_for_current_take_turns(layout: Layout) -> None:
    """Four processes, forty promotions: none fails, no verdict is lost, and what is current is whole at any moment."""
    root = Path(str(layout.root))
    context = multiprocessing.get_context("fork")
    racers = [context.Process(target=promote_often, args=(root, adapters)) for adapters in ("ab", "cd", "ac", "ef")]
    for racer in racers:
        racer.start()
    link = root / "models" / "current"
    while any(racer.is_alive() for racer in racers):
        assert link.exists() or not link.is_symlink()
        racers[0].join(0.005)
    assert [racer.exitcode for racer in racers] == [0] * 4
    assert len((root / "evaluation" / "po_eval_gate_history.jsonl").read_text().splitlines()) == 40
    assert current_gate(layout).sha256 == (link / "adapter_model.safetensors").read_text() * 64
    assert len(list((root / "models" / "promoted").iterdir())) == 3
