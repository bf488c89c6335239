"""The training recipe: every setting, and its default per profile. How a setting acts is told where it acts."""

from typing import Any, ClassVar, Literal, Self

import dagster as dg
from pydantic import Field, field_validator, model_validator

from po_assets.dag.compute import default_num_workers
from po_assets.dag.settings import Settings
from po_assets.errors import UserError
from po_assets.model import BaseModel
from po_assets.model.settings import PROFILE_VARIABLE, open_field

ALL_LINEAR = "all-linear"

# paper: the settings of the manual process (design.md). embedded: chosen by measurement on the sample data.
_PROFILES: dict[str, dict[str, Any]] = {
    "embedded": {
        "epochs": 0.9,
        "learning_rate": 2e-3,
        "gradient_accumulation": 4,
        "comparisons": 2.6,
        "documents": 0.7,
    },
    "paper": {
        "epochs": 4.0,
        "learning_rate": 8e-5,
        "gradient_accumulation": 12,
        "comparisons": 0.0,
        "documents": 0.0,
    },
}


def _as_the_profile(text: str, name: str, **bounds: Any) -> Any:
    """An open field whose description says with what the profiles fill it."""
    values = ", ".join(f"{defaults[name]:g} ({profile})" for profile, defaults in _PROFILES.items())
    return open_field(description=f"{text} By profile: {values}.", **bounds)


def shown_defaults(profile: str) -> dict[str, Any]:
    """With what the Launchpad of a code location with this profile fills open fields; nothing for a wrong one."""
    return _PROFILES.get(profile, {})


class TrainingSettings(Settings):
    """How the student is trained. What is left empty takes the default of the profile (see `base_model`)."""

    noun: ClassVar[str] = "the training recipe"
    without_effect: ClassVar[frozenset[str]] = frozenset({"workers", "checkpoint_seconds", "gradient_checkpointing"})

    base_model: dg.ResourceDependency[BaseModel]
    rank: int = Field(default=32, ge=1, le=1024)
    """Rank of the LoRA matrices."""
    alpha: int = Field(default=64, ge=1)
    """LoRA alpha; the product is scaled by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout on the input of the LoRA matrices."""
    target_modules: list[str] = Field(default=[ALL_LINEAR])
    """Names of the linear layers that get LoRA matrices; `all-linear` means all but the output layer."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) (rank-stabilized LoRA)."""
    use_dora: bool = False
    """Train magnitudes apart from directions (DoRA); slower."""
    epochs: float = _as_the_profile("Passes over the data; a fraction is fine.", "epochs", gt=0, le=1000)
    learning_rate: float = _as_the_profile("Highest learning rate.", "learning_rate", gt=0, le=1)
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """`cosine`, `linear` (both end at 0) or `constant`."""
    warmup_ratio: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Gradients are scaled down to this norm."""
    batch_size: int = Field(default=1, ge=1)
    """Rows of a batch. How many are computed at once is pack_tokens' matter."""
    gradient_accumulation: int = _as_the_profile(
        "Batches whose gradients make one optimizer step.", "gradient_accumulation", ge=1
    )
    pack_tokens: int | None = Field(default=None, ge=1)
    """Rows go through a GPU one behind the other, without padding, up to so many tokens a pass. Empty: 8,192, or fewer
    where memory asks for it; on a CPU each row alone. It changes which places dropout falls on."""
    gradient_checkpointing: bool | None = None
    """Compute activations twice to save memory. Empty: only where those of the longest row do not fit into the GPU. The
    faster computation (fast_path) has no use for it."""
    comparisons: float = _as_the_profile(
        "Lessons in judging for each row shown: short comparisons of requirements with needs, about products that no "
        "row is about. docs/judgement.md says what they bring.",
        "comparisons",
        ge=0,
        le=100,
    )
    documents: float = _as_the_profile(
        "Share of the rows shown that are such lessons in whole documents instead. With 0 of both, or where the rows "
        "do not say what their requirements are for, rows are trained in the teacher's words.",
        "documents",
        ge=0,
        le=0.95,
    )
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seed of the LoRA matrices, the order of rows and the dropout."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """`bfloat16`, `float32`, or `auto`: what the hardware computes fastest."""
    fast_path: bool = True
    """Use the faster computation of the same model where it applies (CPU, Llama family)."""
    workers: int = Field(default=0, ge=0)
    """Rows computed side by side on a CPU; 0 means one for each core. The result does not depend on it."""
    num_workers: int = Field(default_factory=default_num_workers, ge=1)
    """Processes that share the training, each on a GPU of its own where there are GPUs, started by Ray Train; they
    split the batches of gradient_accumulation among them. 1 needs no Ray. PO_NUM_WORKERS sets the default, and gives
    the step itself no GPU on Ray."""
    prompt_mix: float = Field(default=0.0, ge=0, le=1)
    """Share of the rows that is shown under each of consumer_prompts (resource prompt) instead of the own prompt, so
    that the student holds under all of them. 0: none."""
    deterministic: bool = False
    """On a GPU: only algorithms that give the same matrices each time, on the same card with the same versions; slower.
    On a CPU they do anyway."""
    checkpoint_seconds: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    """Least time between two checkpoints, which are written beside the training; 0: one after each step, for which the
    next step waits."""
    validation_share: float = Field(default=0.0, ge=0, le=0.5)
    """Share of the rows that is not trained but measured: the validation loss, on whole prompts that no trained row
    has, ten times in a training. 0: none."""
    keep_best: bool = False
    """Publish the matrices of the lowest validation loss instead of the last ones; needs a validation_share."""

    @field_validator("target_modules")
    @classmethod
    def _names_layers(cls, names: list[str]) -> list[str]:
        if not names or not all(names):
            raise ValueError(f"target_modules is {names!r}; it needs at least one name.")
        if ALL_LINEAR in names and len(names) > 1:
            raise ValueError(f"target_modules is {names!r}; it must name layers or be [{ALL_LINEAR!r}], not both.")
        return names

    @model_validator(mode="after")
    def _work_is_shared_evenly(self) -> Self:
        if self.gradient_accumulation and self.gradient_accumulation % self.num_workers:
            raise ValueError(
                f"num_workers is {self.num_workers}; it must divide gradient_accumulation "
                f"({self.gradient_accumulation}), so that all have the same work."
            )
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        if self.keep_best and not self.validation_share:
            raise ValueError("keep_best is true; it needs a validation_share above 0, by which the best is known.")
        return self

    def resolved(self) -> "TrainingSettings":
        """The same recipe with nothing left open, for a base model of which nothing is left open either.

        Raises:
            UserError: a default of the environment is wrong, the filled settings do not go together, or the run chose
                another profile and kept values that the Launchpad showed for the code location's own.
        """
        model = self.base_model.resolved()
        self._is_of(model.profile)
        given = {name: value for name, value in self.values().items() if value is not None} | {"base_model": model}
        return TrainingSettings(**{**_PROFILES[model.profile], **given})

    def _is_of(self, profile: str) -> None:
        """What was shown is what runs; so values of another profile are neither used nor replaced unsaid."""
        own, shown = _PROFILES[profile], type(self).model_fields
        if profile == type(self.base_model).model_fields["profile"].get_default(call_default_factory=True):
            return  # the profile that was shown: its values are there because somebody wants them
        others = [values for name, values in _PROFILES.items() if name != profile]
        kept = {
            name: value
            for name, wanted in own.items()
            if (value := shown[name].default) == getattr(self, name) != wanted and value in [v[name] for v in others]
        }
        if kept:
            raise UserError(
                f"The profile is {profile!r}, but {', '.join(f'{name} {value:g}' for name, value in kept.items())} in "
                f"the recipe are what another profile sets. Set {', '.join(f'{name}: {own[name]:g}' for name in kept)} "
                f"there, or values of your own, or start with {PROFILE_VARIABLE}={profile}, which shows them."
            )

    @property
    def rows_per_step(self) -> int:
        """Rows whose gradients make one optimizer step."""
        return self.batch_size * self.gradient_accumulation

    def effective(self) -> dict[str, Any]:
        """What the trained weights depend on, for their digest: not how many rows side by side, nor how often saved."""
        settings = super().effective()
        if self.num_workers == 1:  # the sum of several workers rounds differently
            del settings["num_workers"]
        # Adapters made before there were such settings stay valid.
        for name in ("pack_tokens", "deterministic", "prompt_mix"):
            if not settings[name]:
                del settings[name]
        if not self.validation_share:
            del settings["validation_share"], settings["keep_best"]
        return settings | {"model": {**self.base_model.identity(), "max_length": self.base_model.max_length}}
