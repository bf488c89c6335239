"""Which training makes a student judge: right statuses on generated cases of products that no variant was trained on.

    python -m benchmarks.judgement                          every variant, some 15 minutes each on 2 cores
    python -m benchmarks.judgement --variants words lessons --cases 60
    python -m benchmarks.judgement --generated 359 1000 3000    the learning curve: so many generated rows, each shown
                                                            once in the teacher's words; over an hour on 2 cores

Eight of the training domains are kept aside: their rows are not trained, and cases are generated of them alone, a third
of each status. The evaluation domains and the 40 cases are not touched, so that a choice made here is not made on them.
One row a variant, with 95 % intervals. Answers are cut after the status, which follows the evidence.
"""

import argparse
import random
import sys
from collections.abc import Iterable, Iterator
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
from po_assets.sample_data.records import draw_case, generate_rows
from po_assets.text import Progress
from po_assets.training.adapter import add_adapter
from po_assets.training.prompt_mix import Prompts
from po_assets.training.rows import training_rows
from po_assets.training.settings import TrainingSettings
from po_assets.training.training import train

ASIDE = 8
VARIANTS: dict[str, dict[str, float]] = {
    "words": {},
    "comparisons": {"comparisons": 3.0, "epochs": 0.6, "learning_rate": 1.5e-3},
    "lessons": {"comparisons": 0.84, "contrasts": 0.625, "epochs": 1.0, "learning_rate": 1.5e-3},
}
"""About 200,000 tokens each: in the teacher's words; with evidence and comparisons; with contrast rows too."""


def main() -> None:
    """Print a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--cases", type=int, default=210, help="generated cases, a third of each status")
    parser.add_argument("--generated", nargs="+", type=int, default=[], help="numbers of generated rows")
    arguments = parser.parse_args()
    print(machine())
    print(f"{'variant':<12} {'tokens':>8} {'seconds':>8} {'right':>16} {'macro-F1':>9}  found of each status")
    if arguments.generated:
        for rows in arguments.generated:
            pairs = list(islice(_known_pairs(map(pair_of, generate_rows(sys.maxsize))), rows))
            print(f"{rows:<7,} rows {_measured({'epochs': 1.0}, pairs, arguments.cases)}", flush=True)
        return
    for name in arguments.variants:
        print(
            f"{name:<12} {_measured(VARIANTS[name], list(_known_pairs(sample_pairs())), arguments.cases)}", flush=True
        )


def _measured(changes: dict[str, float], pairs: list[tuple[str, str]], count: int) -> str:
    """One training on these rows, asked so many cases."""
    recipe = TrainingSettings(base_model=BaseModel(profile="embedded").resolved(), **changes).resolved()
    folder = base_folder()
    chat = ChatTemplate(load_tokenizer(folder))
    chosen = training_rows(pairs, chat, recipe, Prompts())
    model = add_adapter(load_base_model(folder, choose_precision()), recipe, folder)
    progress = Progress(lambda text: print(text, file=sys.stderr, flush=True))
    progress.say(chosen.described)
    log = train(model, chosen.rows, recipe, progress, comparisons=chosen.comparisons, contrasts=chosen.contrasts).log
    student = merged(model.eval()).eval()
    prepare_for_decoding(student)
    answers = [parse_answer(answer) for _, answer in pairs]
    limits = limits_of((answer.vision_yaml or "", answer.review_yaml or "") for answer in answers)
    cases = list(_cases(count))
    asked = [(case, "") for case in cases]
    verdicts = own_verdicts(AnsweringModel(student, chat), asked, Decoding(), limits)
    by_prompt = {answer.case_id: verdict_of(answer) for answer in verdicts}
    given = {case.case_id: by_prompt[case.prompt] for case in cases}
    right = sum(given[case.case_id] == case.status for case in cases)
    matrix = {
        is_: {said: sum(c.status == is_ and given[c.case_id] == said for c in cases) for said in STATUSES}
        for is_ in STATUSES
    }
    low, high = wilson(right, len(cases))
    found = ", ".join(f"{status} {matrix[status][status]} of {sum(matrix[status].values())}" for status in STATUSES)
    tokens, seconds = sum(record.tokens for record in log), sum(record.seconds for record in log)
    share = f"{right / len(cases):.2f} ({low:.2f}-{high:.2f})"
    return f"{tokens:>8,} {seconds:>8.0f} {share:>16} {macro_f1(matrix):>9.2f}  {found}"


def _known_pairs(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Those that are not of the domains kept aside."""
    aside = [product for domain in _domains()[1] for product in domain.products]
    return (pair for pair in pairs if not any(product in pair[0] for product in aside))


def _domains() -> tuple[list[Domain], list[Domain]]:
    """Those that are trained, and those kept aside."""
    domains = list(load_domains("training"))
    random.Random(7).shuffle(domains)
    return domains[:-ASIDE], domains[-ASIDE:]


def _cases(count: int) -> Iterator[EvalCase]:
    draw = random.Random(11)
    for number in range(count):
        status = STATUSES[number % len(STATUSES)]
        case = draw_case(draw, _domains()[1], status=status)
        yield EvalCase(f"CASE-{number:03}", case.tier, case.concept, case.requirements_yaml, "", "", status)


if __name__ == "__main__":
    main()
