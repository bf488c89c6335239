"""Where things are kept: all artifacts under one root (a path or an fsspec URL), Dagster's history in DAGSTER_HOME.

The names of artifacts are stable: people grep these files. Whether Dagster can keep its history is asked before the UI,
a run and a step start: what fills the disk while Dagster itself writes there ends in its own traceback, which nothing
here can reach.
"""

import os
import re
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from po_assets.errors import UserError

ROOT_VARIABLE = "PO_ARTIFACTS_ROOT"
HOME_VARIABLE = "DAGSTER_HOME"
OF_A_RUN = 50_000_000
"""Bytes that the history of a run may take, with room to spare."""
OF_A_STEP = 10_000_000
"""Bytes that the events of a step may take, its failure among them, with room to spare."""


class _Place:
    """A path below the root."""

    def __init__(self, *parts: str) -> None:
        self._parts = parts

    def __get__(self, layout: "Layout", owner: type["Layout"]) -> UPath:
        return layout.root.joinpath(*self._parts)


@dataclass(frozen=True)
class Layout:
    """Every artifact's place under `root`."""

    root: UPath

    incoming = _Place("incoming")
    """Folder in which teacher data lands as `*.jsonl`."""
    raw = _Place("distillation", "po_teacher_dataset.jsonl")
    """Every landed line verbatim."""
    normalized = _Place("distillation", "po_teacher_normalized.jsonl")
    """The readable rows in one form."""
    ledger = _Place("distillation", "po_teacher_ledger.jsonl")
    """One row per landed line: its outcome and why."""
    rejected = _Place("distillation", "po_teacher_rejected.jsonl")
    """The rejected lines verbatim, with the reason, to be fixed and landed again."""
    supervised = _Place("distillation", "po_teacher_supervised.jsonl")
    """The training rows: `prompt` and `response`."""
    supervised_gate = _Place("distillation", "po_teacher_supervised.gate.json")
    """The verdict of the supervised dataset's checks, tied to its sha256."""
    baseline_answers = _Place("evaluation", "po_baseline_answers.jsonl")
    """The base model's scored answers, one row per case."""
    student_answers = _Place("evaluation", "po_student_answers.jsonl")
    """The student's scored answers, one row per case."""
    answer_cache = _Place("evaluation", "cache")
    """Folder of finished answers per model and decoding, from which an interrupted evaluation goes on."""
    baseline_report = _Place("evaluation", "po_baseline_report.json")
    """Statistics of the baseline's answers."""
    report_json = _Place("evaluation", "po_eval_report.json")
    """Student against baseline, with the gate."""
    report_html = _Place("evaluation", "po_eval_report.html")
    """The same for people."""
    consumer_answers = _Place("evaluation", "po_consumer_answers.json")
    """The student's answers under consumers' prompts."""
    adapter = _Place("models", "po_student_v2")
    """The student's LoRA adapter (a PEFT folder)."""
    current = _Place("models", "current")
    """The last adapter whose gate passed."""
    exported = _Place("models", "exported")
    """The current student for other runtimes."""
    base_models = _Place("models", "base")
    """Folder of converted base models."""
    checkpoints = _Place("models", "checkpoints")
    """Folder of training checkpoints."""
    synthetic_conflicts = _Place("curation", "po_synthetic_conflicts.jsonl")
    """The conflicts rows that were made from teacher rows, as they land."""
    review_candidates = _Place("curation", "po_review_candidates.jsonl")
    """Rows and evaluation cases that a person should look at, one per line."""
    review_file = _Place("curation", "po_review_candidates.yaml")
    """The same for a person to correct answers in."""
    approved_answers = _Place("curation", "po_found_right.jsonl")
    """Answers that a person found right, which are not shown again."""

    @property
    def eval_cases(self) -> UPath:
        """The evaluation cases (an input): the one of its possible files that exists, or the first."""
        places = [self.root / "evaluation" / f"po_eval_cases{suffix}" for suffix in (".jsonl", ".yaml", ".yml")]
        return next((place for place in places if place.exists()), places[0])

    @property
    def written_folders(self) -> tuple[UPath, ...]:
        """The folders in which runs write."""
        files = (self.raw, self.eval_cases, self.adapter, self.synthetic_conflicts)
        return (self.incoming, *(file.parent for file in files))

    def command(self, words: str) -> str:
        """`po-assets` with these words, as it works on these artifacts: others than the default's have to be named."""
        root = str(self.root) if "://" in str(self.root) else str(Path(self.root).absolute())
        if root == beside_the_code():
            return f"po-assets {words}"
        if "://" in root:
            return f"{ROOT_VARIABLE}={shlex.quote(root)} po-assets {words}"
        # A project's settings lie beside its artifacts.
        return f"po-assets {words} --data {shlex.quote(root.removesuffix('/artifacts'))}"

    def table(self, asset: str) -> UPath:
        """The JSONL file of a tabular asset.

        Raises:
            KeyError: no table of that name.
        """
        tables = {
            "raw_teacher": self.raw,
            "normalized_teacher": self.normalized,
            "supervised_dataset": self.supervised,
            "eval_cases": self.eval_cases,
            "synthetic_conflicts": self.synthetic_conflicts,
            "review_candidates": self.review_candidates,
            "baseline_report": self.baseline_answers,
            "eval_report": self.student_answers,
        }
        if asset not in tables:
            raise KeyError(f"no table is kept for asset {asset!r}; known are {', '.join(tables)}")
        return tables[asset]


def default_root() -> str:
    """`PO_ARTIFACTS_ROOT`, or the artifacts beside the code."""
    return os.environ.get(ROOT_VARIABLE) or beside_the_code()


def beside_the_code() -> str:
    """`artifacts/` of the repository; of the current folder where the package is installed."""
    repository = Path(__file__).resolve().parents[2]
    beside = repository if (repository / "pyproject.toml").is_file() else Path.cwd()
    return str(beside / "artifacts")


def artifact_root(root: str) -> UPath:
    """The root as a path that sees what other machines write.

    Raises:
        UserError: nothing installed here reaches such a place.
    """
    root = re.sub(r"^(file|local)://(?=/)", "", root)  # a folder of this machine, however it is written
    if "://" not in root:
        return UPath(root)
    try:
        # Listings are asked for anew each time: what lands meanwhile would stay unseen by a process that lives long.
        path = UPath(root, use_listings_cache=False)
        path.fs  # noqa: B018 - loads what speaks the protocol
    except (ImportError, ValueError) as error:
        raise UserError(
            f"The artifact root {root!r} ({ROOT_VARIABLE}) cannot be used: {error}. Give a folder or a URL such as "
            "s3://bucket/prefix; S3 needs an extra: make setup EXTRAS=s3."
        ) from error
    return path


def history_fault(home: Path, needed: int) -> str | None:
    """Why no more than `needed` bytes can be written to `home`, and what to do; None where they can. Makes the folder.

    Dagster's folders and databases in it are looked at too: those of a run as root are closed to everybody else.
    """
    way_out = f"or set {HOME_VARIABLE} to a folder of your own on another disk"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as probe:
            probe.write(b"x")
        free = shutil.disk_usage(home).free
    except OSError as error:
        there = next(folder for folder in (home, *home.parents) if os.path.lexists(folder))
        return (
            f"{HOME_VARIABLE} {home} cannot be written to ({error.strerror or error}), and Dagster keeps its history "
            f"there. {_owner(there)}Get the right to write there, {way_out}."
        )
    for path in (home, *home.glob("[!.]*/"), *home.glob("*/*.db"), *home.glob("history/runs")):
        if not os.access(path, os.W_OK):
            return (
                f"{path} in {HOME_VARIABLE} is closed to user {os.geteuid()}, and Dagster keeps its history there. "
                f"{_owner(path)}Get the right to write there (chown -R), {way_out}."
            )
    if free < needed:
        return (
            f"{HOME_VARIABLE} {home} has {free / 1e6:.0f} MB of free disk, and Dagster's history needs up to "
            f"{needed / 1e6:.0f} MB. Make room, {way_out}."
        )
    return None


def step_history_fault() -> str | None:
    """The same before a step, where this process keeps a history on a disk of its own."""
    home = Path(os.environ.get(HOME_VARIABLE, ""))
    return history_fault(home, OF_A_STEP) if home.is_absolute() and (home / "history").is_dir() else None


def _owner(path: Path) -> str:
    return f"'{path}' belongs to user {path.lstat().st_uid}. "
