"""Promotion: only what passed, in one switch, and the old one stays when something goes wrong."""

import json
from pathlib import Path

import pytest
from upath import UPath

from po_assets.dag import GateRecord, read_gate, write_gate
from po_assets.evaluation.checks import Evidence
from po_assets.evaluation.gate import gate_path, gate_table, judge, promote, promoted_adapter
from po_assets.storage import Layout, published_directory
from po_assets_tests.evaluation.scenes import both_sides


def record(adapter: str, *, passed: bool = True) -> GateRecord:
    return GateRecord(adapter * 64, passed, {}, "2026-11-22T10:00")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(UPath(tmp_path))


def train(layout: Layout, weights: str) -> None:
    """An adapter folder in its place, as training leaves it."""
    layout.adapter.mkdir(parents=True, exist_ok=True)
    (layout.adapter / "adapter_model.safetensors").write_text(weights)


def test_a_passed_adapter_becomes_current_and_stays_when_the_next_is_trained(layout: Layout) -> None:
    """Training replaces the adapter's folder, never the promoted one."""
    train(layout, "first")
    assert promoted_adapter(layout) is None
    promote(layout, record("1"), Path(str(layout.adapter)))
    train(layout, "second")
    assert (layout.current / "adapter_model.safetensors").read_text() == "first"
    assert promoted_adapter(layout) == "1" * 64
    assert Path(str(layout.current)).is_symlink()


def test_a_failed_gate_is_never_promoted(layout: Layout) -> None:
    """The old one stays."""
    train(layout, "first")
    promote(layout, record("1"), Path(str(layout.adapter)))
    train(layout, "second")
    with pytest.raises(ValueError, match="did not pass"):
        promote(layout, record("2", passed=False), Path(str(layout.adapter)))
    assert promoted_adapter(layout) == "1" * 64


def test_a_crash_while_copying_leaves_the_old_one(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link is switched after everything is there."""
    train(layout, "first")
    promote(layout, record("1"), Path(str(layout.adapter)))
    train(layout, "second")

    def full(*_arguments: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("po_assets.evaluation.gate.write_gate", full)
    with pytest.raises(OSError, match="No space left"):
        promote(layout, record("2"), Path(str(layout.adapter)))
    assert (layout.current / "adapter_model.safetensors").read_text() == "first"
    assert promoted_adapter(layout) == "1" * 64


def test_a_few_old_versions_are_kept_and_a_folder_made_by_hand_is_not_lost(layout: Layout) -> None:
    """Three versions at most; the same adapter again is no new one."""
    layout.current.mkdir(parents=True)
    (layout.current / "by_hand").write_text("x")
    for adapter in "12344":
        train(layout, adapter)
        promote(layout, record(adapter), Path(str(layout.adapter)))
    versions = sorted(path.name for path in (layout.root / "models" / "promoted").iterdir())
    assert len(versions) == 3
    assert "4" * 16 in versions
    assert (layout.current / "adapter_model.safetensors").read_text() == "4"


def test_an_object_store_gets_a_folder_with_the_record(tmp_path: Path) -> None:
    """There are no links there."""
    layout, here = Layout(UPath("memory://promotion")), Layout(UPath(tmp_path))
    train(here, "first")
    promote(layout, record("1"), Path(str(here.adapter)))
    assert (published_directory(layout.current) / "adapter_model.safetensors").read_text() == "first"
    assert promoted_adapter(layout) == "1" * 64


def test_the_gates_record_is_read_back_for_the_table(layout: Layout) -> None:
    """And there is none before the first evaluation, or where the file is damaged."""
    assert gate_table(layout) == []
    written = judge(Evidence(*both_sides([0.9] * 40)), "a" * 64, cases_sha256="c" * 64, decoding="constrained")
    write_gate(gate_path(layout), written)
    assert read_gate(gate_path(layout)) == written
    assert gate_table(layout)[1] == {
        "criterion": "mean_score", "required": ">= 0.82", "value": "0.900", "verdict": "pass",
    }  # fmt: skip
    gate_path(layout).write_text(json.dumps({"sha256": "a"}))
    assert gate_table(layout) == []
