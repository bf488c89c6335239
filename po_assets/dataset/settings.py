"""The settings of the resource `selection`: which readable rows are trained on, and the limits of the checks.

How they are applied belongs to `selection` and `checks`; what the intake tolerates is inherited from it.
"""

from typing import ClassVar, Literal

from pydantic import Field

from po_assets.intake.assets import IntakeSettings
from po_assets.product_owner.contract import MIN_SCORE

ScoreSource = Literal["declared", "metric"]


class SelectionSettings(IntakeSettings):
    """Which rows are trained on, and the limits of the checks."""

    noun: ClassVar[str] = "the selection"
    without_effect: ClassVar[frozenset[str]] = frozenset(
        (
            *("max_rejected_share", "score_tolerance", "min_conflicts_share", "max_conflicts_share"),
            *("min_retention", "max_retention", "conflicts_share"),
        )
    )
    """The limits of checks, and whether they stop the graph, change no row."""

    min_score: float = Field(default=MIN_SCORE, ge=0, le=1, description="Rows that score less are left out.")
    score_source: ScoreSource = Field(
        default="declared",
        description="Which score counts: `declared` (by the teacher; a missing one is computed) or `metric` (this "
        "project's own).",
    )
    max_samples: int | None = Field(
        default=400,
        ge=1,
        description="At most this many rows; null for no limit. The choice depends on the rows' content and the seed "
        "alone. Conflicts rows are never sampled away.",
    )
    seed: int = Field(default=42, ge=0, description="Changes which rows are chosen where there are too many.")
    drop_duplicates: bool = Field(
        default=False,
        description="Keep one answer to a prompt, the best scored. Conflicts rows are only dropped as exact copies.",
    )
    near_duplicate_threshold: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Rows whose input is this similar to an evaluation case (Jaccard similarity of three-word "
        "sequences) are held out of training; so are rows whose answer is this similar to its reference answer, and "
        "rows that hold the case within other text.",
    )
    invalid_targets: Literal["leave_out", "warn", "block"] = Field(
        default="leave_out",
        description="What becomes of rows whose answer the validator rejects: `leave_out` (each is named in the "
        "ledger), or trained on with a warning (`warn`), or none is trained on until they are corrected (`block`).",
    )
    conflicts_share: Literal["warn", "block"] = Field(
        default="block", description="Whether too few conflicts rows, or a missing one, stop the graph."
    )
    min_conflicts_share: float = Field(
        default=0.025, ge=0, le=1, description="Least share of conflicts rows among the training rows."
    )
    max_conflicts_share: float = Field(
        default=0.5, ge=0, le=1, description="A warning when more of the training rows are conflicts rows."
    )
    min_retention: float = Field(
        default=0.8, ge=0, le=1, description="A warning when a smaller share of the landed rows is fit for training."
    )
    max_retention: float = Field(
        default=1.0, ge=0, le=1, description="A warning when a larger share of the landed rows is fit for training."
    )
