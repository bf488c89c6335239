"""The settings of the resource `export`: the forms of the student that are written, and how they are tried."""

from typing import ClassVar

from pydantic import Field, field_validator

from po_assets.dag import Settings
from po_assets.serving.export import DEFAULT_FORMS, FORMS


class ExportSettings(Settings):
    """Which forms of the student the asset exported_student writes, and how they are compared with the adapter."""

    noun: ClassVar[str] = "the export"

    forms: list[str] = Field(
        default=list(DEFAULT_FORMS),
        min_length=1,
        description="`safetensors` (merged, for vLLM), and the GGUF files `f16`, `q8_0` and `q4_0` (llama.cpp).",
    )
    cases: int = Field(
        default=10,
        ge=5,
        description="Evaluation cases that the check export_parity asks of each form; more resolve smaller damage.",
    )

    @field_validator("forms")
    @classmethod
    def _are_known(cls, forms: list[str]) -> list[str]:
        if unknown := [form for form in forms if form not in FORMS]:
            raise ValueError(f"forms names {', '.join(map(repr, unknown))}; known are {', '.join(FORMS)}.")
        return forms
