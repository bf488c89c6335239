"""The ledger of attempts: one row per request, with its outcome, reason, tokens and cost; and whether it balances.

It is written anew from the journal at the end of every run, whatever the run's end. What an outcome is belongs to
`outcomes`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from upath import UPath

from po_assets.storage import atomic_file
from po_assets.teacher.journal import Contents
from po_assets.teacher.outcomes import Judged, Outcome
from po_assets.teacher.settings import Prices

COLUMNS: dict[str, tuple[str, str]] = {
    "request": ("string", "Id of the request, as in the journal and in the landed row's metadata."),
    "payload": ("string", "Digest of what was asked."),
    "concept_id": ("string", "The payload's name, where it has one."),
    "in_batch": ("bool", "Whether the payload belongs to the last batch."),
    "attempt": ("int", "Number of the request among those for its payload, from 1."),
    "kind": ("string", "question, or reminder after an answer with a missing block."),
    "outcome": ("string", f"{', '.join(Outcome)}."),
    "reason": ("string", "Short, the same for all of its kind."),
    "detail": ("string", "The reason in a sentence."),
    "score": ("float", "The metric's score of a valid answer."),
    "status": ("string", "The status in the answer."),
    "prompt_tokens": ("int", "Tokens of the question."),
    "completion_tokens": ("int", "Tokens of the answer, thinking included."),
    "estimated": ("bool", "No bill came: tokens are the most that the request can have had."),
    "cost": ("float", "By the prices of the settings."),
    "seconds": ("float", "From sending to the last byte."),
    "sent_at": ("string", "When it was sent (UTC)."),
    "landed_in": ("string", "File in incoming/ that holds the row."),
}


def ledger_rows(
    histories: Iterable[Sequence[Judged]], batch_keys: set[str], prices: Prices, contents: Contents
) -> Iterator[dict[str, Any]]:
    """The rows of all attempts, those for one payload together and in order."""
    landed = {name: landing.file for landing in contents.landings.values() for name in landing.ids}
    for history in histories:
        for number, judged in enumerate(history, start=1):
            sent, done = judged.attempt.sent, judged.attempt.done
            prompt, completion = judged.attempt.tokens
            yield {
                "request": sent.id,
                "payload": sent.key,
                "concept_id": sent.payload.concept_id,
                "in_batch": sent.key in batch_keys,
                "attempt": number,
                "kind": sent.kind,
                "outcome": judged.outcome.value,
                "reason": judged.reason,
                "detail": judged.detail,
                "score": judged.score,
                "status": judged.status,
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "estimated": judged.estimated,
                "cost": prices.cost(prompt, completion),
                "seconds": done.seconds if done else None,
                "sent_at": sent.at,
                "landed_in": landed.get(sent.id),
            }


def write_ledger(path: Path | UPath, rows: Iterable[dict[str, Any]]) -> None:
    """Replace the ledger in one step."""
    with atomic_file(path) as file:
        for row in rows:
            file.write(orjson.dumps(row) + b"\n")


def read_ledger(path: Path | UPath) -> Iterator[dict[str, Any]]:
    """The rows of a ledger."""
    with UPath(path).open("rb") as file:
        for line in file:
            yield orjson.loads(line)


@dataclass
class Totals:
    """Sums over ledger rows."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Requests by outcome and reason."""
    tokens_by: Counter[tuple[str, str]] = field(default_factory=Counter)
    cost_by: dict[tuple[str, str], float] = field(default_factory=dict)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)
    tokens: int = 0
    cost: float = 0.0
    estimated_cost: float = 0.0

    def add(self, row: dict[str, Any]) -> None:
        """Count one row."""
        key = (row["outcome"], row["reason"])
        tokens = row["prompt_tokens"] + row["completion_tokens"]
        self.outcomes[key] += 1
        self.tokens_by[key] += tokens
        self.cost_by[key] = self.cost_by.get(key, 0.0) + row["cost"]
        self.tokens += tokens
        self.cost += row["cost"]
        self.estimated_cost += row["cost"] * row["estimated"]
        if key not in self.examples:
            name = row["concept_id"] or row["payload"][:12]
            self.examples[key] = f"{name}, attempt {row['attempt']}: {row['detail'] or _score(row)}"

    def of(self, outcome: Outcome) -> int:
        """Requests of one outcome."""
        return sum(count for (name, _), count in self.outcomes.items() if name == outcome)

    def table(self) -> list[dict[str, object]]:
        """One row per outcome and reason, most frequent first, with an example."""
        total = self.outcomes.total()
        return [
            {
                "outcome": key[0],
                "reason": key[1] or "–",
                "requests": count,
                "share": f"{count / total:.1%}",
                "tokens": self.tokens_by[key],
                "cost": self.cost_by[key],
                "example": self.examples[key],
            }
            for key, count in self.outcomes.most_common()
        ]


def totals_of(rows: Iterable[dict[str, Any]], *, batch_only: bool = True) -> Totals:
    """Sums over the rows of the last batch, or over all."""
    totals = Totals()
    for row in rows:
        if row["in_batch"] or not batch_only:
            totals.add(row)
    return totals


def _score(row: dict[str, Any]) -> str:
    return f"scores {row['score']:.3f}" if row["score"] is not None else ""
