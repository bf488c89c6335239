"""The selection policy: which readable rows are trained on, as settings of the resource `selection`.

How the settings are applied belongs to `selection`; what the intake tolerates is inherited from `teacher.policy`.
"""

from pydantic import Field

from po_assets.dataset.selection import ScoreSource, SelectionRules
from po_assets.intake.policy import IntakePolicy


class SelectionPolicy(IntakePolicy):
    """Which rows are trained on, and the limits of the checks."""

    min_score: float = Field(default=0.82, ge=0, le=1, description="Rows that score less are left out.")
    score_source: ScoreSource = Field(
        default=ScoreSource.declared,
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
        "sequences) are held out of training.",
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

    def rules(self) -> SelectionRules:
        """The settings that decide about rows."""
        return SelectionRules(
            min_score=self.min_score,
            score_source=self.score_source,
            max_samples=self.max_samples,
            seed=self.seed,
            drop_duplicates=self.drop_duplicates,
            near_duplicate_threshold=self.near_duplicate_threshold,
        )
