"""Training rows as tokens: what is trained and what is not, and the batch that a GPU gets.

The tokens themselves come from `po_assets.model.ChatFormat`, as in evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from po_assets.errors import UserError
from po_assets.model import ChatFormat

if TYPE_CHECKING:
    import torch

#: Label of a position that is not trained; the convention of PyTorch's cross-entropy.
NOT_TRAINED = -100


@dataclass(frozen=True)
class TrainingRow:
    """One row: `ids` is the prompt, the answer and the end-of-sequence token."""

    ids: tuple[int, ...]
    prompt_length: int

    @property
    def labels(self) -> list[int]:
        """The token to be predicted *at* each position of `ids` (not shifted), `NOT_TRAINED` in the prompt."""
        return [NOT_TRAINED] * self.prompt_length + list(self.ids[self.prompt_length :])

    @property
    def trained(self) -> int:
        """Number of trained tokens: the answer's and the end-of-sequence token."""
        return len(self.ids) - self.prompt_length


def tokenize_rows(pairs: Iterable[tuple[str, str]], chat: ChatFormat, max_length: int) -> list[TrainingRow]:
    """Tokenize (prompt, response) pairs; nothing is cut.

    Raises `UserError` naming the rows that are empty or longer than `max_length` tokens, which the ledger of
    `supervised_dataset` should have set aside.
    """
    rows: list[TrainingRow] = []
    problems: list[str] = []
    for number, (prompt, response) in enumerate(pairs, start=1):
        if not prompt.strip() or not response.strip():
            problems.append(f"row {number} has an empty {'prompt' if not prompt.strip() else 'response'}")
            continue
        prompt_ids, answer_ids = chat.prompt_ids(prompt), chat.answer_ids(response)
        row = TrainingRow((*prompt_ids, *answer_ids), len(prompt_ids))
        if len(row.ids) > max_length:
            problems.append(f"row {number} has {len(row.ids):,} tokens, max_length is {max_length:,}")
        rows.append(row)
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise UserError(
            f"{len(problems)} training row(s) cannot be used: {shown}. Rows are never cut: materialize "
            "supervised_dataset with the same base model and max_length, which sets such rows aside in the ledger."
        )
    if not rows:
        raise UserError(
            "There are no training rows: supervised_dataset is empty. Land teacher rows and materialize it."
        )
    return rows


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to the longest; all tensors are (rows, longest)."""

    ids: torch.Tensor
    attention: torch.Tensor
    labels: torch.Tensor
    """As `TrainingRow.labels`; padding is `NOT_TRAINED`."""


def collate(rows: Sequence[TrainingRow], pad_id: int) -> Batch:
    """Pad rows to one batch.

    What is padding follows from the rows' lengths, never from the token: pad and end-of-sequence may be the same token,
    and masking by token would then untrain the end of every answer.
    """
    import torch

    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    attention = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), NOT_TRAINED)
    for i, row in enumerate(rows):
        length = len(row.ids)
        ids[i, :length] = torch.tensor(row.ids)
        attention[i, :length] = 1
        labels[i, :length] = torch.tensor(row.labels)
    return Batch(ids, attention, labels)
