"""One question to the student, its answer validated and scored."""

from dataclasses import dataclass
from pathlib import Path

from po_assets.errors import UserError
from po_assets.model import BaseModel
from po_assets.product_owner import (
    ProductOwnerScore,
    cited_ids,
    parse_answer,
    read_status,
    read_yaml,
    requirement_entries,
    score_product_owner,
    validate_answer,
)
from po_assets.serving.engine import Generated, ModelEngine, Sampling, load_engine
from po_assets.serving.question import Documents
from po_assets.storage import Layout


@dataclass(frozen=True)
class StudentAnswer:
    """A model's answer to one question, and what it is worth."""

    model: str
    generated: Generated
    valid: bool
    invalid_reason: str
    status: str | None
    """What the review says; None where it says nothing readable."""
    score: ProductOwnerScore
    unknown_ids: list[str]
    """Ids that the review cites and the requirements do not have."""

    @property
    def text(self) -> str:
        """The answer: two fenced YAML blocks, where it is valid."""
        return self.generated.text


def ask(
    documents: Documents,
    layout: Layout,
    *,
    adapter: Path | None = None,
    base: bool = False,
    grammar: bool = True,
    spec: BaseModel | None = None,
    sampling: Sampling | None = None,
) -> StudentAnswer:
    """The answer of the current student; or of an adapter, or of the base model (see `load_engine`).

    Raises:
        UserError: the question cannot be asked, or there is no such model.
    """
    check_question(documents)
    engine = load_engine(layout, adapter=adapter, base=base, grammar=grammar, spec=spec)
    return ask_engine(engine, documents, sampling)


def check_question(documents: Documents) -> None:
    """Refuse what no answer could be right for.

    Raises:
        UserError: the concept is blank, or the requirements do not parse or hold no entry.
    """
    if not documents.concept.strip():
        raise UserError("The concept is blank; give a few sentences on the product.")
    if problem := read_yaml(documents.requirements_yaml).error:
        raise UserError(f"The requirements do not parse as YAML: {problem}.")
    if not requirement_entries(documents.requirements_yaml):
        raise UserError(
            "The requirements hold no entry with an id or a description under functional_requirements, "
            "non_functional_requirements or constraints, so that nothing could be reviewed."
        )


def ask_engine(engine: ModelEngine, documents: Documents, sampling: Sampling | None = None) -> StudentAnswer:
    """The answer of a loaded model, validated and scored."""
    generated = engine.generate(engine.prepare(engine.prompt.turns(*documents), sampling or Sampling()))
    parsed = parse_answer(generated.text)
    vision, review = parsed.vision_yaml or "", parsed.review_yaml or ""
    verdict = validate_answer(parsed.vision_yaml, parsed.review_yaml)
    requirements_yaml = documents.requirements_yaml
    known = {entry.id.upper() for entry in requirement_entries(requirements_yaml) if entry.id}
    return StudentAnswer(
        model=engine.name,
        generated=generated,
        valid=bool(verdict),
        invalid_reason=verdict.reason,
        status=read_status(review),
        score=score_product_owner(requirements_yaml, vision, review),
        unknown_ids=[identifier for identifier in cited_ids(review) if identifier not in known],
    )
