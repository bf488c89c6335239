"""The rows that conflicts rows are made from, and how many are needed: what would be trained on, without our own rows.

Which rows are trained on is decided by `dataset.publication.decide`, here as there.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import orjson

from po_assets.dataset.cases import EvalCase
from po_assets.dataset.publication import TokenBudget, decide, landed_file_names
from po_assets.dataset.settings import SelectionSettings
from po_assets.intake.ledger import Outcome
from po_assets.product_owner import RequirementEntry, read_yaml, requirement_entries
from po_assets.product_owner.documents import REQUIREMENT_SECTIONS
from po_assets.review.phrases import content_words
from po_assets.storage import Layout, open_buffered, read_rows

MADE_BY = "synthetic_conflicts"
SOURCE = "synthetic"


@dataclass(frozen=True)
class Parent:
    """A training row of status aligned, with its documents read."""

    row: dict[str, Any]
    key: str
    """Keyed digest of its input: the order in which parents are taken."""

    @property
    def record_id(self) -> str:
        """Its record id."""
        return str(self.row["record_id"])

    @property
    def concept(self) -> str:
        """Its concept."""
        return str(self.row["concept"])

    @property
    def requirements_yaml(self) -> str:
        """Its requirements document."""
        return str(self.row["requirements_yaml"])

    @cached_property
    def vision(self) -> dict[Any, Any]:
        """Its vision."""
        return dict(read_yaml(self.row["vision_yaml"]).value)

    @cached_property
    def review(self) -> dict[Any, Any]:
        """Its review."""
        return dict(read_yaml(self.row["review_yaml"]).value)

    @cached_property
    def entries(self) -> list[RequirementEntry]:
        """Its requirements."""
        return requirement_entries(self.requirements_yaml)

    @property
    def product(self) -> str:
        """The product's name."""
        return str(self.vision.get("product_name", "")).strip()

    @property
    def shape(self) -> tuple[int, ...]:
        """How many requirements each section holds."""
        return tuple(sum(entry.section == section for entry in self.entries) for section in REQUIREMENT_SECTIONS)

    @cached_property
    def words(self) -> frozenset[str]:
        """The words of its input."""
        return content_words(f"{self.concept} {' '.join(entry.description for entry in self.entries)}")


@dataclass(frozen=True)
class Basis:
    """What would be trained on without the rows that we made, and which of it can be built on."""

    kept: int
    conflicts: int
    limit: int | None
    """`max_samples`: the most rows that are trained on."""
    parents: list[Parent]

    @property
    def share(self) -> float:
        """Share of conflicts rows."""
        return self.conflicts / self.kept if self.kept else 0.0

    def share_with(self, more: int) -> float:
        """Share of conflicts rows with so many more; beyond the limit they take the place of others."""
        rows = self._rows_with(more)
        return (self.conflicts + more) / rows if rows else 0.0

    def needed(self, target: float) -> int:
        """The fewest further conflicts rows with which the share reaches the target."""
        if not self.kept:
            return 0
        return next(more for more in count() if self.conflicts + more >= target * self._rows_with(more) - 1e-9)

    def _rows_with(self, more: int) -> int:
        together = self.kept + more
        return together if self.limit is None else max(min(together, self.limit), self.conflicts + more)


def is_ours(metadata: dict[str, Any]) -> bool:
    """Whether a row was made by this asset."""
    return metadata.get("source") == SOURCE and metadata.get("made_by") == MADE_BY


def read_basis(
    layout: Layout,
    rules: SelectionSettings,
    cases: list[EvalCase],
    budget: TokenBudget,
    seed: int,
    *,
    workers: int | None = None,
) -> Basis:
    """Select as training would, leaving out our own rows.

    Parents are the chosen rows of status aligned with a valid answer, one for each input, that are not synthetic and
    do not speak of the product of an evaluation case.

    Raises:
        UserError: a table is missing, or tables do not belong together.
    """
    files = landed_file_names(layout)
    decisions = decide(lambda: _teacher_lines(layout), files, rules, cases, budget, workers=workers)
    kept = set(decisions.where(Outcome.KEPT).tolist())
    names = [name for case in cases if (name := _product_of(case))]
    parents: dict[str, Parent] = {}
    for number, line in enumerate(_teacher_lines(layout)):
        if number not in kept:
            continue
        row = orjson.loads(line)
        if row["status"] != "aligned" or not row["valid"] or row["metadata"].get("source") == SOURCE:
            continue
        if any(name in row[part] for name in names for part in ("concept", "requirements_yaml", "vision_yaml")):
            continue
        parent = Parent(row, _key(seed, row["input_digest"]))
        other = parents.setdefault(row["input_digest"], parent)
        if parent.record_id < other.record_id:  # of several answers to one input, the same whatever landed first
            parents[row["input_digest"]] = parent
    conflicts = int(decisions.conflicts[sorted(kept)].sum()) if kept else 0
    ordered = sorted(parents.values(), key=lambda parent: parent.key)
    return Basis(len(kept), conflicts, rules.max_samples, ordered)


def parents_by_id(layout: Layout, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """The normalized rows with these record ids."""
    return {row["record_id"]: row for row in read_rows(layout.normalized) if row["record_id"] in wanted}


def _teacher_lines(layout: Layout) -> Iterator[bytes]:
    """The normalized lines that were not made here."""
    with open_buffered(layout.normalized) as file:
        for line in file:
            if MADE_BY.encode() not in line or not is_ours(orjson.loads(line)["metadata"]):
                yield line


def _product_of(case: EvalCase) -> str:
    name = read_yaml(case.reference_vision_yaml).value.get("product_name")
    return name.strip() if isinstance(name, str) else ""


def _key(seed: int, input_digest: str) -> str:
    return hashlib.blake2b(f"{seed}/{input_digest}".encode(), digest_size=16).hexdigest()
