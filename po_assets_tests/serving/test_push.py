"""The student goes to a Hub repository whole and with a passed verdict, or not at all."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from upath import UPath

from po_assets import cli
from po_assets.dag import Verdict, gate_record, write_gate
from po_assets.storage import Layout, Manifest, file_digest, write_manifest
from po_assets_tests.serving.hub_server import REPOSITORY, TOKEN, Hub, running_hub

DIGEST = "a" * 64


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        # Between its retries the client waits for seconds.
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _seconds: None))
        yield hub


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """With a current student whose gate passed."""
    monkeypatch.setenv("PO_ARTIFACTS_ROOT", str(tmp_path))
    layout = Layout(UPath(tmp_path))
    make_adapter(Path(str(layout.current)), passed=True)
    return layout


def make_adapter(folder: Path, *, passed: bool | None) -> None:
    folder.mkdir(parents=True)
    for name, content in {
        "adapter_config.json": "{}",
        "adapter_model.safetensors": "weights",
        "README.md": "# Product Owner student\n",
        "prompt.jinja": "{{ concept }}",
        "prompt.json": "{}",
    }.items():
        (folder / name).write_text(content)
    files = {"adapter_model.safetensors": file_digest(folder / "adapter_model.safetensors")}
    write_manifest(folder, Manifest(sha256=DIGEST, extra={"files": files}))
    if passed is not None:
        verdicts = {"mean_score": Verdict(passed, "It scores 0.5.", severity="ERROR")}
        write_gate(UPath(folder) / "gate.json", gate_record(DIGEST, verdicts))


def push(capsys: Any, *arguments: str, repository: str = REPOSITORY) -> tuple[int, str]:
    status = cli.main(["push", repository, *arguments])
    said = capsys.readouterr()
    return status, said.out + said.err


def test_the_student_is_pushed_in_one_commit_with_card_prompt_and_digests(
    hub: Hub, layout: Layout, capsys: Any
) -> None:
    """What was there before is in the history; the commit is named."""
    status, said = push(capsys)
    assert status == 0, said
    assert f"{hub.url}/{REPOSITORY}/commit/c0ffee" in said
    assert "README.md, adapter_config.json, adapter_model.safetensors, gate.json, manifest.json, prompt.jinja" in said
    assert set(hub.files) == {
        *(".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"),
        *("gate.json", "manifest.json", "prompt.jinja", "prompt.json"),
    }
    assert hub.files["adapter_model.safetensors"] == file_digest(layout.current / "adapter_model.safetensors")
    assert len(hub.commits) == 1


def test_a_failed_or_missing_verdict_or_changed_weights_are_refused_unless_forced(
    hub: Hub, layout: Layout, tmp_path: Path, capsys: Any
) -> None:
    """Nothing is asked of the Hub before; the commit says that it was forced."""
    failed, unknown = tmp_path / "failed", tmp_path / "unknown"
    make_adapter(failed, passed=False)
    make_adapter(unknown, passed=None)
    (layout.current / "adapter_model.safetensors").write_text("other weights")
    for arguments, sentence in (
        (("--adapter", str(failed)), "The checks of eval_report failed on adapter aaaaaaaaaaaa: mean_score."),
        (("--adapter", str(unknown)), "The checks of eval_report never judged adapter aaaaaaaaaaaa."),
        ((), "adapter_model.safetensors in "),
    ):
        status, said = push(capsys, *arguments)
        assert status == 1
        assert "is not pushed (--force does it in spite of this)" in said
        assert sentence in said
    assert not hub.asked
    assert push(capsys, "--adapter", str(failed), "--force")[0] == 0
    assert hub.commits == ["Product Owner student from failed, pushed with --force"]


def test_an_export_needs_a_passed_parity_of_these_very_files(hub: Hub, layout: Layout, capsys: Any) -> None:
    """And the passed gate of its adapter."""
    folder = Path(str(layout.exported))
    folder.mkdir()
    (folder / "student-q8_0.gguf").write_text("weights")
    assert "holds no export (export.json is missing)" in push(capsys, "--exported")[1]
    files = {"student-q8_0.gguf": file_digest(folder / "student-q8_0.gguf")}
    (folder / "export.json").write_text(json.dumps({"adapter_digest": DIGEST, "files": files}))
    said = push(capsys, "--exported")[1]
    assert "The checks of eval_report never judged adapter aaaaaaaaaaaa." in said
    assert "The checks of exported_student never judged this export." in said
    verdicts = {"export_parity": Verdict(True, "The same.", severity="ERROR")}
    write_gate(UPath(folder) / "gate.json", gate_record(DIGEST, verdicts))
    write_gate(UPath(folder) / "parity.json", gate_record(file_digest(folder / "export.json"), verdicts))
    assert push(capsys, "--exported")[0] == 0
    assert {"student-q8_0.gguf", "export.json", "parity.json"} <= set(hub.files)
    (folder / "student-q8_0.gguf").write_text("other weights")
    assert "student-q8_0.gguf was changed or damaged since it was exported" in push(capsys, "--exported")[1]


def test_what_the_hub_refuses_is_one_sentence_with_the_way_out(
    hub: Hub, layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A wrong token, a name that is none, a repository that is missing; `--create` makes it."""
    before = dict(hub.files)
    assert "'a/b/c' is no name of a Hub repository" in push(capsys, repository="a/b/c")[1]
    hub.exists = False
    status, said = push(capsys)
    assert (status, said.count("\n")) == (1, 1)
    assert f"The repository '{REPOSITORY}' does not exist at {hub.url}, or the token may not see it." in said
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    status, said = push(capsys)
    assert (status, said.count("\n")) == (1, 1)
    assert "(HTTP 401: Invalid credentials in Authorization header). Nothing was changed there. Give a token" in said
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.exists, hub.refusal = True, (429, "Too many\ncommits")
    assert "(HTTP 429: Too many commits). Nothing was changed there. Try again later." in push(capsys)[1]
    assert (hub.files, hub.commits) == (before, [])
    hub.exists, hub.refusal = False, None
    assert push(capsys, "--create")[0] == 0
    assert len(hub.commits) == 1


@pytest.mark.parametrize("moment", ["/", "/preupload/", "/upload/", "/commit/"])
def test_a_server_that_goes_down_midway_leaves_nothing_half_pushed(
    hub: Hub, layout: Layout, moment: str, capsys: Any
) -> None:
    """However far it came, or not at all; pushing again then works."""
    before = dict(hub.files)
    hub.down_at = moment
    status, said = push(capsys)
    assert status == 1
    assert said.splitlines()[-1].startswith(f"{hub.url} cannot be reached, or went away before all was there (")
    assert said.endswith("). Nothing was changed there; push again.\n")
    assert (hub.files, hub.commits) == (before, [])
    hub.down_at = ""
    assert push(capsys)[0] == 0
    assert len(hub.commits) == 1
