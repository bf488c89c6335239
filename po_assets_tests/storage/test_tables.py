"""JSONL tables, their manifests, and the IO manager in a real Dagster run."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from upath import UPath

from po_assets.dag import Artifacts, JsonlIOManager, read_frame, stage_frames
from po_assets.storage import Layout, Manifest, file_digest, read_manifest, stage_lines

FRAME = pd.DataFrame({"n": [1, 2, 3], "text": ["a", "ñ\n", None], "more": [{"k": [1]}, {}, None]})


def test_a_published_table_has_a_manifest_of_its_bytes(tmp_path: Path) -> None:
    """sha256 and rows are the file's own."""
    target = UPath(tmp_path / "t.jsonl")
    staged = stage_frames(target, [FRAME.head(2), FRAME.tail(1)])
    assert not target.exists()
    staged.with_manifest(inputs={"raw": "1"}, config="2", code_version="3").publish()
    assert read_manifest(target) == Manifest(file_digest(target), 3, {"raw": "1"}, "2", "3")
    assert target.read_text().splitlines()[1] == '{"n":2,"text":"ñ\\n","more":{}}'


def test_lines_are_staged_verbatim(tmp_path: Path) -> None:
    """Bytes that are no text pass unchanged."""
    staged = stage_lines(UPath(tmp_path / "raw"), [b"\xff\x00", b""])
    assert (staged.staging.read_bytes(), staged.rows) == (b"\xff\x00\n\n", 2)


def test_a_failing_stream_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither a staged nor a published file."""

    def chunks() -> Iterator[pd.DataFrame]:
        yield FRAME
        raise RuntimeError("source broke")

    with pytest.raises(RuntimeError, match="source broke"):
        stage_frames(UPath(tmp_path / "t.jsonl"), chunks())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("line", "reason"), [(b"{", "line 2 is not JSON"), (b"[1]", "line 2 must be a JSON object")])
def test_a_damaged_table_names_file_and_line(tmp_path: Path, line: bytes, reason: str) -> None:
    """So that nobody has to search."""
    target = UPath(tmp_path / "t.jsonl")
    target.write_bytes(b'{"a":1}\n' + line + b"\n")
    with pytest.raises(ValueError, match=reason):
        read_frame(target)


def test_an_unreadable_manifest_counts_as_none(tmp_path: Path) -> None:
    """What made the artifact is then unknown."""
    assert read_manifest(tmp_path / "t.jsonl") is None
    (tmp_path / "t.jsonl.manifest.json").write_text('{"sha')
    assert read_manifest(tmp_path / "t.jsonl") is None


@pytest.mark.parametrize("kind", ["frame", "staged"])
def test_assets_pass_tables_through_the_io_manager(tmp_path: Path, kind: str) -> None:
    """A frame or a staged table goes in; a frame comes out."""
    layout = Layout(UPath(tmp_path))
    seen: dict[str, int] = {}

    @dg.asset
    def normalized_teacher() -> dg.MaterializeResult:
        values = {"frame": FRAME, "staged": stage_frames(layout.normalized, [FRAME])}
        return dg.MaterializeResult(value=values[kind], data_version=dg.DataVersion("v"))

    @dg.asset
    def whole(normalized_teacher: pd.DataFrame) -> None:
        seen["whole"] = len(normalized_teacher)

    artifacts = Artifacts(root=str(tmp_path))
    resources = {"io_manager": JsonlIOManager(artifacts=artifacts)}
    assert dg.materialize([normalized_teacher, whole], resources=resources).success
    assert seen == {"whole": 3}
    manifest = read_manifest(layout.normalized)
    assert manifest is not None
    assert manifest.rows == 3


def test_the_io_manager_refuses_what_is_no_table(tmp_path: Path) -> None:
    """The error names the asset and what may be returned."""

    @dg.asset
    def normalized_teacher() -> int:
        return 7

    resources = {"io_manager": JsonlIOManager(artifacts=Artifacts(root=str(tmp_path)))}
    result = dg.materialize([normalized_teacher], resources=resources, raise_on_error=False)
    assert "normalized_teacher returned a int" in str(result.get_step_failure_events()[0].step_failure_data.error)


def test_the_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL as well as a path."""
    monkeypatch.setenv("PO_ARTIFACTS_ROOT", "memory://bucket/po")
    assert str(Artifacts().layout.ledger) == "memory://bucket/po/distillation/po_teacher_ledger.jsonl"


def test_an_unknown_table_is_refused_with_the_known_ones() -> None:
    """A new tabular asset is added to the layout first."""
    with pytest.raises(KeyError, match="no table is kept for asset 'x'; known are raw_teacher"):
        Layout(UPath("/r")).table("x")
