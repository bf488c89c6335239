"""The settings of curation, as the resource `curation`: how many conflicts rows are wanted, how much people look at."""

import dagster as dg
from pydantic import ConfigDict, Field

LEAST_TARGET = 0.025
MOST_TARGET = 0.10


class CurationPolicy(dg.ConfigurableResource):  # type: ignore[type-arg]
    """How conflicts rows are made, and which rows and cases are laid before a person."""

    model_config = ConfigDict(extra="forbid")  # a misspelt setting must not pass for a setting

    target_conflicts_share: float = Field(
        default=0.08,
        ge=LEAST_TARGET,
        le=MOST_TARGET,
        description="Share of conflicts rows among the training rows that synthetic_conflicts fills up to, from 0.025 "
        "(the least that training accepts) to 0.10.",
    )
    seed: int = Field(default=42, ge=0, description="Changes which rows are combined, and the wording of the reviews.")
    max_candidates: int = Field(
        default=20, ge=1, description="At most this many candidates for people of each kind, the worst first."
    )
    worst_cases: int = Field(
        default=5,
        ge=0,
        description="The student's lowest answers that are candidates, besides all under the gate's worst case.",
    )
