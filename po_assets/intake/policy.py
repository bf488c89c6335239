"""What the intake of teacher rows tolerates; the limits of its checks.

Which of the readable rows are trained on is set by `dataset.policy`, which extends this.
"""

import dagster as dg
from pydantic import ConfigDict, Field


class IntakePolicy(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Limits for landed rows."""

    model_config = ConfigDict(extra="forbid")  # a misspelt setting must not pass for a setting

    max_rejected_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Largest share of landed rows that may be rejected; above it the graph stops.",
    )
    score_tolerance: float = Field(
        default=0.005,
        ge=0,
        le=1,
        description="Declared scores further than this from the metric's own figure are listed.",
    )
