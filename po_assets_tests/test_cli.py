"""The command line: one table of commands, each with its help; errors are lines on standard error."""

import argparse
import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from po_assets import cli
from po_assets.errors import UserError

PACKAGE = Path(cli.__file__).parent


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_command_helps(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With its line of help; `ui-ray` wants its extra."""
    if command == "ui-ray":
        pytest.importorskip("dagster_ray", reason="needs the extra ray")
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert cli.COMMANDS[command][1][1:20] in " ".join(capsys.readouterr().out.split())


def test_an_unknown_command_names_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong use is exit status 2, as everywhere."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["runn"])
    assert ended.value.code == 2
    assert "sample-data" in capsys.readouterr().err


@pytest.mark.parametrize(("defaults", "status"), [({}, 1), ({"error_status": 2}, 2)])
def test_a_user_error_is_a_line_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], defaults: dict[str, int], status: int
) -> None:
    """Without a traceback."""

    def fails(_options: argparse.Namespace) -> int:
        raise UserError("The disk is full. Make room.")

    monkeypatch.setattr(cli, "add_base_model", lambda parser: parser.set_defaults(handle=fails, **defaults))
    assert cli.main(["base-model"]) == status
    assert capsys.readouterr().err == "The disk is full. Make room.\n"


def test_a_folder_that_is_a_file_and_a_store_without_a_key_are_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is wrong with the program."""
    (tmp_path / "file").write_text("")
    assert cli.main(["sample-data", "--root", str(tmp_path / "file")]) == 1
    assert f"since '{tmp_path}/file' is no folder. Give another path" in capsys.readouterr().err

    class NoCredentialsError(Exception):
        __module__ = "botocore.exceptions"

    def refused(_options: argparse.Namespace) -> int:
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setenv("PO_ARTIFACTS_ROOT", "s3://ours/x")
    monkeypatch.setattr(cli, "add_base_model", lambda parser: parser.set_defaults(handle=refused))
    assert cli.main(["base-model"]) == 1
    assert (
        "The object store s3://ours/x refused: Unable to locate credentials. Mind the name" in capsys.readouterr().err
    )


def test_an_interrupt_is_a_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C in whatever the command is at; the status is the one that shells give."""

    def interrupted(_options: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "add_base_model", lambda parser: parser.set_defaults(handle=interrupted))
    assert cli.main(["base-model"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_no_module_is_a_command_of_its_own() -> None:
    """But for the worker process of storage and what `make ui` asks first, which nobody types, and the table itself."""
    modules = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
    }
    assert modules <= {"cli.py", "storage/workers.py"}
    assert not list(PACKAGE.rglob("__main__.py"))


def test_no_page_names_another_way_to_start_a_command() -> None:
    """`python -m po_assets…` is gone from README, docs, Makefile and deployments."""
    root = PACKAGE.parent
    pages = [root / "README.md", root / "Makefile", *(root / "docs").glob("*.md"), *(root / "deploy").rglob("*")]
    named = {p.name for p in pages if p.is_file() and re.search(r"python -m po_assets\b", p.read_text(errors="ignore"))}
    assert named == set()


def test_the_page_of_failures_quotes_what_the_code_says() -> None:
    """Each quoted message, split where it leaves a value out, stands in the package's strings."""
    said = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                said.append("\0".join(part.value for part in node.values if isinstance(part, ast.Constant)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.append(node.value)
    page = (PACKAGE.parent / "docs" / "when_something_fails.md").read_text()
    quoted = [line[2:] for line in page.splitlines() if line.startswith("> ")]
    parts = [part.strip() for line in quoted for part in line.split("…") if part.strip()]
    assert len(quoted) > 20
    assert [part for part in parts if not any(part in text for text in said)] == []


def test_a_terminal_without_some_letters_gets_their_code_points(tmp_path: Path) -> None:
    """`PYTHONIOENCODING`, or a locale that is not UTF-8: what a team writes in ends no command."""
    code = "import sys; from po_assets import cli, text; cli._prepare_environment(); text.say('漢字 – ü')"
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, cwd=tmp_path)
    assert done.stdout == b"\\u6f22\\u5b57 \\u2013 \xfc\n"
