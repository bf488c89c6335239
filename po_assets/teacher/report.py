"""What a run of `teacher_batch` amounted to: the record that its checks and its metadata are made from."""

from dataclasses import asdict, dataclass, field
from typing import Any

import orjson
from upath import UPath

from po_assets.storage import Layout, atomic_file


@dataclass(frozen=True)
class BatchReport:
    """Counts of a batch, earlier runs of it included unless said otherwise. Money is in the prices' currency."""

    model: str
    provider: str
    journal: str
    """Path of the journal."""
    ledger: str
    """Path of the ledger."""
    ended: str
    """finished, budget or outage."""
    reason: str
    payloads: int
    accepted: int
    given_up: int
    failed: int
    open: int
    left_out: list[dict[str, Any]]
    """Payloads not asked about: repetitions and evaluation cases."""
    requests: int
    answers: int
    tokens: int
    cost: float
    estimated_cost: float
    """The part of the cost that no bill says, counted as the most it can be."""
    rows_before: int = 0
    """Rows accepted by earlier runs."""
    requests_this_run: int = 0
    seconds: float = 0.0
    """Of this run."""
    landed_file: str = ""
    landed_rows: int = 0
    """Rows landed by this run."""
    unfinished_landings: list[str] = field(default_factory=list)
    """Files that an earlier run announced and this one published."""
    journal_faults: list[str] = field(default_factory=list)
    max_rows: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    min_acceptance: float = 0.0

    @property
    def acceptance(self) -> float:
        """Share of the answers that were accepted; 0 without answers."""
        return self.accepted / self.answers if self.answers else 0.0

    @property
    def rows_per_minute(self) -> float:
        """Rows that this run got accepted, per minute."""
        return (self.accepted - self.rows_before) / self.seconds * 60 if self.seconds else 0.0


def report_path(layout: Layout) -> UPath:
    """Where the last run's report stands."""
    return layout.root / "teacher_llm" / "po_teacher_batch_report.json"


def write_report(path: UPath, report: BatchReport) -> None:
    """Replace the report in one step."""
    with atomic_file(path) as file:
        file.write(orjson.dumps(asdict(report), option=orjson.OPT_INDENT_2))


def read_report(path: UPath) -> BatchReport | None:
    """The last run's report, or None where there is none or it cannot be read."""
    try:
        return BatchReport(**orjson.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
