"""Which training makes a student judge: right statuses on generated cases of products that no variant was trained on.

    python -m benchmarks.judgement                          every variant, some 15 minutes each on 2 cores
    python -m benchmarks.judgement --variants words lessons --cases 60
    python -m benchmarks.judgement --generated 359 1000 3000    the learning curve: so many generated rows, each shown
                                                            once in the teacher's words; over an hour on 2 cores

Eight of the training domains are kept aside: neither rows nor lessons of theirs are trained, and cases are generated of
them alone, a third of each status. The evaluation domains and the 40 cases are not touched, so that a choice made here
is not made on them. One row a variant, with 95 % intervals. Answers are cut after the status, which follows the
evidence. Beside what the student says stands what its evidence says by rule, and how much of that is read rightly.
"""

import argparse
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from benchmarks.machine import machine
from benchmarks.training import base_folder, pair_of, sample_pairs
from po_assets.dataset.cases import EvalCase
from po_assets.evaluation.answering import AnsweringModel, merged
from po_assets.evaluation.contrast import own_verdicts, verdict_of
from po_assets.evaluation.settings import Decoding
from po_assets.evaluation.statistics import macro_f1, wilson
from po_assets.model import BaseModel, ChatTemplate, choose_precision, load_base_model, load_tokenizer
from po_assets.model.cpu import prepare_for_decoding
from po_assets.product_owner import STATUSES, parse_answer
from po_assets.product_owner.grammar import limits_of
from po_assets.sample_data.domains import Domain, load_domains
from po_assets.sample_data.records import generate_rows
from po_assets.sample_data.scenario import Requirement, Scenario, draw_case
from po_assets.text import Progress
from po_assets.training.adapter import add_adapter
from po_assets.training.evidence import EXCLUDED, FOREIGN, purpose_of, status_of
from po_assets.training.rows import Prompts, training_rows
from po_assets.training.settings import TrainingSettings
from po_assets.training.training import train

ASIDE = 8
VARIANTS: dict[str, tuple[dict[str, float], int | None]] = {
    "words": ({"comparisons": 0.0, "documents": 0.0}, 0),
    "few trades": ({"epochs": 1.15}, 28),
    "lessons": ({"epochs": 1.15}, None),
}
"""What is changed of the recipe, and of how many trades lessons are drawn: in the teacher's words; with lessons on the
trades of the rows; with lessons as they are. Fewer rows are known; more epochs make as many tokens as by default."""


def main() -> None:
    """Print a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--cases", type=int, default=210, help="generated cases, a third of each status")
    parser.add_argument("--generated", nargs="+", type=int, default=[], help="numbers of generated rows")
    arguments = parser.parse_args()
    print(machine())
    print(
        f"{'variant':<12} {'tokens':>8} {'seconds':>8} {'right':>16} {'macro-F1':>9} {'by rule':>8}  "
        "found of each status; requirements read rightly"
    )
    if arguments.generated:
        for rows in arguments.generated:
            pairs = list(islice(_known_pairs(map(pair_of, generate_rows(sys.maxsize))), rows))
            words, _ = VARIANTS["words"]
            print(f"{rows:<7,} rows {_measured(words | {'epochs': 1.0}, [], pairs, arguments.cases)}", flush=True)
        return
    pairs = list(_known_pairs(sample_pairs()))
    for name in arguments.variants:
        changes, trades = VARIANTS[name]
        domains = [*_domains()[0], *load_domains("lessons")][:trades]
        print(f"{name:<12} {_measured(changes, domains, pairs, arguments.cases)}", flush=True)


def _measured(
    changes: dict[str, float], domains: Sequence[Domain], pairs: Sequence[tuple[str, str]], count: int
) -> str:
    """One training on these rows, asked so many cases."""
    recipe = TrainingSettings(base_model=BaseModel(profile="embedded").resolved(), **changes).resolved()
    folder = base_folder()
    chat = ChatTemplate(load_tokenizer(folder))
    chosen = training_rows(pairs, chat, recipe, Prompts(), domains)
    model = add_adapter(load_base_model(folder, choose_precision()), recipe, folder)
    progress = Progress(lambda text: print(text, file=sys.stderr, flush=True))
    progress.say(chosen.described)
    log = train(model, chosen.rows, recipe, progress, comparisons=chosen.comparisons, documents=chosen.documents).log
    student = merged(model.eval()).eval()
    prepare_for_decoding(student)
    answers = [parse_answer(answer) for _, answer in pairs]
    limits = limits_of((answer.vision_yaml or "", answer.review_yaml or "") for answer in answers)
    cases = list(_cases(count))
    asked = [
        (EvalCase(name, one.tier, one.concept, one.requirements_yaml, "", "", one.status), "") for name, one in cases
    ]
    texts = {a.case_id: a for a in own_verdicts(AnsweringModel(student, chat), asked, Decoding(), limits)}
    answered = [(one, texts[case.prompt]) for (case, _), (_, one) in zip(asked, cases, strict=True)]
    said = [(one.status, verdict_of(answer)) for one, answer in answered]
    right, matrix = sum(is_ == given for is_, given in said), _matrix(said)
    low, high = wilson(right, len(said))
    found = ", ".join(f"{status} {matrix[status][status]} of {sum(matrix[status].values())}" for status in STATUSES)
    tokens, seconds = sum(record.tokens for record in log), sum(record.seconds for record in log)
    share = f"{right / len(said):.2f} ({low:.2f}-{high:.2f})"
    read = [_purposes(answer.text, one) for one, answer in answered]
    rule = _matrix(
        (one.status, status_of([n.text for n in one.needs], given))
        for (one, _), given in zip(answered, read, strict=True)
    )
    kinds = Counter(
        (_kind(line), purpose_of(line) == given)
        for (one, _), purposes in zip(answered, read, strict=True)
        for line, given in zip(one.functional, purposes, strict=True)
    )
    lines = ", ".join(f"{kind} {kinds[kind, True] / (kinds[kind, True] + kinds[kind, False]):.2f}" for kind in _KINDS)
    return f"{tokens:>8,} {seconds:>8.0f} {share:>16} {macro_f1(matrix):>9.2f} {macro_f1(rule):>8.2f}  {found}; {lines}"


_KINDS = ("need", "excluded", "another product")


def _kind(line: Requirement) -> str:
    return "another product" if line.foreign else "excluded" if line.breaks else "need"


def _purposes(text: str, scenario: Scenario) -> list[str]:
    """What a student's evidence says that each requirement is for; empty where it says nothing."""
    lines = dict(re.findall(r"^- (FR[0-9]+) .*\) (helps to .*|demands to .*|belongs to .*)$", text, re.MULTILINE))
    given = (lines.get(line.id, "") for line in scenario.functional)
    meant = {"demands": EXCLUDED, "belongs": FOREIGN}
    return [meant.get(verdict.split(" ")[0], verdict.removeprefix("helps to ")) for verdict in given]


def _matrix(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Cases by right status and given one."""
    counts = Counter(pairs)
    return {is_: {said: counts[is_, said] for said in STATUSES} for is_ in STATUSES}


def _known_pairs(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Those that are not of the domains kept aside."""
    aside = [product for domain in _domains()[1] for product in domain.products]
    return (pair for pair in pairs if not any(product in pair[0] for product in aside))


def _domains() -> tuple[list[Domain], list[Domain]]:
    """Those that are trained, and those kept aside."""
    domains = list(load_domains("training"))
    random.Random(7).shuffle(domains)
    return domains[:-ASIDE], domains[-ASIDE:]


def _cases(count: int) -> Iterator[tuple[str, Scenario]]:
    draw = random.Random(11)
    for number in range(count):
        yield f"CASE-{number:03}", draw_case(draw, _domains()[1], status=STATUSES[number % len(STATUSES)])


if __name__ == "__main__":
    main()
