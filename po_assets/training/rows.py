"""The rows as tokens: what is trained, under which prompt, what is held out, and the lessons beside them.

The tokens come from `po_assets.model.ChatTemplate`, as in evaluation. How gradients are computed on them belongs to
`gradients`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from po_assets.errors import UserError
from po_assets.model import ChatTemplate
from po_assets.product_owner.templates import BUILT_IN, Prompt
from po_assets.sample_data.domains import Domain
from po_assets.storage import digest_of
from po_assets.text import amount
from po_assets.training.evidence import (
    Evidence,
    WeightedText,
    lesson_domains,
    make_lessons,
    teachers_words,
    with_evidence,
)
from po_assets.training.settings import TrainingSettings

Example = tuple[str, str, str]
"""The user's turn, the answer, the system text (empty for none)."""


@dataclass(frozen=True)
class TokenizedRow:
    """One row: `ids` is the prompt, the answer and the end-of-sequence token (none where a text breaks off)."""

    ids: tuple[int, ...]
    prompt_length: int
    answer_weights: tuple[float, ...] = ()
    """How much each token after the prompt counts in the loss, 0 where it is not trained; empty: 1 each."""

    @property
    def token_weights(self) -> list[float]:
        """For each of `ids` as the token to be predicted (not shifted); 0 in the prompt."""
        answer = len(self.ids) - self.prompt_length
        return [*[0.0] * self.prompt_length, *(self.answer_weights or [1.0] * answer)]

    @property
    def trained(self) -> int:
        """Number of trained tokens."""
        return sum(weight > 0 for weight in self.token_weights)

    @property
    def weight(self) -> float:
        """Of all its tokens together: what a mean over rows divides by."""
        return sum(self.token_weights)


def tokenize_rows(pairs: Iterable[tuple[str, ...]], chat: ChatTemplate, max_length: int) -> list[TokenizedRow]:
    """Tokenize (prompt, response) or (prompt, response, system text); nothing is cut.

    Raises `UserError` naming the rows that are empty or longer than `max_length` tokens, which the ledger of
    `supervised_dataset` should have set aside.
    """
    rows: list[TokenizedRow] = []
    problems: list[str] = []
    for number, (prompt, response, *system) in enumerate(pairs, start=1):
        if not prompt.strip() or not response.strip():
            problems.append(f"row {number} has an empty {'prompt' if not prompt.strip() else 'response'}")
            continue
        prompt_ids, answer_ids = chat.prompt_ids(prompt, *system), chat.answer_ids(response)
        row = TokenizedRow((*prompt_ids, *answer_ids), len(prompt_ids))
        if len(row.ids) > max_length:
            problems.append(f"row {number} has {len(row.ids):,} tokens, max_length is {max_length:,}")
        rows.append(row)
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise UserError(
            f"{amount(len(problems), 'training row')} cannot be used: {shown}. Rows are never cut: materialize "
            "supervised_dataset with the same base model and max_length, which sets such rows aside in the ledger."
        )
    if not rows:
        raise UserError(
            "There are no training rows: supervised_dataset is empty. Land teacher rows and materialize it."
        )
    return rows


def tokenize_text(text: WeightedText, chat: ChatTemplate, system: str = "", *, ended: bool = False) -> TokenizedRow:
    """A text whose pieces count differently, each tokenized by itself; `ended` like its last piece, or broken off."""
    prompt_ids = chat.prompt_ids(text.prompt, system) if text.prompt else []
    pieces = [(chat.piece_ids(piece), weight) for piece, weight in text.parts]
    if ended:
        pieces.append(([chat.eos_id], text.parts[-1][1]))
    if not prompt_ids:  # the first piece is what is asked
        prompt_ids = pieces.pop(0)[0]
    return TokenizedRow(
        (*prompt_ids, *(token for ids, _ in pieces for token in ids)),
        len(prompt_ids),
        tuple(weight for ids, weight in pieces for _ in ids),
    )


def split_rows(
    rows: Sequence[TokenizedRow], recipe: TrainingSettings
) -> tuple[Sequence[TokenizedRow], list[TokenizedRow]]:
    """The rows to train on, and those to measure the validation loss on: whole prompts, drawn by the seed.

    Each prompt's place in the draw depends on itself and the seed alone, so that new rows hardly move the others.
    Raises `UserError` where nothing would be left to train on.
    """
    if not recipe.validation_share:
        return rows, []
    prompts = Counter(row.ids[: row.prompt_length] for row in rows)
    held: set[tuple[int, ...]] = set()
    room = max(1.0, recipe.validation_share * len(rows))
    for prompt in sorted(prompts, key=lambda ids: digest_of([recipe.seed, ids])):
        if prompts[prompt] <= room:
            held.add(prompt)
            room -= prompts[prompt]
    if not held or len(held) == len(prompts):
        raise UserError(
            f"validation_share is {recipe.validation_share:g}, and {amount(len(rows), 'row')} of "
            f"{amount(len(prompts), 'prompt')} cannot be split so that no prompt is on both sides: add rows of other "
            "prompts, set it to 0, or to more where prompts have many rows. The previous adapter is still in place."
        )
    trained = [row for row in rows if row.ids[: row.prompt_length] not in held]
    return trained, [row for row in rows if row.ids[: row.prompt_length] in held]


@dataclass(frozen=True)
class Prompts:
    """What the rows were written with, and consumers' prompts that they may be shown under."""

    own: Prompt = BUILT_IN
    consumers: tuple[Prompt, ...] = ()


@dataclass
class MixedRows:
    """The rows as they are trained, and how many under which prompt."""

    examples: list[Example]
    shown: dict[str, int] = field(default_factory=dict)
    """By name of the consumer's prompt."""
    kept: int = 0
    """Rows that were to be shown under a consumer's prompt, and do not fit into the model's length under it."""

    @property
    def described(self) -> str:
        """One sentence; empty where nothing is mixed."""
        if not self.shown:
            return ""
        others = ", ".join(f"{count:,} under {name}" for name, count in self.shown.items())
        kept = f" ({self.kept:,} more would not fit under one and stayed)" if self.kept else ""
        own = len(self.examples) - sum(self.shown.values())
        return f"Of {amount(len(self.examples), 'row')} {own:,} are trained under the own prompt, {others}{kept}."


def mix_fault(share: float, consumers: Sequence[Prompt]) -> str | None:
    """Why this share cannot be had, in a sentence with the way out."""
    if share and not consumers:
        return (
            f"prompt_mix is {share:g}, and no other prompt is named: name some in consumer_prompts (resource prompt)."
        )
    if share * len(consumers) > 1:
        return (
            f"prompt_mix is {share:g} for each of {len(consumers)} prompts, which is more than all rows: lower it to "
            f"{1 / len(consumers):.2g} or less, or name fewer in consumer_prompts (resource prompt)."
        )
    return None


def mixed(
    pairs: Sequence[tuple[str, str]],
    prompts: Prompts,
    share: float,
    *,
    seed: int,
    fits: Callable[[Example], bool],
) -> MixedRows:
    """The (prompt, response) pairs, about `share` under each consumer's prompt, so that the student holds there too.

    All answers to one question are shown under one prompt. A row that does not fit under its new prompt, or in whose
    prompt the question cannot be found, stays under the own one.

    Raises:
        UserError: as `mix_fault` says.
    """
    if fault := mix_fault(share, prompts.consumers):
        raise UserError(fault)
    result = MixedRows([(*pair, prompts.own.system) for pair in pairs])
    if not share:
        return result
    rows_of: dict[str, list[int]] = {}
    for row, (prompt, _) in enumerate(pairs):
        rows_of.setdefault(prompt, []).append(row)
    questions = list(rows_of)
    random.Random(seed).shuffle(questions)  # noqa: S311
    drawn = iter(questions)
    for consumer in prompts.consumers:
        taken = shown = 0
        while taken < round(share * len(pairs)) and (question := next(drawn, None)) is not None:
            parts = prompts.own.parts(question)
            asked = ""
            if parts:
                texts = (parts.concept or "", parts.requirements_yaml or "", parts.existing_vision_yaml or "")
                asked = consumer.user(*texts)
            for row in rows_of[question]:
                taken += 1
                example = (asked, pairs[row][1], consumer.system)
                if asked and fits(example):
                    result.examples[row] = example
                    shown += 1
        result.shown[consumer.name] = shown
        result.kept += taken - shown
    return result


@dataclass(frozen=True)
class TrainingRows:
    """All that is trained on."""

    rows: list[TokenizedRow]
    comparisons: list[TokenizedRow]
    documents: list[TokenizedRow]
    described: str
    """How the rows are trained, with which lessons, and how many are shown under which prompt; may be empty."""


def teacher_rows(
    pairs: Sequence[tuple[str, str]], chat: ChatTemplate, recipe: TrainingSettings, prompts: Prompts
) -> tuple[list[TokenizedRow], Evidence, str]:
    """The rows as they are trained, what they were read as, and how many are shown under which prompt."""
    longest, system = recipe.base_model.max_length, prompts.own.system
    if recipe.comparisons or recipe.documents:
        evidence = with_evidence(pairs, prompts.own, lambda row: chat.row_length(*row, system) <= longest)
    else:
        evidence = Evidence(teachers_words(pairs), stated=False, described="")
    chosen = mixed(
        [(row.prompt, row.text) for row in evidence.rows],
        prompts,
        recipe.prompt_mix,
        seed=recipe.seed,
        fits=lambda row: chat.row_length(*row) <= longest,
    )
    if not evidence.stated:
        return tokenize_rows(chosen.examples, chat, longest), evidence, chosen.described
    rows = [  # they fit, and their pieces count differently
        tokenize_text(WeightedText(asked, text.parts), chat, asked_with, ended=True)
        for (asked, _, asked_with), text in zip(chosen.examples, evidence.rows, strict=True)
    ]
    return rows, evidence, chosen.described


def training_rows(
    pairs: Sequence[tuple[str, str]],
    chat: ChatTemplate,
    recipe: TrainingSettings,
    prompts: Prompts,
    domains: Sequence[Domain] | None = None,
) -> TrainingRows:
    """The rows as they are trained, and the lessons beside them; `domains` are the trades of these (all if None)."""
    rows, evidence, mix = teacher_rows(pairs, chat, recipe, prompts)
    if not evidence.stated:
        return TrainingRows(rows, [], [], " ".join(filter(None, [evidence.described, mix])))
    shown = recipe.epochs * len(split_rows(rows, recipe)[0])
    lessons = make_lessons(
        lesson_domains() if domains is None else domains,
        prompts.own,
        comparisons=round(shown * recipe.comparisons),
        documents=round(shown * recipe.documents),
        seed=recipe.seed,
    )
    longest, system = recipe.base_model.max_length, prompts.own.system
    comparisons, documents = (
        [row for text in texts if len((row := tokenize_text(text, chat, system)).ids) <= longest] for texts in lessons
    )
    made = f"{amount(len(comparisons), 'comparison')} and {amount(len(documents), 'document')}"
    drawn = f"Beside them stand lessons in judging, about authored trades: {made}."
    return TrainingRows(rows, comparisons, documents, " ".join(filter(None, [evidence.described, drawn, mix])))
