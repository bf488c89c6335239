"""The checks of `lora_adapter`: one step, one process, one loaded model.

They share `StudentUnderTest`, which loads base model, adapter and rows once; what is computed is below them, as plain
functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

import dagster as dg

from po_assets.dag import Artifacts, AssetChecks, CannotJudge, Verdict, read_frame
from po_assets.dag.compute import CRASH_RETRY, GPU_STEP, POOL
from po_assets.dataset.settings import PromptSettings
from po_assets.model import (
    ChatTemplate,
    base_model_digest,
    decide_quantization,
    ensure_base_model,
    load_base_model,
    load_tokenizer,
)
from po_assets.model.chat import first_line
from po_assets.storage import Layout, file_digest, local_copy, read_manifest
from po_assets.text import fenced, verb
from po_assets.training.adapter import WEIGHTS
from po_assets.training.checkpoints import StepRecord
from po_assets.training.gradients import collate
from po_assets.training.memory import is_out_of_memory
from po_assets.training.rows import Prompts, TokenizedRow, teacher_rows
from po_assets.training.settings import TrainingSettings
from po_assets.training.student import adapter_problem, read_log
from po_assets.training.training import validation_sentence

if TYPE_CHECKING:
    from peft import PeftModel

# Nats per token by which the student's predictions must at least differ from the base model's. Rounding alone gives
# about 1e-5 in bfloat16; a student that learned anything of its task differs by more than 0.1.
MIN_DIVERGENCE = 1e-3
_SAMPLES = 4
_BATCH_ROWS = 8
_AGAIN = "Materialize lora_adapter again"
_WITH_THIS_BASE = f"{_AGAIN} with the base model that is configured now."


class StudentUnderTest:
    """The published adapter, its base model and the rows it was trained on, each loaded when first looked at."""

    def __init__(self, layout: Layout, recipe: TrainingSettings, prompts: Prompts = Prompts()) -> None:  # noqa: B008
        """The recipe says which base model; nothing in it is left open."""
        self.layout, self.model, self._recipe, self._prompts = layout, recipe.base_model, recipe, prompts

    @cached_property
    def folder(self) -> Any:
        """The base model's."""
        return ensure_base_model(self.model, self.layout)

    @cached_property
    def chat(self) -> ChatTemplate:
        """Of the base model's tokenizer."""
        return ChatTemplate(load_tokenizer(self.folder))

    @cached_property
    def rows(self) -> list[TokenizedRow]:
        """The rows that the adapter was trained on, tokenized as in training."""
        manifest = read_manifest(self.layout.adapter)
        try:
            sha256 = file_digest(self.layout.supervised)
            table = read_frame(self.layout.supervised)
            pairs = list(table[["prompt", "response"]].itertuples(index=False, name=None))
            rows, *_ = teacher_rows(pairs, self.chat, self._recipe, self._prompts)
        except (FileNotFoundError, KeyError, ValueError) as error:
            again = "Materialize supervised_dataset, then lora_adapter."
            raise CannotJudge(f"The training rows cannot be read: {error}", again) from error
        if manifest is None or manifest.inputs.get("supervised_dataset") != sha256:
            raise CannotJudge(
                "The supervised dataset changed since the adapter was trained; the rows trained on are gone.",
                f"{_AGAIN}.",
            )
        return rows

    @cached_property
    def loaded(self) -> PeftModel:
        """Base model with adapter."""
        from peft import PeftModel
        from safetensors import SafetensorError

        try:
            base = load_base_model(self.folder, quantization=decide_quantization(self.model)[0])
            with local_copy(self.layout.adapter) as adapter:
                loaded: PeftModel = PeftModel.from_pretrained(base, adapter).eval()
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            if is_out_of_memory(error):
                raise CannotJudge(
                    f"Memory ran out while the adapter was loaded onto {self.model.name}: {first_line(error)}.",
                    "Run the checks of lora_adapter again where nothing else needs it; the adapter stays in place.",
                ) from error
            raise CannotJudge(
                f"The adapter does not load onto {self.model.name}: {first_line(error)}.",
                _WITH_THIS_BASE,
            ) from error
        return loaded

    def saved_names(self) -> set[str]:
        """The matrices in the adapter's file."""
        from safetensors import safe_open

        with local_copy(self.layout.adapter) as adapter, safe_open(f"{adapter}/{WEIGHTS}", "pt") as file:
            return set(file.keys())


checks = AssetChecks[StudentUnderTest]("lora_adapter")


@checks.register(blocking=True)
def loads(student: StudentUnderTest) -> Verdict:
    """The adapter folder is whole and loads onto the base model with PEFT; every number in it is finite."""
    if problem := adapter_problem(student.layout.adapter):
        raise CannotJudge(f"The adapter does not load: {problem}.", f"{_AGAIN}.")
    matrices = _lora_matrices(student.loaded)
    # The shapes of another base model may be the same.
    if problem := adapter_problem(student.layout.adapter, base_model_digest(student.folder)):
        raise CannotJudge(f"The adapter does not load onto {student.model.name}: {problem}.", _WITH_THIS_BASE)
    faults = matrix_faults(matrices, student.saved_names())
    return Verdict(
        passed=not faults,
        summary=(
            f"The adapter loads onto {student.model.name}: {len(matrices):,} matrices, "
            f"{sum(m.numel() for m in matrices.values()):,} finite numbers."
            if not faults
            else f"Of the adapter's {len(matrices):,} matrices {len(faults):,} "
            f"{verb(len(faults), 'is', 'are')} missing, left over or not finite."
        ),
        next_step=f"{_AGAIN}; if numbers are not finite, with a lower learning_rate.",
        rows=faults,
        numbers={"matrices": len(matrices)},
    )


@checks.register(blocking=True)
def changes_the_model(student: StudentUnderTest) -> Verdict:
    """With the adapter the model predicts differently than without it: it was trained and is in effect."""
    differences = [prediction_difference(student.loaded, row) for row in student.rows[:_SAMPLES]]
    divergence = sum(d["divergence"] for d in differences) / len(differences)
    changed = sum(d["top_token_changed"] for d in differences) / len(differences)
    return Verdict(
        passed=divergence >= MIN_DIVERGENCE,
        summary=(
            f"With the adapter the predictions on {len(differences)} answers diverge from the base model's by "
            f"{divergence:.4f} nats per token (at least {MIN_DIVERGENCE} wanted); the most likely token differs at "
            f"{changed:.1%} of the positions."
        ),
        next_step="The adapter is untrained or not in effect: look at the loss curve and learning_rate, then "
        "materialize lora_adapter again.",
        rows=[{"row": i + 1, **d} for i, d in enumerate(differences)],
        numbers={"divergence_nats_per_token": divergence, "top_token_changed": changed},
    )


@checks.register(blocking=True)
def training_is_sane(student: StudentUnderTest) -> Verdict:
    """Every loss is finite and the loss fell; exactly the answers and their end-of-sequence tokens were trained."""
    if problem := adapter_problem(student.layout.adapter):
        raise CannotJudge(f"There is no training to judge: {problem}.", f"{_AGAIN}.")
    rows = student.rows
    log = read_log(student.layout)
    loss_fault, (first, last) = loss_problem(log)
    faults = label_faults(rows, student.chat.eos_id)
    trained, tokens = sum(row.trained for row in rows), sum(len(row.ids) for row in rows)
    made = read_manifest(student.layout.adapter)
    extra = made.extra if made else {}
    validation = {"validation_loss": extra["validation_loss"]} if "validation_loss" in extra else {}
    sentences = [
        loss_fault or f"The loss fell from {first:.3f} to {last:.3f} in {len(log):,} steps.",
        *([validation_sentence(log, extra["validation_rows"], extra["published_step"])] if validation else []),
        f"{len(faults):,} of {len(rows):,} rows are trained on the wrong tokens."
        if faults
        else f"All {len(rows):,} rows end in a trained end-of-sequence token; {trained:,} of {tokens:,} tokens are "
        "trained, none of them in a prompt.",
    ]
    parts = sample_parts(rows[0], student.chat)
    return Verdict(
        passed=not loss_fault and not faults,
        summary=" ".join(sentences),
        next_step=(
            "Lower learning_rate or raise epochs, then materialize lora_adapter again."
            if loss_fault
            else "The tokenizer's chat template or end-of-sequence token does not suit training; change the model."
        ),
        rows=faults or parts,
        numbers={"first_loss": first, "last_loss": last, "trained_tokens": trained, **validation},
        extra={"sample_row": dg.MetadataValue.md(_marked(parts))},
    )


@checks.step(pool=POOL, op_tags=GPU_STEP, retry_policy=CRASH_RETRY)  # type: ignore[untyped-decorator]
def lora_adapter_checks(artifacts: Artifacts, recipe: TrainingSettings, prompt: PromptSettings) -> StudentUnderTest:
    """Check the published adapter and the rows it was trained on."""
    return StudentUnderTest(artifacts.layout, recipe.resolved(), Prompts(prompt.own, prompt.consumers))


def loss_problem(log: Sequence[StepRecord]) -> tuple[str | None, tuple[float, float]]:
    """Why the losses are not those of a sane training, or None; and the means of the first and the last quarter."""
    losses = [record.loss for record in log]
    quarter = max(1, len(losses) // 4)
    first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    odd = [record.step for record in log if not math.isfinite(record.loss)]
    if odd:
        return f"The loss is not finite in {len(odd):,} of {len(log):,} steps, first in step {odd[0]}.", (first, last)
    if len(losses) < 2:
        return "One step only: whether the loss falls cannot be told.", (first, last)
    if last >= first:
        return f"The loss did not fall: {first:.3f} in the first quarter, {last:.3f} in the last.", (first, last)
    return None, (first, last)


def label_faults(rows: Sequence[TokenizedRow], eos_id: int) -> list[dict[str, object]]:
    """Rows that are trained on the wrong tokens, found in the very batches that training builds."""
    faults: list[dict[str, object]] = []
    for start in range(0, len(rows), _BATCH_ROWS):
        part = rows[start : start + _BATCH_ROWS]
        batch = collate(part)
        for offset, (row, begin) in enumerate(zip(part, batch.starts.tolist(), strict=False)):
            length = len(row.ids)
            weights = batch.token_weights[0, begin : begin + length].tolist()
            reasons = []
            if any(weights[: row.prompt_length]):
                reasons.append("a prompt token is trained")
            if not all(weights[row.prompt_length :]):
                reasons.append("an answer token is not trained")
            if row.trained == 0 or row.ids[-1] != eos_id:
                reasons.append("it does not end in a trained end-of-sequence token")
            elif eos_id in row.ids[row.prompt_length : -1]:
                reasons.append("an end-of-sequence token stands inside the answer")
            if reasons:
                faults.append({"row": start + offset + 1, "tokens": length, "reason": "; ".join(reasons)})
    return faults


def sample_parts(row: TokenizedRow, chat: ChatTemplate) -> list[dict[str, object]]:
    """A row decoded in runs of trained and not trained tokens."""
    parts: list[dict[str, object]] = []
    weighted = zip(row.ids, row.token_weights, strict=True)
    for trained, run in groupby(weighted, key=lambda pair: pair[1] > 0):
        ids = [token for token, _ in run]
        text = str(chat.tokenizer.decode(ids, skip_special_tokens=False))
        parts.append({"trained": "yes" if trained else "no", "tokens": len(ids), "text": text})
    return parts


def prediction_difference(model: PeftModel, row: TokenizedRow) -> dict[str, float]:
    """How far predictions of the answer with the adapter are from those without.

    `divergence` is the mean Kullback-Leibler divergence KL(base || student) in nats per token.
    """
    import torch
    from torch.nn.functional import kl_div, log_softmax

    ids = torch.tensor([row.ids], device=model.device)
    kept = torch.arange(row.prompt_length - 1, len(row.ids) - 1, device=model.device)
    with torch.no_grad():
        student = log_softmax(model(input_ids=ids, logits_to_keep=kept).logits[0].float(), dim=-1)
        with model.disable_adapter():
            base = log_softmax(model(input_ids=ids, logits_to_keep=kept).logits[0].float(), dim=-1)
    divergence = kl_div(student, base, log_target=True, reduction="sum").item() / len(kept)
    changed = (student.argmax(-1) != base.argmax(-1)).float().mean().item()
    return {"divergence": divergence, "top_token_changed": changed}


def matrix_faults(matrices: dict[str, Any], saved: set[str]) -> list[dict[str, object]]:
    """LoRA matrices that the file lacks, has too many, or that hold NaN or infinity."""
    import torch

    faults: list[dict[str, object]] = [{"matrix": name, "fault": "missing"} for name in sorted(set(matrices) - saved)]
    faults += [{"matrix": name, "fault": "left over"} for name in sorted(saved - set(matrices))]
    broken = [name for name, matrix in sorted(matrices.items()) if not torch.isfinite(matrix).all()]
    return faults + [{"matrix": name, "fault": "not finite"} for name in broken]


def _lora_matrices(model: PeftModel) -> dict[str, Any]:
    from peft import get_peft_model_state_dict

    # Left to decide about embeddings, PEFT asks the Hub for the base model's configuration.
    matrices: dict[str, Any] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return matrices


def _marked(parts: Sequence[dict[str, object]]) -> str:
    """The sample row as markdown: what is trained under its own heading."""
    return "\n\n".join(
        f"**{'Trained' if part['trained'] == 'yes' else 'Not trained'} ({part['tokens']} tokens)**\n\n"
        f"{fenced(str(part['text']))}"
        for part in parts
    )
