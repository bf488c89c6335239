"""The student under consumers' prompts: a share of the cases asked through each, beside the same under the own one.

Which prompts and how many cases is set in the resource `prompt`; whether it is good enough belongs to `checks`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from upath import UPath

from po_assets.dataset.cases import EvalCase
from po_assets.errors import UserError
from po_assets.evaluation.scoring import ScoredAnswer
from po_assets.evaluation.statistics import PairedDifference, Summary, paired_difference, summarize
from po_assets.product_owner.templates import Prompt
from po_assets.storage import replace_file
from po_assets.text import amount

_WORST = 3
"""Answers of each prompt that are shown beside those under the own one."""


@dataclass(frozen=True)
class UnderPrompt:
    """The student's answers through one consumer's prompt."""

    prompt: str
    answers: list[ScoredAnswer]
    fault: str = ""
    """Why there is none."""


@dataclass(frozen=True)
class Compared:
    """The same cases under a consumer's prompt and under the own one."""

    prompt: str
    summary: Summary
    difference: PairedDifference
    """Consumer's prompt less own prompt."""
    pairs: list[tuple[ScoredAnswer, ScoredAnswer]]
    """Answer under the own prompt, answer under the consumer's; what lost most first."""

    @property
    def described(self) -> str:
        """One sentence."""
        return (
            f"Through the prompt {self.prompt} the student scores {self.summary.mean:.3f} on "
            f"{amount(self.summary.cases, 'case')} with {self.summary.valid_share:.0%} of the answers valid, "
            f"{self.difference.mean:+.3f} against the own prompt on the same cases (95 % interval "
            f"{self.difference.low:+.3f} to {self.difference.high:+.3f})."
        )


def ask_consumers(
    cases: Sequence[EvalCase],
    consumers: Sequence[Prompt],
    ask: Callable[[Sequence[EvalCase], str], list[ScoredAnswer]],
) -> list[UnderPrompt]:
    """The cases asked through each prompt; `ask` gets them and a name for the log."""
    found = []
    for prompt in consumers if cases else ():
        try:
            answers = ask([replace(case, asked_with=prompt) for case in cases], f"student, prompt {prompt.name}")
            found.append(UnderPrompt(prompt.name, answers))
        except UserError as error:  # a prompt too long for the model, say: the check tells it
            found.append(UnderPrompt(prompt.name, [], str(error)))
    return found


def write_consumers(path: UPath, found: Sequence[UnderPrompt]) -> None:
    """Keep the answers for the check."""
    replace_file(path, json.dumps([asdict(one) for one in found], indent=1).encode("utf-8", "backslashreplace"))


def read_consumers(path: UPath, student: Sequence[ScoredAnswer]) -> list[UnderPrompt]:
    """The kept answers, as far as this student gave them in this way."""
    if not path.exists() or not student:
        return []
    same = (student[0].model_digest, student[0].decoding)
    try:
        read = [
            UnderPrompt(one["prompt"], [ScoredAnswer(**a) for a in one["answers"]], one["fault"])
            for one in json.loads(path.read_bytes())
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{str(path)!r} does not hold what eval_report wrote there: materialize it again.") from error
    return [one for one in read if all((a.model_digest, a.decoding) == same for a in one.answers)]


def compare(student: Sequence[ScoredAnswer], consumers: Sequence[UnderPrompt]) -> list[Compared]:
    """Each consumer's prompt that was asked against the own one."""
    own = {answer.case_id: answer for answer in student}
    compared = []
    for one in consumers:
        pairs = [(own[answer.case_id], answer) for answer in one.answers if answer.case_id in own]
        if pairs:
            pairs.sort(key=lambda pair: pair[1].total - pair[0].total)
            difference = paired_difference([a.total for a, _ in pairs], [b.total for _, b in pairs])
            compared.append(Compared(one.prompt, summarize([b for _, b in pairs]), difference, pairs))
    return compared


def consumer_rows(student: Sequence[ScoredAnswer], consumers: Sequence[UnderPrompt]) -> list[dict[str, str]]:
    """A table for people, a row for each prompt."""
    rows = [
        {
            "prompt": one.prompt,
            "cases": str(one.summary.cases),
            "mean score": f"{one.summary.mean:.3f}",
            "valid": f"{one.summary.valid_share:.0%}",
            "against the own prompt": f"{one.difference.mean:+.3f}",
            "95 % interval": f"{one.difference.low:+.3f} to {one.difference.high:+.3f}",
        }
        for one in compare(student, consumers)
    ]
    return rows + [
        {"prompt": one.prompt}
        | dict.fromkeys(("cases", "mean score", "valid", "against the own prompt", "95 % interval"), "not asked")
        for one in consumers
        if one.fault
    ]


def worst_answers(student: Sequence[ScoredAnswer], consumers: Sequence[UnderPrompt]) -> list[dict[str, Any]]:
    """The answers that lost most under each prompt, beside those under the own one."""
    return [
        {
            "prompt": one.prompt,
            "case": other.case_id,
            "own score": round(own.total, 3),
            "score": round(other.total, 3),
            "what cost points": "; ".join(other.problems[:3]) or "nothing",
            "answer under the own prompt": own.text,
            "answer": other.text,
        }
        for one in compare(student, consumers)
        for own, other in one.pairs[:_WORST]
    ]
