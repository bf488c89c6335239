"""The names of all artifacts under one root, which is a path or an fsspec URL.

The names are stable: people grep these files.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from po_assets.errors import UserError

ROOT_VARIABLE = "PO_ARTIFACTS_ROOT"


@dataclass(frozen=True)
class Layout:
    """Every artifact's place under `root`."""

    root: UPath

    @property
    def incoming(self) -> UPath:
        """Folder in which teacher data lands as `*.jsonl`."""
        return self.root / "incoming"

    @property
    def raw(self) -> UPath:
        """Every landed line verbatim."""
        return self.root / "distillation" / "po_teacher_dataset.jsonl"

    @property
    def normalized(self) -> UPath:
        """The readable rows in one form."""
        return self.root / "distillation" / "po_teacher_normalized.jsonl"

    @property
    def ledger(self) -> UPath:
        """One row per landed line: its outcome and why."""
        return self.root / "distillation" / "po_teacher_ledger.jsonl"

    @property
    def rejected(self) -> UPath:
        """The rejected lines verbatim, with the reason, to be fixed and landed again."""
        return self.root / "distillation" / "po_teacher_rejected.jsonl"

    @property
    def supervised(self) -> UPath:
        """The training rows: `prompt` and `response`."""
        return self.root / "distillation" / "po_teacher_supervised.jsonl"

    @property
    def supervised_gate(self) -> UPath:
        """The verdict of the supervised dataset's checks, tied to its sha256."""
        return self.root / "distillation" / "po_teacher_supervised.gate.json"

    @property
    def eval_cases(self) -> UPath:
        """The evaluation cases (an input)."""
        return self.root / "evaluation" / "po_eval_cases.jsonl"

    @property
    def baseline_answers(self) -> UPath:
        """The base model's scored answers, one row per case."""
        return self.root / "evaluation" / "po_baseline_answers.jsonl"

    @property
    def student_answers(self) -> UPath:
        """The student's scored answers, one row per case."""
        return self.root / "evaluation" / "po_student_answers.jsonl"

    @property
    def answer_cache(self) -> UPath:
        """Folder of finished answers per model and decoding, from which an interrupted evaluation goes on."""
        return self.root / "evaluation" / "cache"

    @property
    def baseline_report(self) -> UPath:
        """Statistics of the baseline's answers."""
        return self.root / "evaluation" / "po_baseline_report.json"

    @property
    def report_json(self) -> UPath:
        """Student against baseline, with the gate."""
        return self.root / "evaluation" / "po_eval_report.json"

    @property
    def report_html(self) -> UPath:
        """The same for people."""
        return self.root / "evaluation" / "po_eval_report.html"

    @property
    def adapter(self) -> UPath:
        """The student's LoRA adapter (a PEFT folder)."""
        return self.root / "models" / "po_student_v2"

    @property
    def current(self) -> UPath:
        """The last adapter whose gate passed."""
        return self.root / "models" / "current"

    @property
    def base_models(self) -> UPath:
        """Folder of converted base models."""
        return self.root / "models" / "base"

    @property
    def checkpoints(self) -> UPath:
        """Folder of training checkpoints."""
        return self.root / "models" / "checkpoints"

    @property
    def synthetic_conflicts(self) -> UPath:
        """The conflicts rows that were made from teacher rows, as they land."""
        return self.root / "curation" / "po_synthetic_conflicts.jsonl"

    @property
    def review_candidates(self) -> UPath:
        """Rows and evaluation cases that a person should look at, one per line."""
        return self.root / "curation" / "po_review_candidates.jsonl"

    @property
    def review_file(self) -> UPath:
        """The same for a person to correct answers in."""
        return self.root / "curation" / "po_review_candidates.yaml"

    @property
    def found_right(self) -> UPath:
        """Answers that a person found right, which are not shown again."""
        return self.root / "curation" / "po_found_right.jsonl"

    @property
    def written_folders(self) -> tuple[UPath, ...]:
        """The folders in which runs write."""
        files = (self.raw, self.eval_cases, self.adapter, self.synthetic_conflicts)
        return (self.incoming, *(file.parent for file in files))

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
    """`PO_ARTIFACTS_ROOT`, or `artifacts/` beside the package."""
    return os.environ.get(ROOT_VARIABLE) or str(Path(__file__).resolve().parents[2] / "artifacts")


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
