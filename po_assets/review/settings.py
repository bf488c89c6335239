"""The settings of the resource `curation`: how many conflicts rows are wanted, how much people look at."""

from typing import ClassVar

from pydantic import Field

from po_assets.dag import Settings


class ReviewSettings(Settings):
    """How conflicts rows are made, and which rows and cases are laid before a person."""

    noun: ClassVar[str] = "the curation"

    target_conflicts_share: float = Field(default=0.08, ge=0.025, le=0.10)
    """Share of conflicts rows among the training rows that synthetic_conflicts fills up to, from 0.025 (the least that
    training accepts) to 0.10."""
    seed: int = Field(default=42, ge=0)
    """Changes which rows are combined, and the wording of the reviews."""
    max_candidates: int = Field(default=20, ge=1)
    """At most this many candidates for people of each kind, the worst first."""
    worst_cases: int = Field(default=5, ge=0)
    """The student's lowest answers that are candidates, besides all under the gate's worst case."""
