"""The adapter: LoRA matrices around a base model, and the PEFT folder with its model card (`README.md`).

The card says what the adapter is, what it was made from and how it did; nothing is sent anywhere.
"""

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from upath import UPath

from po_assets.errors import UserError
from po_assets.storage import Manifest, replace_file
from po_assets.storage.workers import available_cpus
from po_assets.text import duration, markdown_table
from po_assets.training.handover import base_reference
from po_assets.training.settings import ALL_LINEAR, TrainingSettings

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
CARD = "README.md"
_GATE_START, _GATE_END = "<!-- gate -->", "<!-- /gate -->"
_NOT_EVALUATED = "Not evaluated yet: materialize `eval_report`."


def add_adapter(model: PreTrainedModel, recipe: TrainingSettings, base_folder: Path) -> PeftModel:
    """Wrap `model` with fresh LoRA matrices in float32, seeded by the recipe; all other weights are frozen.

    float32 because an optimizer step changes a weight by less than bfloat16 can show; the matrices are rounded to the
    compute type where they are used. Raises `UserError` for target modules that the model does not have, or that
    cannot be merged.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    targets: str | list[str] = ALL_LINEAR if recipe.target_modules == [ALL_LINEAR] else recipe.target_modules
    # Also 4-bit weights, not by PEFT's `prepare_model_for_kbit_training`: that casts embedding, head and norms to
    # float32, and with them the whole computation, whatever precision was asked for.
    model.requires_grad_(False)
    model.name_or_path = str(
        base_folder
    )  # where PEFT looks for the vocabulary's size; `write_adapter` names it portably
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=targets,
        use_rslora=recipe.use_rslora,
        use_dora=recipe.use_dora,
        task_type="CAUSAL_LM",
        revision=recipe.base_model.revision,
    )
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    torch.manual_seed(recipe.seed)
    try:
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as error:
        way_out = "name linear layers that do" if targets == ALL_LINEAR else f"leave them at ['{ALL_LINEAR}']"
        raise UserError(
            f"target_modules {recipe.target_modules!r} do not fit the base model and recipe "
            f"({str(error).splitlines()[0][:200]}); {way_out}, or change the recipe where that is what is said."
        ) from error
    adapted = _adapted(wrapped)
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    if tied := [name for name in adapted if uses[id(model.get_submodule(name).get_base_layer().weight)] > 1]:
        raise UserError(
            f"target_modules {sorted(tied)!r} share their weights with another layer of the base model (tied "
            "embeddings), which would change too where the adapter is merged: leave them out."
        )
    unmatched = [name for name in recipe.target_modules if name != ALL_LINEAR and not _matches(name, adapted)]
    if unmatched:
        raise UserError(
            f"target_modules {unmatched!r} match no linear layer of the base model (its own are "
            f"{sorted({name.rpartition('.')[2] for name in linears})}); correct or remove them, or leave "
            f"target_modules at ['{ALL_LINEAR}']."
        )
    return cast("PeftModel", wrapped.train())


def frozen_precision(model: PeftModel, expected: torch.dtype) -> str:
    """In words how the frozen weights are held; a log must not say bfloat16 of a computation in float32.

    Raises:
        TypeError: a weight that computes (embedding, head, norms, biases; not the 4-bit integers) has another type.
    """
    frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
    other = {f"{name} ({p.dtype})" for name, p in frozen if p.dtype.is_floating_point and p.dtype != expected}
    if other:
        raise TypeError(f"{len(other)} frozen weights are not {expected}, as the log would say: {sorted(other)[:3]}")
    packed = sum(not p.dtype.is_floating_point for _, p in frozen)
    return str(expected).removeprefix("torch.") + (f" with {packed:,} matrices in 4 bits" if packed else "")


def trainable(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """The trained parameters by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def write_adapter(model: PeftModel, folder: Path, base_name: str) -> None:
    """Write weights and configuration as `peft.PeftModel.from_pretrained` reads them; the same bytes every time.

    `base_name` is what PEFT and others load the base model by; a Hub id works on other machines too.
    """
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's card is an empty form; ours comes with the log
    path = folder / CONFIG
    settings: dict[str, Any] = json.loads(path.read_text())
    settings |= {"target_modules": _short_names(model), "base_model_name_or_path": base_name}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _adapted(model: Any) -> set[str]:
    """Full names of the linears that got LoRA matrices."""
    from peft.tuners.lora import LoraLayer

    return {name for name, module in model.base_model.model.named_modules() if isinstance(module, LoraLayer)}


def _matches(name: str, adapted: set[str]) -> bool:
    """As PEFT matches them: a whole name, or its last parts."""
    return any(full == name or full.endswith(f".{name}") for full in adapted)


def _short_names(model: PeftModel) -> list[str]:
    """Names of the adapted linears, sorted: PEFT writes them in the order of a set, which changes from run to run."""
    adapted = _adapted(model)
    short = sorted({name.rpartition(".")[2] for name in adapted})
    everywhere = {
        name
        for name, module in model.base_model.model.named_modules()
        if name.rpartition(".")[2] in short and "lora_" not in name and not name.endswith(".base_layer")
    }
    # Last parts are enough unless they would catch a linear that was left out on purpose.
    return short if everywhere == adapted else sorted(adapted)


def render_card(recipe: TrainingSettings, made: Manifest, ledger: Mapping[str, int], validation: str) -> str:
    """The card as markdown with the Hub's metadata on top.

    `made` is the adapter's manifest, `ledger` the landed rows by outcome, `validation` a sentence on the validation
    loss, empty where none was measured.
    """
    from huggingface_hub import ModelCard, ModelCardData

    embedded = recipe.base_model.kind == "embedded"
    data = ModelCardData(
        base_model=None if recipe.base_model.kind == "folder" else base_reference(recipe.base_model)["name"],
        library_name="peft",
        pipeline_tag="text-generation",
        language="en",
        license="apache-2.0" if embedded else None,
        tags=["lora", "peft", "distillation", "product-owner"],
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(recipe, made, ledger, validation)}")
    return str(card)


def write_gate_section(adapter: UPath | Path, verdict: str) -> None:
    """Put the gate's verdict (markdown) into the card of an adapter's folder, in place of an earlier one."""
    path = UPath(adapter) / CARD
    text = path.read_text(encoding="utf-8") if path.exists() else "# Product Owner student\n"
    section = f"{_GATE_START}\n{verdict}\n{_GATE_END}"
    pattern = re.compile(f"{re.escape(_GATE_START)}.*?{re.escape(_GATE_END)}", re.DOTALL)
    replaced, count = pattern.subn(lambda _: section, text)
    if not count:  # a card that somebody rewrote keeps its text
        replaced = f"{text.rstrip()}\n\n## Evaluation\n\n{section}\n"
    replace_file(path, replaced.encode())


def _body(recipe: TrainingSettings, made: Manifest, ledger: Mapping[str, int], validation: str) -> str:
    base, facts = base_reference(recipe.base_model), made.extra
    revision = f" at revision `{base['revision']}`" if base.get("revision") else ""
    settings = recipe.values() | {"target_modules": ", ".join(recipe.target_modules)}
    del settings["base_model"]
    prompt = facts["prompt"]
    asked = f"It is the prompt `{prompt['name']}` (digest `{prompt['digest'][:12]}`). {facts['prompt_mix']}"
    first, last = facts["first_loss"], facts["last_loss"]
    outcomes = [[name, f"{count:,}"] for name, count in ledger.items()]
    return f"""# Product Owner student

A LoRA adapter that makes a small language model play a Product Owner: it reads a product concept and its requirements
(YAML) and answers with two fenced YAML blocks, a VISION and a REVIEW that says whether the requirements agree with it
(`aligned`, `needs_adjustment` or `conflicts`). Distilled from a larger teacher by po_assets.

## Base model

`{base["name"]}`{revision}. {base.get("note", "")}

## Use

`prompt.jinja` is the prompt that the student was trained and evaluated with, `prompt.json` has its system text and
says what an answer looks like. Ask under another prompt, and the evaluation below does not hold. {asked}

```python
{_SNIPPET.format(base=base["name"], revision=base.get("revision"))}```

## Data

{made.rows:,} teacher rows, sha256 `{made.inputs["supervised_dataset"]}`. Outcomes of all landed rows:

{markdown_table(["outcome", "rows"], outcomes) if outcomes else "(none recorded)"}

## Training

Loss on the answer and its end-of-sequence token only; no row was cut. The loss went from {first:.3f} (first
step) to {last:.3f} (mean of the last tenth) in {facts["steps"]:,} steps, {facts["tokens"]:,} tokens and
{duration(facts["seconds"])}, computed in {facts["precision"]}, {facts["engine"]}, on {_hardware()}. {validation}
Weights: sha256 `{facts["files"][WEIGHTS]}`.

{markdown_table(["setting", "value"], ([name, str(value)] for name, value in settings.items()))}

## Evaluation

{_GATE_START}
{_NOT_EVALUATED}
{_GATE_END}
"""


_SNIPPET = """\
import json
from pathlib import Path

from jinja2 import Template
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

ADAPTER = "path/to/this/folder"
BASE, REVISION = {base!r}, {revision!r}  # or a folder with the base model
CONCEPT = "A parcel locker service for housing cooperatives."
REQUIREMENTS = "functional_requirements:\\n- id: FR001\\n  text: Residents open a locker with a code.\\n"

tokenizer = AutoTokenizer.from_pretrained(ADAPTER)
try:
    base = AutoModelForCausalLM.from_pretrained(BASE, revision=REVISION, dtype="auto")
except OSError as error:
    raise SystemExit(f"The base model {{BASE!r}} is not here: set BASE to its folder (see prompt.json). {{error}}")
student = PeftModel.from_pretrained(base, ADAPTER).eval()
template = Template(Path(ADAPTER, "prompt.jinja").read_text(encoding="utf-8"))
question = {{"concept": CONCEPT, "requirements_yaml": REQUIREMENTS.strip(), "existing_vision_yaml": ""}}
system = json.loads(Path(ADAPTER, "prompt.json").read_text(encoding="utf-8"))["system"]
turns = [{{"role": "system", "content": system}}] if system else []
turns.append({{"role": "user", "content": template.render(question)}})
asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = student.generate(**asked, generation_config=GenerationConfig.from_pretrained(ADAPTER))
print(tokenizer.decode(answer[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))
"""


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
    return f"{available_cpus()} cores of {name}"
