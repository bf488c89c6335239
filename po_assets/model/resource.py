"""The resource `base_model`: the one place in the Launchpad where profile and base model are chosen.

Only settings belong here; what they mean is in `spec`.
"""

from __future__ import annotations

import dagster as dg
from pydantic import Field

from po_assets.model.spec import BaseModelSpec, default_profile, resolve_spec


class BaseModel(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Profile and base model, shared by the token budget, the training and the evaluation."""

    profile: str = Field(
        default_factory=default_profile,
        description="`embedded` (SmolLM2-135M-Instruct; no network, no GPU) or `paper` (Qwen2.5-7B-Instruct in 4 bits "
        "on a CUDA GPU). The environment variable PO_PROFILE sets the default.",
    )
    base_model: str | None = Field(
        default=None,
        description="Instead of the profile's model: a local folder with safetensors weights and a tokenizer, or a "
        "Hugging Face Hub id.",
    )
    revision: str | None = Field(default=None, description="Commit hash of the Hub model; a Hub id needs one.")
    max_length: int | None = Field(
        default=None,
        description="Longest row in tokens, prompt and answer together. Longer rows are set aside in the ledger as "
        "`over_length`, never cut. Empty: 2,048 (embedded) or 4,096 (paper).",
    )
    quantization: str | None = Field(
        default=None,
        description="`none` or `nf4` (4-bit bitsandbytes, needs a CUDA GPU). Empty: as the profile has it.",
    )

    def resolved(self) -> BaseModelSpec:
        """The settings with the profile's defaults filled in; `UserError` names every wrong one."""
        return resolve_spec(self.profile, self.base_model, self.revision, self.max_length, self.quantization)
