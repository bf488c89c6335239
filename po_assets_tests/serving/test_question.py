"""A question comes from files, standard input or an editor; without one, nothing is asked."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from po_assets import cli
from po_assets.errors import UserError
from po_assets.serving import commands
from po_assets.serving.ask import Documents, edited, read_question
from po_assets_tests.evaluation.scenes import CONCEPT, REQUIREMENTS, VISION

BOTH = f"CONCEPT:\n{CONCEPT}\n\nREQUIREMENTS:\n{REQUIREMENTS}\n"


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Any:
    def pipe(text: str, *, terminal: bool = False) -> None:
        stdin = SimpleNamespace(buffer=io.BytesIO(text.encode()), isatty=lambda: terminal)
        monkeypatch.setattr("sys.stdin", stdin)

    return pipe


def editor(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An editor that does what the script says with the file $1."""
    path = folder / "editor.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", str(path))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)


def test_both_documents_may_come_from_standard_input(piped: Any, tmp_path: Path) -> None:
    """As sections; an existing vision is taken along; one document may stand in a file, also as Windows writes it."""
    piped(BOTH)
    assert read_question(None, None) == Documents(CONCEPT, REQUIREMENTS)
    piped(BOTH.replace("REQUIREMENTS:", f"EXISTING_VISION:\n{VISION}\n\nREQUIREMENTS:"))
    assert read_question(None, None) == Documents(CONCEPT, REQUIREMENTS, VISION)
    (tmp_path / "concept.txt").write_text(CONCEPT, encoding="utf-8-sig")
    piped(REQUIREMENTS.replace("\n", "\r\n"))
    assert read_question(str(tmp_path / "concept.txt"), "-") == Documents(CONCEPT, REQUIREMENTS)


def test_half_a_question_is_one_sentence(piped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the ways to give it; so is an editor that is not there."""
    piped("CONCEPT:\nA locker service.\n")
    with pytest.raises(UserError, match=r"The question has no text under REQUIREMENTS:\."):
        read_question(None, None)
    piped("", terminal=True)
    for given in ((None, None), ("concept.txt", None), (None, "-")):
        with pytest.raises(UserError, match=r"Give --concept FILE and --requirements FILE, or --edit"):
            read_question(*given)
    for name in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="set VISUAL or EDITOR"), edited():
        pass


def test_an_edited_question_is_asked_and_its_file_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template's comments are no part of it."""
    (tmp_path / "written").write_text(BOTH)
    editor(
        tmp_path,
        monkeypatch,
        f'grep "^#" "$1" > "{tmp_path}/new"; cat "{tmp_path}/written" >> "{tmp_path}/new"; cp "{tmp_path}/new" "$1"',
    )
    with edited() as documents:
        assert documents == Documents(CONCEPT, REQUIREMENTS)
    assert not list(tmp_path.glob("*_question.txt"))


@pytest.mark.parametrize("script", ["true", ': > "$1"', 'sed -i "/^#/d" "$1"'])
def test_an_unchanged_or_empty_question_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """As git does with a message; nothing is left behind."""
    editor(tmp_path, monkeypatch, script)
    for concept, requirements in (("", ""), (CONCEPT, REQUIREMENTS)):
        nothing = pytest.raises(UserError, match=r"^Nothing was asked: the question was left empty or unchanged\.$")
        with nothing, edited(concept, requirements):
            raise AssertionError("it was asked")
    assert not list(tmp_path.glob("*_question.txt"))


def test_what_was_written_is_kept_when_it_cannot_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Whether a part is missing, the requirements are no YAML, there is no student, or the editor fails."""
    for script, sentence in (
        ("printf 'CONCEPT:\\nA locker.\\n' > \"$1\"", "no text under REQUIREMENTS:"),
        ("printf 'CONCEPT:\\nA locker.\\n\\nREQUIREMENTS:\\na: [b\\n' > \"$1\"", "do not parse as YAML"),
        (f'cp "{tmp_path}/written" "$1"', "There is no student yet"),
        ("exit 3", "returned non-zero exit status 3"),
    ):
        (tmp_path / "written").write_text(BOTH)
        monkeypatch.setenv("PO_ARTIFACTS_ROOT", str(tmp_path / "root"))
        editor(tmp_path, monkeypatch, script)
        assert cli.main(["ask", "--edit"]) == 1
        said = capsys.readouterr().err
        (kept,) = tmp_path.glob("*_question.txt")
        assert sentence in said
        assert f"What you wrote is kept in {kept}." in said
        kept.unlink()


def test_the_projects_settings_choose_the_base_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piped: Any
) -> None:
    """Of the folder's settings.yaml, of --config, and --base-model before both; artifacts are the folder's own."""
    asked: list[Any] = []

    def refuse(_documents: Any, layout: Any, *, spec: Any, **_options: Any) -> None:
        asked.append((spec.name, spec.max_length, str(layout.root)))
        raise UserError("seen")

    for name in ("PO_ARTIFACTS_ROOT", "PO_SETTINGS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(commands, "ask", refuse)
    (tmp_path / "incoming").mkdir()
    for name in ("own", "other", "third"):
        (tmp_path / name).mkdir()
    own, other, third = (str(tmp_path / name) for name in ("own", "other", "third"))
    (tmp_path / "settings.yaml").write_text(f"base_model:\n  base_model: {own}\n  max_length: 512\n")
    (tmp_path / "other.yaml").write_text(f"base_model:\n  base_model: {other}\n")
    data = ["ask", "--data", str(tmp_path)]
    for arguments in (data, [*data, "--config", str(tmp_path / "other.yaml")], [*data, "--base-model", third]):
        piped(BOTH)
        monkeypatch.setenv("PO_ARTIFACTS_ROOT", "")
        assert cli.main(arguments) == 1
    assert asked == [(own, 512, str(tmp_path)), (other, 2048, str(tmp_path)), (third, 512, str(tmp_path))]
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"{settings.read_text()}prompt: {{template: gone.jinja}}\n")  # the adapter has its own
    piped(BOTH)
    assert (cli.main(data), len(asked)) == (1, 4)
    for wrong in ("base_model:\n  max_lenght: 512\n", "base_modl:\n  max_length: 512\n"):
        settings.write_text(wrong)
        assert cli.main(data) == 2
