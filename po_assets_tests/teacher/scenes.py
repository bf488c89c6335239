"""Payloads, settings and a whole artifacts root for the tests of teacher_batch."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from upath import UPath

from po_assets.dag import Verdict
from po_assets.intake.landing import is_landed_name
from po_assets.storage import Layout, read_rows
from po_assets.teacher.assets import checks, gather
from po_assets.teacher.payloads import Payload
from po_assets.teacher.run import BatchReport, read_report, run_batch
from po_assets.teacher.settings import BatchPlan, TeacherLLM
from po_assets.text import Progress
from po_assets_tests.evaluation.scenes import GOOD, REQUIREMENTS, case

# Well-formed, and scores 0.89: enough to land.
ACCEPTED = GOOD
NO_REVIEW = GOOD.split("\n\n", 1)[0]
BROKEN_YAML = GOOD.replace("status: aligned", "status: [aligned")
TOO_THIN = (
    GOOD.replace("\n- Skippers\n", "\n")
    .replace("- Less waiting at the quay\n", "")
    .replace("- Book a berth\n", "")
    .replace("- 80 percent of skippers book ahead\n", "")
    .replace("- Nothing reaches into what the concept excludes\n", "")
)
KEY = "sk-secret-0123456789"
KEY_VARIABLE = "PO_TEST_TEACHER_KEY"


def payload(number: int = 1, **changes: Any) -> Payload:
    fields = {
        "concept": f"Product{number} lists the free berths of harbour {number} in region {number * 7}.",
        "requirements_yaml": REQUIREMENTS,
        "tier": "simple",
        "concept_id": f"P-{number:03d}",
    }
    return Payload(**{**fields, **changes})


def write_payloads(path: Path, payloads: list[Payload]) -> Path:
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in payloads))
    return path


def make_layout(root: Path) -> Layout:
    """A root with an evaluation case and an empty landing folder."""
    layout = Layout(UPath(root))
    Path(str(layout.incoming)).mkdir(parents=True)
    Path(str(layout.eval_cases)).parent.mkdir(parents=True)
    one = case(1)
    names = ("case_id", "tier", "concept", "requirements_yaml", "reference_vision_yaml", "reference_review_yaml")
    record = {name: getattr(one, name) for name in names} | {
        "concept": "LibraryLoop lends books to readers in Iceland and reminds them of returns. It does not sell books.",
        "requirements_yaml": "functional_requirements:\n- id: FR001\n  description: Readers can renew a loan from home",
        "status": "aligned",
    }
    layout.eval_cases.write_text(json.dumps(record) + "\n")
    return layout


def llm(url: str, **changes: Any) -> TeacherLLM:
    """A teacher at this address that is asked without waiting between retries."""
    options: dict[str, Any] = {
        "base_url": url,
        "model": "test-model",
        "api_key_variable": "",
        "retry_wait_seconds": 0.01,
        "timeout_seconds": 10.0,
        "concurrency": 4,
        "price_per_million_input_tokens": 1.0,
        "price_per_million_output_tokens": 10.0,
    }
    return TeacherLLM(**(options | changes))


def batch_verdicts(layout: Layout) -> dict[str, Verdict]:
    """The verdict of every check of teacher_batch."""
    return checks.verdicts(gather(layout))


def assert_sound(layout: Layout) -> None:
    """The checks that must hold after any run."""
    for name in ("ledger_balances", "within_budget"):
        verdict = batch_verdicts(layout)[name]
        assert verdict.passed, (verdict.summary, verdict.rows)


class Scene:
    """A root, payloads on disk, and runs over them; everything said is kept in `said`."""

    def __init__(self, folder: Path, payloads: int = 6) -> None:
        self.layout = make_layout(folder / "artifacts")
        self.path = write_payloads(folder / "payloads.jsonl", [payload(n) for n in range(1, payloads + 1)])
        self.said: list[str] = []

    def plan(self, **changes: Any) -> BatchPlan:
        """A plan over the scene's payloads."""
        return BatchPlan(payloads=str(self.path), **changes)

    def run(self, teacher: TeacherLLM, *, sound: bool = True, **plan: Any) -> BatchReport:
        """One run of the batch, in this process; afterwards the checks must hold."""
        progress = Progress(self.said.append, every_seconds=0.0)
        report = run_batch(teacher, self.plan(**plan), self.layout, progress)
        if sound:
            assert_sound(self.layout)
        return report

    @property
    def report(self) -> BatchReport:
        """What the last run reported."""
        found = read_report(self.layout)
        assert found
        return found

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """The rows of the ledger."""
        return list(read_rows(UPath(self.report.ledger)))

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        """Outcome and reason of every request, sorted."""
        return sorted((row["outcome"], row["reason"]) for row in self.ledger)

    @property
    def landed(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each landed file, as the graph sees them."""
        return {
            path.name: [json.loads(line) for line in path.read_text().splitlines()]
            for path in sorted(self.layout.incoming.iterdir(), key=lambda path: path.name)
            if is_landed_name(path.name)
        }

    @property
    def landed_concepts(self) -> list[str]:
        """The concepts of all landed rows."""
        return [row["concept"] for rows in self.landed.values() for row in rows]
