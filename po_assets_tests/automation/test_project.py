"""A project folder of one's own: made, filled, run to a verdict; wrong use is refused before any work."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
import yaml
from upath import UPath

from po_assets import cli
from po_assets.automation.project import make_project, open_project, read_settings, settings_page, settings_template
from po_assets.dataset.cases import read_eval_cases
from po_assets.definitions import SETTINGS
from po_assets.errors import UserError
from po_assets.serving.server import listen
from po_assets.storage import Layout
from po_assets_tests.automation.live import serving
from po_assets_tests.automation.workplace import good_rows
from po_assets_tests.evaluation.scenes import cases, cases_table
from po_assets_tests.model.tiny_model import make_tiny_model
from po_assets_tests.processes import free_port

VARIABLES = ("PO_ARTIFACTS_ROOT", "DAGSTER_HOME", "PO_SETTINGS")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a fresh shell, and put back afterwards."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")


def lines(records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def fill(rows: Path, cases_file: Path) -> None:
    """A few good rows and cases; of the cases one file in each form that is read."""
    rows.write_text(lines(good_rows()))
    table = cases_table(cases(3)).to_dict(orient="records")
    cases_file.write_text(lines(table[:2]))
    cases_file.with_name("more_cases.yaml").write_text(yaml.safe_dump(table[2:]))


def command(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    return subprocess.run(
        [sys.executable, "-m", "po_assets.cli", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_page_of_the_settings_is_what_the_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no variable set that changes a default; otherwise: po-assets settings > docs/settings.md."""
    for name in [name for name in os.environ if name.startswith("PO_")]:
        monkeypatch.delenv(name)
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert page.read_text() == settings_page(SETTINGS) + "\n"


def test_a_new_project_takes_rows_and_cases_to_a_verdict(tmp_path: Path) -> None:
    """Under a path with spaces, quotes and letters beyond ASCII; a random student fails the gate: exit status 1."""
    project = tmp_path / """my 'first' "pröject" ñ"""
    made = command("init", project)
    assert made.returncode == 0, made.stderr
    fill(project / "incoming" / "rows.jsonl", project / "cases" / "first.jsonl")
    settings = {
        "base_model": {"base_model": str(make_tiny_model(tmp_path / "tiny", context=6000)), "max_length": 6000},
        "selection": {"min_score": 0.5},
        "recipe": {"rank": 4, "alpha": 8, "epochs": 2.0, "learning_rate": 1e-2, "precision": "float32"},
        "decoding": {"mode": "free", "max_new_tokens": 8, "free_cases": 0},
    }
    settings_file = tmp_path / "ours.yaml"
    settings_file.write_text(yaml.safe_dump(settings))
    result = command("run", "--data", project, "--config", settings_file)
    shown = " ".join(result.stdout.split())
    assert result.returncode == 1, result.stderr
    assert result.stdout.endswith(f"po-assets ui --data {shlex.quote(str(project))} --config {settings_file}\n")
    assert "3 cases were evaluated, 40 are wanted" in shown
    assert (project / "models" / "po_student_v2" / "adapter_model.safetensors").is_file()
    assert len((project / "evaluation" / "po_eval_cases.jsonl").read_text().splitlines()) == 3
    assert (project / "dagster" / "history").is_dir()


def test_init_keeps_what_is_there(tmp_path: Path) -> None:
    """A second call makes what is missing and nothing else."""
    make_project(tmp_path, SETTINGS)
    (tmp_path / "settings.yaml").write_text("selection: {min_score: 0.7}\n")
    (tmp_path / "cases").rmdir()
    assert make_project(tmp_path, SETTINGS) == [tmp_path / "cases"]
    assert (tmp_path / "settings.yaml").read_text() == "selection: {min_score: 0.7}\n"


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    """With its path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"The project .*file/x cannot be made: Not a directory"):
        make_project(tmp_path / "file" / "x", SETTINGS)


def test_the_settings_file_shows_every_setting_with_its_default() -> None:
    """Everything is a comment; uncommented as a whole, it changes nothing."""
    text = settings_template(SETTINGS)
    assert yaml.safe_load(text) is None
    document = yaml.safe_load("\n".join(line.removeprefix("# ") for line in text.splitlines()[2:]))
    assert list(document) == list(SETTINGS)
    for name, kind in SETTINGS.items():
        fields = set(kind.model_fields) - (set(SETTINGS) - {name})
        assert set(document[name]) == fields
        values = {key: value for key, value in document[name].items() if value is not None}
        needed = {"base_model": SETTINGS["base_model"]()} if name == "recipe" else {}
        assert kind(**values, **needed).fingerprint() == kind(**needed).fingerprint()


def test_all_faults_of_the_settings_are_told_at_once(tmp_path: Path) -> None:
    """Unknown resources and settings, with what may be meant, and wrong values of every resource."""
    path = tmp_path / "settings.yaml"
    path.write_text("selction: {}\nselection: {min_score: 2, mn_score: 1}\nrecipe: {rank: 0}\nbase_model: 7\n")
    with pytest.raises(UserError) as raised:
        read_settings(str(path), SETTINGS)
    said = str(raised.value)
    assert "'selction' is not a resource with settings; did you mean 'selection'?" in said
    assert "min_score is 2; it must be at most 1." in said
    assert "'mn_score' is not a setting; did you mean 'min_score'?" in said
    assert "rank is 0; it must be at least 1." in said
    assert "base_model must be a mapping of settings, got 7." in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n", "must be a mapping of resources"),
        ("a: [\n", "cannot be read"),
        (None, "cannot be read"),
        ("gate:\n  name: ours\ngate:\n  margin: 0.1\n", "line 3: the key 'gate' stands twice"),
        ("gate: {name: 2026-13-45}\n", "line 1: '2026-13-45' cannot be read .*quote it"),
        ("gate: {1: 2}\n", "'1' is not a setting"),
        ("gate: false\n", "gate must be a mapping of settings, got False"),
        ("recipe: {learning_rate: 8e-05}\n", "learning_rate is '8e-05', which is text.* write 0.00008, without"),
        ("recipe: {rank: sixteen}\n", "rank is 'sixteen'; it must be a whole number"),
    ],
)
def test_a_settings_file_that_is_none_is_one_sentence(tmp_path: Path, text: str | None, expected: str) -> None:
    """A list, no YAML, no file; what a lenient reader would lose, or take for something else."""
    path = tmp_path / "settings.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=expected):
        read_settings(str(path), SETTINGS)


def test_an_empty_value_is_the_default_and_null_is_kept_where_it_means_something(tmp_path: Path) -> None:
    """`epochs:` is left to the profile; `max_samples: null` is no limit."""
    path = tmp_path / "settings.yaml"
    path.write_text("recipe:\n  epochs:\nselection:\n  max_samples: null\ndecoding:\n")
    given = read_settings(str(path), SETTINGS)
    assert (given["recipe"], given["selection"], given["decoding"]) == ({}, {"max_samples": None}, {})


def test_any_folder_of_files_will_do(tmp_path: Path) -> None:
    """They are linked into artifacts of its own; what is gone is taken out, and what was landed otherwise stays."""
    fill(tmp_path / "rows.jsonl", tmp_path / "eval_cases.jsonl")
    (tmp_path / "old.jsonl").write_text(lines(good_rows(1)))
    open_project(tmp_path, None)
    incoming = tmp_path / "artifacts" / "incoming"
    assert sorted(path.name for path in incoming.iterdir()) == ["old.jsonl", "rows.jsonl"]
    (incoming / "landed.jsonl").write_text(lines(good_rows(1)))
    (tmp_path / "old.jsonl").unlink()
    rows = (tmp_path / "rows.jsonl").rename(tmp_path / "rows.json")
    open_project(tmp_path, None)
    assert [path.name for path in incoming.iterdir()] == ["landed.jsonl"]
    rows.rename(tmp_path / "rows.jsonl")
    open_project(tmp_path, None)
    assert sorted(path.name for path in incoming.iterdir()) == ["landed.jsonl", "rows.jsonl"]
    assert (incoming / "rows.jsonl").read_bytes() == (tmp_path / "rows.jsonl").read_bytes()
    assert os.environ["DAGSTER_HOME"] == str(tmp_path / "artifacts" / "dagster")
    assert os.environ["PO_SETTINGS"] == ""


def test_rows_of_another_folder_in_the_same_root_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PO_ARTIFACTS_ROOT wins over --data, so that the next folder's rows join those that are there; the path is whole."""
    monkeypatch.setenv("PO_ARTIFACTS_ROOT", str(tmp_path / "root"))
    for name in ("one" * 30, "two"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name / f"{name}.jsonl", tmp_path / name / "cases.jsonl")
        open_project(tmp_path / name, None)
    told = f"are linked in {tmp_path}/root/incoming, and are used as well: {tmp_path}/{'one' * 30}/{'one' * 30}.jsonl. Remove"
    assert told in capsys.readouterr().out


def test_a_link_of_ones_own_in_the_landing_folder_stays(tmp_path: Path) -> None:
    """Rows that lie on another disk are linked by hand; endings may be in capitals."""
    make_project(tmp_path / "project", SETTINGS)
    fill(tmp_path / "rows.jsonl", tmp_path / "project" / "cases" / "cases.jsonl")
    link = tmp_path / "project" / "incoming" / "rows.JSONL"
    link.symlink_to(tmp_path / "rows.jsonl")
    open_project(tmp_path / "project", None)
    assert link.samefile(tmp_path / "rows.jsonl")


def test_a_single_file_of_cases_is_the_one_that_is_read_and_corrected(tmp_path: Path) -> None:
    """Faults name its lines, and a correction is not undone by the next run; U+2028 ends no line."""
    layout, path = Layout(UPath(tmp_path)), tmp_path / "cases" / "ours.jsonl"
    make_project(tmp_path, SETTINGS)
    (tmp_path / "incoming" / "rows.jsonl").write_text(lines(good_rows()))
    case = cases_table(cases(1)).to_dict(orient="records")[0] | {"concept": "A tool\u2028for teams"}
    path.write_text(f"\ufeff{json.dumps(case, ensure_ascii=False)}\r\n\r\n", encoding="utf-8")
    open_project(tmp_path, None)
    assert [case.concept for case in read_eval_cases(layout.eval_cases)] == ["A tool\u2028for teams"]
    assert layout.eval_cases.samefile(path)
    path.write_text("\n{}\n")
    with pytest.raises(UserError, match=r"(?s)cases/ours.jsonl' have 1 fault.*line 2: unknown format"):
        read_eval_cases(layout.eval_cases)
    path = path.rename(path.with_name("renamed.jsonl"))
    open_project(tmp_path, None)
    assert layout.eval_cases.samefile(path)
    path.rename(path.with_suffix(".yaml"))
    open_project(tmp_path, None)
    assert layout.eval_cases.name == "po_eval_cases.yaml"


def test_links_by_hand_cost_no_case(tmp_path: Path) -> None:
    """Artifacts on another disk; a file of cases that is only a link to the one that the graph reads."""
    own, (folder, disk) = tmp_path / "my_cases.jsonl", (tmp_path / "artifacts", tmp_path / "mnt" / "deep" / "disk")
    fill(tmp_path / "rows.jsonl", own)
    (tmp_path / "more_cases.yaml").unlink()
    disk.mkdir(parents=True)
    folder.symlink_to(disk)
    open_project(tmp_path, None)
    read = Layout(UPath(folder)).eval_cases
    assert read.samefile(own)
    read.unlink()
    own.rename(str(read))
    own.symlink_to(str(read))
    open_project(tmp_path, None)
    assert len(read_eval_cases(read)) == 2


def test_the_file_made_of_several_is_not_written_over_where_it_was_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told instead, with the way out; a fault is told by the file that it is in, and what was not read."""
    layout, path = Layout(UPath(tmp_path)), tmp_path / "cases" / "a.jsonl"
    make_project(tmp_path, SETTINGS)
    fill(tmp_path / "incoming" / "rows.jsonl", path)
    (tmp_path / "cases" / "more.json").write_text("[]")
    open_project(tmp_path, None)
    assert "Not read as cases, which are .jsonl or .yaml by their names: cases/more.json." in capsys.readouterr().out
    layout.eval_cases.write_text(layout.eval_cases.read_text().replace("aligned", "misaligned", 1))
    with pytest.raises(UserError, match=r"was changed since it was made of .*a.jsonl and .*more_cases.yaml"):
        open_project(tmp_path, None)
    layout.eval_cases.unlink()
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(UserError, match=r"(?s)a.jsonl' have 1 fault.*line 3: unknown format"):
        open_project(tmp_path, None)
    path.unlink()
    path.symlink_to("nowhere.jsonl")
    with pytest.raises(UserError, match=r"a.jsonl cannot be read: No such file"):
        open_project(tmp_path, None)


def test_a_row_file_whose_name_is_taken_is_refused(tmp_path: Path) -> None:
    """Another file of that name has been landed: neither is lost."""
    fill(tmp_path / "rows.jsonl", tmp_path / "eval_cases.jsonl")
    incoming = tmp_path / "artifacts" / "incoming"
    incoming.mkdir(parents=True)
    (incoming / "rows.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="there is another file of this name"):
        open_project(tmp_path, None)
    assert (incoming / "rows.jsonl").read_text() == "{}\n"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """Exit status and words of a command that is refused before any work, in this process."""
    status = cli.main([*map(str, arguments)])
    said = capsys.readouterr()
    assert said.out == ""
    return status, said.err


def test_wrong_use_is_refused_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is missing in the folder, all of it; wrong settings; a folder that is none."""
    status, said = refused(capsys, "run", "--data", tmp_path)
    assert status == 2
    assert "There are no rows" in said
    assert "There are no evaluation cases" in said
    fill(tmp_path / "rows.jsonl", tmp_path / "eval_cases.jsonl")
    (tmp_path / "wrong.yaml").write_text("selection: {min_score: 2}\n")
    status, said = refused(capsys, "run", "--data", tmp_path / "rows.jsonl")
    assert (status, f"is a file; --data wants the folder that it is in, {tmp_path}." in said) == (2, True)
    status, said = refused(capsys, "run", "--data", tmp_path / "nowhere")
    assert status == 2
    assert "does not exist. `po-assets init" in said
    status, said = refused(capsys, "review", "land", "--data", tmp_path)
    assert (status, f"{tmp_path}/artifacts/curation/po_review_candidates.yaml" in said) == (1, True)
    os.environ["PO_ARTIFACTS_ROOT"] = ""
    status, said = refused(capsys, "rejected", "edit", "--data", tmp_path)
    assert (status, f"{tmp_path}/artifacts/distillation" in said) == (1, True)
    wrong = command("run", "--data", tmp_path, "--config", tmp_path / "wrong.yaml")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "min_score is 2; it must be at most 1." in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_a_ui_whose_port_is_taken_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Dagster's own start goes on without a page, and its daemons launch runs."""
    fill(tmp_path / "rows.jsonl", tmp_path / "eval_cases.jsonl")
    with listen("127.0.0.1", 0) as taken:
        status, said = refused(capsys, "ui", "--data", tmp_path, "--port", str(taken.getsockname()[1]))
    assert (status, "Take another port with --port" in said) == (1, True)
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.slow
def test_a_ui_starts_beside_any_files_and_leaves_no_daemon_when_it_is_told_to_end(tmp_path: Path) -> None:
    """By SIGTERM, also as the background job of a script, which begins with SIGINT ignored."""
    for module in ("gql", "httpx", "queue"):
        (tmp_path / f"{module}.py").write_text("")
    fill(tmp_path / "rows.jsonl", tmp_path / "eval_cases.jsonl")
    (tmp_path / "rows.jsonl").write_text("{}\n")  # nothing that the sensor could have trained on
    port = str(free_port())
    ui = ["ui", "--data", str(tmp_path), "--port", port]

    def page() -> bool:
        with contextlib.suppress(OSError):
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=5))
        return False

    ui = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", str(Path(sys.executable).with_name("po-assets")), *ui]
    with serving(ui, tmp_path / "log", page, cwd=tmp_path) as process:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        assert psutil.wait_procs(family, timeout=60)[1] == []
    assert len(family) > 2


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").is_dir(), reason="needs a folder nobody can write to")
def test_a_history_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A read-only DAGSTER_HOME: its path, why, and the way out."""
    monkeypatch.setenv("DAGSTER_HOME", "/proc/po")
    monkeypatch.setenv("PO_ARTIFACTS_ROOT", str(tmp_path))
    status, said = refused(capsys, "run")
    assert status == 1
    assert "DAGSTER_HOME /proc/po cannot be written to" in said
    assert len(said.splitlines()) == 1


def test_a_default_of_any_kind_reaches_the_run() -> None:
    """Dagster's own `configure_at_launch` forgets the value of a choice, and a null that means something."""
    seen: dict[str, Any] = {}
    decoding, selection = SETTINGS["decoding"], SETTINGS["selection"]

    @dg.asset(required_resource_keys={"decoding", "selection"})
    def look(context: dg.AssetExecutionContext) -> None:
        resources = context.resources
        seen.update(mode=resources.decoding.mode, samples=resources.selection.max_samples)

    defs = dg.Definitions(
        assets=[look],
        resources={
            "decoding": decoding.configure_at_launch(mode="free"),
            "selection": selection.configure_at_launch(max_samples=None),
        },
    )
    assert defs.resolve_implicit_global_asset_job_def().execute_in_process().success
    assert seen == {"mode": "free", "samples": None}
