"""The training recipe: every setting, its default per profile, and the validation that reports all faults at once.

How a setting acts is told where it acts (`training`, `adapter`, `schedule`).
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import dagster as dg
from pydantic import Field

from po_assets.dag.compute import default_num_workers
from po_assets.errors import UserError
from po_assets.model import BaseModel, BaseModelSpec, resolve_spec

SCHEDULERS = ("cosine", "linear", "constant")
PRECISIONS = ("auto", "bfloat16", "float32")
ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Recipe:
    """A complete, valid recipe."""

    model: BaseModelSpec
    rank: int = 32
    alpha: int = 64
    dropout: float = 0.05
    target_modules: tuple[str, ...] = (ALL_LINEAR,)
    use_rslora: bool = False
    use_dora: bool = False
    epochs: float = 1.0
    learning_rate: float = 5e-4
    scheduler: str = "cosine"
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    batch_size: int = 1
    gradient_accumulation: int = 8
    gradient_checkpointing: bool = False
    seed: int = 42
    precision: str = "auto"
    fast_path: bool = True
    workers: int = 0
    num_workers: int = 1
    checkpoint_seconds: float = 60.0

    @property
    def rows_per_step(self) -> int:
        """Rows whose gradients make one optimizer step."""
        return self.batch_size * self.gradient_accumulation

    def numerics(self) -> dict[str, Any]:
        """What the trained weights depend on, for their digest: not how many rows side by side, nor how often saved."""
        settings = asdict(self)
        settings["model"] = {**self.model.identity(), "max_length": self.model.max_length}
        for name in ("workers", "checkpoint_seconds"):
            del settings[name]
        if self.num_workers == 1:  # the sum of several workers rounds differently
            del settings["num_workers"]
        return settings


# paper: the settings of the manual process (design.md). embedded: chosen by measurement on the sample data.
_PROFILE_DEFAULTS: dict[str, dict[str, Any]] = {
    "embedded": {"epochs": 0.75, "learning_rate": 2e-3, "batch_size": 1, "gradient_accumulation": 4},
    "paper": {
        "epochs": 4.0,
        "learning_rate": 8e-5,
        "batch_size": 1,
        "gradient_accumulation": 12,
        "gradient_checkpointing": True,
    },
}

_MODEL_SETTINGS = {"profile": "str", "base_model": "str", "revision": "str", "max_length": "int", "quantization": "str"}


def make_recipe(settings: Mapping[str, Any], model: BaseModelSpec | None = None) -> Recipe:
    """A recipe from settings, of which those absent or None take the profile's default.

    `settings` may name the base model too (`profile`, `base_model`, `revision`, `max_length`, `quantization`) unless
    `model` is given. Raises `UserError` with every unknown key and every wrong value.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    names = {field.name: getattr(field.type, "__name__", "") for field in fields(Recipe) if field.name != "model"}
    model_settings = {} if model else {key: given.pop(key) for key in _MODEL_SETTINGS if key in given}
    problems = [_unknown(key, [*names, *_MODEL_SETTINGS]) for key in given if key not in names]
    if model is None:
        wrong = {key: _wrong_type(key, value, _MODEL_SETTINGS[key]) for key, value in model_settings.items()}
        problems += [problem for problem in wrong.values() if problem]
        try:
            model = resolve_spec(**{key: value for key, value in model_settings.items() if not wrong[key]})
        except UserError as error:
            problems.append(str(error))
            model = resolve_spec("embedded")
    values = {**_PROFILE_DEFAULTS[model.profile], **{key: value for key, value in given.items() if key in names}}
    if isinstance(values.get("target_modules"), list):
        values["target_modules"] = tuple(values["target_modules"])
    problems += [problem for key, value in values.items() if (problem := _wrong_type(key, value, names[key]))]
    if not problems:
        problems = _wrong_values(Recipe(model=model, **values))
    else:  # judge the values of the right type as well, so that one attempt shows all faults
        sound = {key: value for key, value in values.items() if not _wrong_type(key, value, names[key])}
        if len(sound) < len(values):
            sound.pop("num_workers", None)  # it is judged by another setting, which may be one of the wrong ones
        problems += _wrong_values(Recipe(model=model, **sound))
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise UserError(f"The training recipe has {len(problems)} wrong setting(s):\n{listed}")
    return Recipe(model=model, **values)


def _unknown(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}."
    return f"{key!r} is no setting; {hint}"


def _wrong_type(key: str, value: Any, annotation: str) -> str | None:
    match annotation:
        case "bool":
            right = isinstance(value, bool)
        case "int":
            right = isinstance(value, int) and not isinstance(value, bool)
        case "float":
            right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        case "str":
            right = isinstance(value, str)
        case _:
            right = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
            annotation = "list of texts"
    return None if right else f"{key} is {value!r}; it must be of type {annotation}."


def _wrong_values(r: Recipe) -> list[str]:
    """Every value out of its range."""
    rules = (
        ("rank", 1 <= r.rank <= 1024, "must be 1 to 1,024"),
        ("alpha", r.alpha >= 1, "must be at least 1"),
        ("dropout", 0 <= r.dropout < 1, "must be at least 0 and below 1"),
        ("target_modules", len(r.target_modules) > 0 and all(r.target_modules), "needs at least one name"),
        (
            "target_modules",
            ALL_LINEAR not in r.target_modules or len(r.target_modules) == 1,
            f"must name layers or be [{ALL_LINEAR!r}], not both",
        ),
        ("epochs", 0 < r.epochs <= 1000, "must be above 0 (a fraction is fine)"),
        ("learning_rate", 0 < r.learning_rate <= 1, "must be above 0 and at most 1"),
        ("scheduler", r.scheduler in SCHEDULERS, f"must be one of {', '.join(SCHEDULERS)}"),
        ("warmup_ratio", 0 <= r.warmup_ratio <= 1, "must be 0 to 1 (a share of all steps)"),
        ("weight_decay", 0 <= r.weight_decay < 1, "must be at least 0 and below 1"),
        ("max_grad_norm", r.max_grad_norm > 0, "must be above 0"),
        ("batch_size", r.batch_size >= 1, "must be at least 1"),
        ("gradient_accumulation", r.gradient_accumulation >= 1, "must be at least 1"),
        ("seed", 0 <= r.seed < 2**32, "must be 0 to 2^32 - 1"),
        ("precision", r.precision in PRECISIONS, f"must be one of {', '.join(PRECISIONS)}"),
        ("workers", r.workers >= 0, "must be at least 0 (0: one for each CPU core)"),
        ("num_workers", r.num_workers >= 1, "must be at least 1"),
        (
            "num_workers",
            r.num_workers < 1 or r.gradient_accumulation % r.num_workers == 0,
            f"must divide gradient_accumulation ({r.gradient_accumulation}), so that all have the same work",
        ),
        ("checkpoint_seconds", r.checkpoint_seconds >= 0, "must be at least 0"),
    )
    return [f"{name} is {getattr(r, name)!r}; it {text}." for name, holds, text in rules if not holds]


class StudentRecipe(dg.ConfigurableResource):  # type: ignore[type-arg]
    """How the student is trained. What is left empty takes the default of the profile (see `base_model`)."""

    base_model: dg.ResourceDependency[BaseModel]
    rank: int = Field(default=32, description="Rank of the LoRA matrices.")
    alpha: int = Field(default=64, description="LoRA alpha; the product is scaled by alpha / rank.")
    dropout: float = Field(default=0.05, description="Dropout on the input of the LoRA matrices.")
    target_modules: list[str] = Field(
        default=[ALL_LINEAR],
        description="Names of the linear layers that get LoRA matrices; `all-linear` means all but the output layer.",
    )
    use_rslora: bool = Field(default=False, description="Scale by alpha / sqrt(rank) (rank-stabilized LoRA).")
    use_dora: bool = Field(default=False, description="Train magnitudes apart from directions (DoRA); slower.")
    epochs: float | None = Field(
        default=None, description="Passes over the data; a fraction is fine. Empty: as the profile has it (paper: 4)."
    )
    learning_rate: float | None = Field(
        default=None, description="Highest learning rate. Empty: as the profile has it (paper: 8e-5)."
    )
    scheduler: str = Field(default="cosine", description="`cosine`, `linear` (both end at 0) or `constant`.")
    warmup_ratio: float = Field(default=0.05, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(default=0.0, description="AdamW's decoupled weight decay.")
    max_grad_norm: float = Field(default=1.0, description="Gradients are scaled down to this norm.")
    batch_size: int | None = Field(default=None, description="Rows computed at once on a GPU. Empty: 1.")
    gradient_accumulation: int | None = Field(
        default=None,
        description="Batches whose gradients make one optimizer step. Empty: as the profile has it (paper: 12).",
    )
    gradient_checkpointing: bool | None = Field(
        default=None,
        description="Compute activations twice to save memory. Empty: only in the profile `paper`. The faster "
        "computation (fast_path) has no use for it.",
    )
    seed: int = Field(default=42, description="Seed of the LoRA matrices, the order of rows and the dropout.")
    precision: str = Field(
        default="auto", description="`bfloat16`, `float32`, or `auto`: what the hardware computes fastest."
    )
    fast_path: bool = Field(
        default=True, description="Use the faster computation of the same model where it applies (CPU, Llama family)."
    )
    workers: int = Field(
        default=0,
        description="Rows computed side by side on a CPU; 0 means one for each core. The result does not depend on it.",
    )
    num_workers: int = Field(
        default_factory=default_num_workers,
        description="Processes that share the training, each on a GPU of its own where there are GPUs, started by Ray "
        "Train; they split the batches of gradient_accumulation among them. 1 needs no Ray. PO_NUM_WORKERS sets the "
        "default, and gives the step itself no GPU on Ray.",
    )
    checkpoint_seconds: float = Field(default=60.0, description="Least time between two checkpoints.")

    def resolved(self) -> Recipe:
        """The complete recipe; `UserError` lists every wrong setting."""
        settings = {f.name: getattr(self, f.name) for f in fields(Recipe) if f.name != "model"}
        b = self.base_model
        model = {name: getattr(b, name) for name in _MODEL_SETTINGS}
        return make_recipe({**settings, **model})
