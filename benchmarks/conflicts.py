"""What conflicts rows do: the same student trained with none, with those that landed, and with the share filled up.

    python -m benchmarks.conflicts                     about 20 min an arm on 2 cores: training, 40 answers, contrasts
    python -m benchmarks.conflicts --arms filled       one arm; the others can follow, in any order
    python -m benchmarks.conflicts --words --root build/words    in the teacher's words, without lessons: 10 min an arm
    python -m benchmarks.conflicts --write docs/conflicts.md

The recipe is the default one but for what the options say. Each arm is an artifact root of its own under --root with
the sample data and the evaluation cases, taken through the project's own functions: selection, gate, training,
decoding, scores. An interrupted arm goes on from its last checkpoint and its last finished answers when it is started
again; a finished one costs seconds.

* `none`: every conflicts row is left out of the landed files.
* `landed`: as the files are.
* `filled`: with the rows that `synthetic_conflicts` makes for --target.

The tables are markdown. With --write they replace what stands between the two markers in that file.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from po_assets.dag import Artifacts
from po_assets.dataset.cases import read_eval_cases
from po_assets.dataset.checks import DatasetEvidence, record_gate, supervised_checks
from po_assets.dataset.publication import build_supervised, token_budget
from po_assets.dataset.settings import SelectionSettings
from po_assets.evaluation.answering import AnsweringModel, load_student
from po_assets.evaluation.answers import AnswerCache, answer_cases, reference_limits
from po_assets.evaluation.contrast import contrast_cases, judge_contrasts
from po_assets.evaluation.scoring import score_answers
from po_assets.evaluation.settings import Decoding
from po_assets.evaluation.statistics import confusion_matrix, macro_f1, summarize
from po_assets.intake.landing import list_landing, snapshot
from po_assets.intake.ledger import normalize_snapshot
from po_assets.model import BaseModel, ensure_base_model
from po_assets.product_owner import STATUSES
from po_assets.review.conflicts import make_conflicts
from po_assets.review.settings import ReviewSettings
from po_assets.sample_data import write_sample_data
from po_assets.storage import Layout, digest_of, local_copy, read_rows
from po_assets.text import Progress
from po_assets.training.settings import TrainingSettings

ARMS = ("none", "landed", "filled")
BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
_MADE_A_CONFLICT = ("another product", "exclusion demanded")
_TITLES = {"none": "no conflicts rows", "landed": "as landed", "filled": "filled up with synthetic rows"}


@dataclass(frozen=True)
class Study:
    """What all arms share."""

    base_model: BaseModel
    recipe: TrainingSettings
    decoding: Decoding
    target: float
    first_cases: int | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the arms asked for, then print the tables of all that are finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS)
    parser.add_argument("--root", type=Path, default=Path("build/conflicts_study"), help="where the arms are kept")
    parser.add_argument("--target", type=float, default=0.08, help="share of conflicts rows of the arm `filled`")
    parser.add_argument("--epochs", type=float, help="passes over the rows; default: the profile's")
    parser.add_argument("--words", action="store_true", help="train in the teacher's words, without lessons")
    parser.add_argument("--base-model", help="a local folder instead of the embedded model")
    parser.add_argument("--max-length", type=int, help="tokens of the longest row; default: the profile's")
    parser.add_argument("--mode", default="constrained", choices=("constrained", "free"))
    parser.add_argument("--max-new-tokens", type=int, default=Decoding().max_new_tokens)
    parser.add_argument("--cases", type=int, help="only the first so many evaluation cases")
    parser.add_argument("--write", type=Path, help="a markdown file with the two markers")
    given = parser.parse_args(arguments)
    base_model = BaseModel(base_model=given.base_model, max_length=given.max_length)
    changes = {"comparisons": 0.0, "documents": 0.0} if given.words else {}
    changes |= {"epochs": given.epochs} if given.epochs is not None else {}
    study = Study(
        base_model=base_model,
        recipe=TrainingSettings(base_model=base_model, **changes).resolved(),
        decoding=Decoding(mode=given.mode, max_new_tokens=given.max_new_tokens),
        target=given.target,
        first_cases=given.cases,
    )
    for arm in given.arms:
        run_arm(arm, given.root / arm, study)
    text = tables(given.root)
    print(text)
    if given.write:
        write_between_markers(given.write, text)


def run_arm(arm: str, root: Path, study: Study) -> dict[str, Any]:
    """Land, select, train, answer and score; the result is also kept beside the arm's artifacts."""
    layout = Layout(UPath(root.absolute()))
    policy = SelectionSettings(min_conflicts_share=0.0) if arm == "none" else SelectionSettings()
    _land(root, arm)
    _share_base_model(layout, study.recipe)
    take_in(layout)
    if arm == "filled":
        curation = ReviewSettings(target_conflicts_share=study.target)
        found = make_conflicts(layout, curation, policy, token_budget(study.base_model, layout))
        print(f"{arm}: {found.verdicts['share_reached'].summary} {found.verdicts['style_leakage'].summary}")
        take_in(layout)
    pairs, statuses = _select(layout, policy, study.base_model)
    result = {"arm": arm, "target": study.target, "rows": len(pairs), "statuses": statuses}
    result |= _train_and_answer(layout, pairs, study, arm)
    (root / "result.json").write_text(json.dumps(result, indent=1))
    return result


def take_in(layout: Layout) -> None:
    """Snapshot and normalize what has landed."""
    staged, sources = snapshot(list_landing(layout.incoming).files, layout.raw)
    staged.with_manifest(extra={"sources": [asdict(source) for source in sources]}).publish()
    table, _ = normalize_snapshot(layout)
    table.publish()


def tables(root: Path) -> str:
    """The finished arms as markdown: one table of all, then the statuses of each."""
    paths = [root / arm / "result.json" for arm in ARMS]
    results = [json.loads(path.read_text()) for path in paths if path.exists()]
    if not results:
        return "No arm is finished."
    lines = [
        (
            "| arm | training rows | conflicts among them | steps | right status | conflicts found "
            "| conflicts said wrongly | macro F1 | contrast consistency | of pairs made a conflict "
            "| mean score | valid |"
        ),
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for result in results:
        matrix, cases = result["confusion"], result["cases"]
        conflicts = result["statuses"].get("conflicts", 0)
        right = sum(matrix[status][status] for status in STATUSES)
        wanted = sum(matrix["conflicts"].values())
        wrongly = sum(matrix[status]["conflicts"] for status in STATUSES if status != "conflicts")
        lines.append(
            f"| {_TITLES[result['arm']]} | {result['rows']} | {conflicts} ({conflicts / result['rows']:.1%}) "
            f"| {result['steps']} | {right} of {cases} | {matrix['conflicts']['conflicts']} of {wanted} | {wrongly} "
            f"| {result['macro_f1']:.2f} | {_contrast(result['contrast'])} | {result['mean']:.3f} "
            f"| {result['valid']} of {cases} |"
        )
    for result in results:
        columns = list(next(iter(result["confusion"].values())))
        lines += [
            "",
            f"**{_TITLES[result['arm']].capitalize()}**: the right status in rows, the student's in columns.",
            "",
            f"| | {' | '.join(columns)} |",
            f"| --- |{' --: |' * len(columns)}",
        ]
        lines += [
            f"| {status} | {' | '.join(str(count) for count in row.values())} |"
            for status, row in result["confusion"].items()
        ]
    first = results[0]
    lessons = "with lessons" if first["lessons"] else "in the teacher's words"
    lines += ["", f"Made with {first['model']}, {first['epochs']:g} epochs {lessons}, answers {first['decoding']}."]
    return "\n".join(lines)


def _contrast(record: dict[str, Any] | None) -> str:
    """Consistent pairs with their interval, and those of them whose changed document is a conflict."""
    if record is None:
        return "no pair | no pair"
    low, high = record["interval"]
    made = [record["by_kind"].get(kind, (0, 0)) for kind in _MADE_A_CONFLICT]
    consistent, of = (sum(counts) for counts in zip(*made, strict=True))
    return f"{record['consistent']} of {record['pairs']} ({low:.2f} to {high:.2f}) | {consistent} of {of}"


def write_between_markers(path: Path, text: str) -> None:
    """Replace what stands between the markers.

    Raises:
        ValueError: the file has no such markers.
    """
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path} has no markers {BEGIN} and {END}: put them where the tables belong")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def _land(root: Path, arm: str) -> None:
    """The project's sample data and evaluation cases, as its generator writes them."""
    for path in write_sample_data(root):
        if arm == "none" and path.parent.name == "incoming":
            lines = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(b"".join(line for line in lines if b"status: conflicts" not in line))


def _share_base_model(layout: Layout, recipe: TrainingSettings) -> None:
    """The converted model of the repository's artifacts serves all arms."""
    folder = Path(str(layout.base_models))
    if recipe.base_model.kind == "embedded" and not folder.exists():
        converted = ensure_base_model(recipe.base_model, Artifacts().layout)
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(converted.parent, target_is_directory=True)


def _select(
    layout: Layout, policy: SelectionSettings, base_model: BaseModel
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    budget = token_budget(base_model, layout)
    staged, closed = build_supervised(layout, policy, read_eval_cases(layout.eval_cases), budget)
    staged.with_manifest(extra={"outcomes": closed.outcomes.by_outcome()}).publish()
    found = DatasetEvidence(layout, policy, budget)
    record_gate(found, supervised_checks.verdicts(found))
    return [(row["prompt"], row["response"]) for row in read_rows(layout.supervised)], dict(closed.statuses)


def _train_and_answer(layout: Layout, pairs: list[tuple[str, str]], study: Study, arm: str) -> dict[str, Any]:
    from po_assets.training.student import make_student

    def say(text: str) -> None:
        print(f"{arm}: {text}", flush=True)

    spec, decoding = study.recipe.base_model, study.decoding
    student = make_student(layout, pairs, study.recipe, Progress(say, every_seconds=30))
    cases = read_eval_cases(layout.eval_cases)[: study.first_cases]
    digest = digest_of([student.manifest.sha256, spec.quantization])
    cache = AnswerCache(layout.answer_cache, digest, decoding.fingerprint())
    with local_copy(layout.adapter) as adapter:

        @functools.cache
        def load() -> AnsweringModel:
            return load_student(ensure_base_model(spec, layout), spec, adapter)

        answers = answer_cases(cases, decoding, cache, load, log=say, name="student")
        scored = score_answers(cases, answers, model="student", model_digest=digest, decoding=decoding.fingerprint())
        contrast = judge_contrasts(
            contrast_cases(cases), scored, cache, load, decoding=decoding, limits=reference_limits(cases)
        )
    return {
        "confusion": confusion_matrix(scored),
        "cases": len(scored),
        "mean": summarize(scored).mean,
        "macro_f1": macro_f1(confusion_matrix(scored)),
        "contrast": asdict(contrast) if contrast else None,
        "valid": sum(answer.valid for answer in scored),
        "steps": student.manifest.extra["steps"],
        "tokens": student.manifest.extra["tokens"],
        "lessons": study.recipe.comparisons > 0,
        "epochs": study.recipe.epochs,
        "model": spec.name,
        "decoding": decoding.described(),
    }


if __name__ == "__main__":
    main()
