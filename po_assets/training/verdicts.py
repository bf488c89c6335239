"""What the checks of the adapter find out; free of Dagster's machinery.

`StudentUnderTest` loads base model, adapter and rows once and answers for each check.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

import dagster as dg

from po_assets.dag import Verdict, read_frame
from po_assets.errors import UserError
from po_assets.model import ChatFormat, base_model_digest, ensure_base_model, load_base_model, load_tokenizer
from po_assets.storage import Layout, file_digest, local_copy, read_manifest
from po_assets.training.progress import StepRecord
from po_assets.training.recipe import Recipe
from po_assets.training.rows import NOT_TRAINED, TrainingRow, collate, tokenize_rows
from po_assets.training.student import adapter_problem, read_log

if TYPE_CHECKING:
    from peft import PeftModel

#: Nats per token by which the student's predictions must at least differ from the base model's. Rounding alone gives
#: about 1e-5 in bfloat16; a student that learned anything of its task differs by more than 0.1.
MIN_DIVERGENCE = 1e-3
_SAMPLES = 4
_AGAIN = "Materialize lora_adapter again"


class StudentUnderTest:
    """The published adapter as the checks see it."""

    def __init__(self, layout: Layout, recipe: Recipe) -> None:
        self._layout, self._recipe = layout, recipe

    def loads(self) -> Verdict:
        """The folder is whole, PEFT loads it onto the base model, no matrix is missing or left over, all is finite."""
        if problem := adapter_problem(self._layout.adapter):
            return Verdict(passed=False, summary=f"The adapter does not load: {problem}.", next_step=f"{_AGAIN}.")
        loaded = self._loaded
        if not isinstance(loaded, str):
            loaded = self._other_base or loaded
        if isinstance(loaded, str):
            return Verdict(
                passed=False,
                summary=f"The adapter does not load onto {self._recipe.model.name}: {loaded}.",
                next_step=f"{_AGAIN} with the base model that is configured now.",
            )
        faults = matrix_faults(loaded, self._saved_names())
        matrices = _lora_matrices(loaded)
        return Verdict(
            passed=not faults,
            summary=(
                f"The adapter loads onto {self._recipe.model.name}: {len(matrices):,} matrices, "
                f"{sum(m.numel() for m in matrices.values()):,} finite numbers."
                if not faults
                else f"Of the adapter's {len(matrices):,} matrices {len(faults):,} "
                f"{'is' if len(faults) == 1 else 'are'} missing, left over or not finite."
            ),
            next_step=f"{_AGAIN}; if numbers are not finite, with a lower learning_rate.",
            rows=faults,
            numbers={"matrices": len(matrices)},
        )

    def changes_the_model(self) -> Verdict:
        """Predictions with the adapter differ from those without, measured where answers are predicted."""
        loaded = self._loaded
        if isinstance(loaded, str):
            return Verdict(
                passed=False,
                summary=f"It cannot be told whether the adapter changes the model, since it does not load: {loaded}.",
                next_step=f"{_AGAIN}.",
            )
        rows = self._rows
        if isinstance(rows, Verdict):
            return rows
        differences = [prediction_difference(loaded, row) for row in rows[:_SAMPLES]]
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

    def training_is_sane(self) -> Verdict:
        """Losses are finite and fell; exactly the answers and their end-of-sequence tokens were trained."""
        if problem := adapter_problem(self._layout.adapter):
            return Verdict(passed=False, summary=f"There is no training to judge: {problem}.", next_step=f"{_AGAIN}.")
        rows = self._rows
        if isinstance(rows, Verdict):
            return rows
        log = read_log(self._layout)
        loss_fault, (first, last) = loss_problem(log)
        faults = label_faults(rows, self._chat.eos_id)
        trained = sum(row.trained for row in rows)
        sentences = [
            loss_fault or f"The loss fell from {first:.3f} to {last:.3f} in {len(log):,} steps.",
            (
                f"{len(faults):,} of {len(rows):,} rows are trained on the wrong tokens."
                if faults
                else f"All {len(rows):,} rows end in a trained end-of-sequence token; {trained:,} of "
                f"{sum(len(row.ids) for row in rows):,} tokens are trained, none of them in a prompt or in padding."
            ),
        ]
        parts = sample_parts(rows[0], self._chat)
        return Verdict(
            passed=not loss_fault and not faults,
            summary=" ".join(sentences),
            next_step=(
                "Lower learning_rate or raise epochs, then materialize lora_adapter again."
                if loss_fault
                else "The tokenizer's chat template or end-of-sequence token does not suit training; use another base "
                "model."
            ),
            rows=faults or parts,
            numbers={"first_loss": first, "last_loss": last, "trained_tokens": trained},
            extra={"sample_row": dg.MetadataValue.md(_marked(parts))},
        )

    @cached_property
    def _chat(self) -> ChatFormat:
        return ChatFormat(load_tokenizer(ensure_base_model(self._recipe.model, self._layout)))

    @cached_property
    def _rows(self) -> list[TrainingRow] | Verdict:
        """The rows that the adapter was trained on, tokenized as in training, or why there are none."""
        manifest = read_manifest(self._layout.adapter)
        try:
            sha256 = file_digest(self._layout.supervised)
            table = read_frame(self._layout.supervised)
            pairs = list(table[["prompt", "response"]].itertuples(index=False, name=None))
            rows = tokenize_rows(pairs, self._chat, self._recipe.model.max_length)
        except (FileNotFoundError, KeyError, ValueError, UserError) as error:
            return Verdict(
                passed=False,
                summary=f"The training rows cannot be read: {error}",
                next_step="Materialize supervised_dataset, then lora_adapter.",
            )
        if manifest is None or manifest.inputs.get("supervised_dataset") != sha256:
            return Verdict(
                passed=False,
                summary="The supervised dataset changed since the adapter was trained; the rows trained on are gone.",
                next_step=f"{_AGAIN}.",
            )
        return rows

    @cached_property
    def _loaded(self) -> PeftModel | str:
        """Base model with adapter, or in words why it cannot be had."""
        from peft import PeftModel
        from safetensors import SafetensorError

        try:
            folder = ensure_base_model(self._recipe.model, self._layout)
            base = load_base_model(folder, quantization=self._recipe.model.quantization)
            with local_copy(self._layout.adapter) as adapter:
                loaded: PeftModel = PeftModel.from_pretrained(base, adapter).eval()
        except (UserError, OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        return loaded

    @property
    def _other_base(self) -> str | None:
        """In words that the adapter belongs to another base model, whose shapes may be the same."""
        base = base_model_digest(ensure_base_model(self._recipe.model, self._layout))
        return adapter_problem(self._layout.adapter, base)

    def _saved_names(self) -> set[str]:
        from safetensors import safe_open

        from po_assets.training.adapter import WEIGHTS

        with local_copy(self._layout.adapter) as adapter, safe_open(f"{adapter}/{WEIGHTS}", "pt") as file:
            return set(file.keys())


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


def label_faults(rows: Sequence[TrainingRow], eos_id: int, batch_size: int = 8) -> list[dict[str, object]]:
    """Rows that are trained on the wrong tokens, found in the very batches that training builds.

    Padded with the end-of-sequence token on purpose: where both are the same token, masking by token would go wrong.
    """
    faults: list[dict[str, object]] = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        batch = collate(part, pad_id=eos_id)
        for offset, row in enumerate(part):
            labels, length = batch.labels[offset].tolist(), len(row.ids)
            reasons = []
            if any(label != NOT_TRAINED for label in labels[: row.prompt_length]):
                reasons.append("a prompt token is trained")
            if any(label != NOT_TRAINED for label in labels[length:]):
                reasons.append("padding is trained")
            if labels[row.prompt_length : length] != list(row.ids[row.prompt_length :]):
                reasons.append("an answer token is not trained")
            if row.trained == 0 or row.ids[-1] != eos_id:
                reasons.append("it does not end in a trained end-of-sequence token")
            elif eos_id in row.ids[row.prompt_length : -1]:
                reasons.append("an end-of-sequence token stands inside the answer")
            if reasons:
                faults.append({"row": start + offset + 1, "tokens": length, "reason": "; ".join(reasons)})
    return faults


def sample_parts(row: TrainingRow, chat: ChatFormat) -> list[dict[str, object]]:
    """A row decoded in runs of trained and not trained tokens."""
    parts: list[dict[str, object]] = []
    labelled = zip(row.ids, row.labels, strict=True)
    for trained, run in groupby(labelled, key=lambda pair: pair[1] != NOT_TRAINED):
        ids = [token for token, _ in run]
        text = str(chat.tokenizer.decode(ids, skip_special_tokens=False))
        parts.append({"trained": "yes" if trained else "no", "tokens": len(ids), "text": text})
    return parts


def prediction_difference(model: PeftModel, row: TrainingRow) -> dict[str, float]:
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


def matrix_faults(model: PeftModel, saved: set[str]) -> list[dict[str, object]]:
    """LoRA matrices that the file lacks, has too many, or that hold NaN or infinity."""
    import torch
    from peft import get_peft_model_state_dict

    state: dict[str, Any] = get_peft_model_state_dict(model)
    faults: list[dict[str, object]] = [{"matrix": name, "fault": "missing"} for name in sorted(set(state) - saved)]
    faults += [{"matrix": name, "fault": "left over"} for name in sorted(saved - set(state))]
    faults += [
        {"matrix": name, "fault": "not finite"} for name, m in sorted(state.items()) if not torch.isfinite(m).all()
    ]
    return faults


def _lora_matrices(model: PeftModel) -> dict[str, Any]:
    from peft import get_peft_model_state_dict

    matrices: dict[str, Any] = get_peft_model_state_dict(model)
    return matrices


def _marked(parts: Sequence[dict[str, object]]) -> str:
    """The sample row as markdown: what is trained under its own heading."""
    return "\n\n".join(
        f"**{'Trained' if part['trained'] == 'yes' else 'Not trained'} ({part['tokens']} tokens)**\n\n"
        f"~~~~\n{part['text']}\n~~~~"
        for part in parts
    )
