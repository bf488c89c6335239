"""Training rows under consumers' prompts: how many, which ones, what does not fit; and an adapter that knows its prompt."""

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from po_assets.errors import UserError
from po_assets.model import ChatTemplate, load_tokenizer
from po_assets.product_owner import format_answer
from po_assets.product_owner.prompts import AGENT, BUILT_IN, read_prompt
from po_assets.storage import Layout, read_manifest, write_manifest
from po_assets.text import Progress
from po_assets.training.checks import StudentUnderTest, training_is_sane
from po_assets.training.handover import travelled_prompt
from po_assets.training.rows import MixedRows, Prompts, mixed, training_rows
from po_assets.training.student import Student, make_student
from po_assets_tests.evaluation.scenes import CONCEPT, REQUIREMENTS, REVIEW, VISION
from po_assets_tests.model.tiny_model import make_tiny_model
from po_assets_tests.training.tiny_training import tiny_recipe, write_supervised

ANSWER = format_answer(VISION, REVIEW)
ROWS = [(BUILT_IN.user(f"{CONCEPT} It is number {n // 2}.", REQUIREMENTS), f"{ANSWER} {n}") for n in range(24)]
"""12 questions, each with two answers."""
BOTH = Prompts(BUILT_IN, (AGENT, read_prompt("Idea:\n{{ concept }}\n\nSpec:\n{{ requirements_yaml }}", "short")))


def mix(share: float, prompts: Prompts = BOTH, *, seed: int = 42, longest: int = 1 << 30) -> MixedRows:
    return mixed(ROWS, prompts, share, seed=seed, fits=lambda row: sum(map(len, row)) <= longest)


def test_each_prompt_gets_its_share_and_all_answers_to_a_question_stay_together() -> None:
    """Seeded; the answers and their order are as before, and the same question is asked."""
    found = mix(0.25)
    assert found.shown == {"agent": 6, "short": 6}
    assert [answer for _, answer, _ in found.examples] == [answer for _, answer in ROWS]
    for number in range(0, 24, 2):
        (asked, _, system), (again, _, system_again) = found.examples[number : number + 2]
        assert (asked, system) == (again, system_again)
        prompt = next(one for one in (BUILT_IN, *BOTH.consumers) if one.system == system and one.parts(asked))
        parts, given = prompt.parts(asked), BUILT_IN.parts(ROWS[number][0])
        assert parts == given
    assert found.examples == mix(0.25).examples != mix(0.25, seed=1).examples
    assert found.described == "Of 24 rows 12 are trained under the own prompt, 6 under agent, 6 under short."


def test_by_default_every_row_is_trained_under_the_own_prompt() -> None:
    """With its system text, where it has one."""
    assert mix(0).examples == [(*pair, "") for pair in ROWS]
    assert mix(0).described == ""
    assert {system for *_, system in mix(0, Prompts(AGENT)).examples} == {AGENT.system}


def test_rows_that_do_not_fit_under_a_prompt_stay_with_the_own_one_and_are_counted() -> None:
    """The agent's system text alone has some 3,000 characters; nothing is cut."""
    longest = max(len(prompt) + len(answer) for prompt, answer in ROWS)
    found = mix(0.25, longest=longest)
    assert (found.shown, found.kept) == ({"agent": 0, "short": 6}, 6)
    assert "(6 more would not fit under one and stayed)" in found.described


@pytest.mark.parametrize(
    ("share", "prompts", "sentence"),
    [
        (0.6, BOTH, "prompt_mix is 0.6 for each of 2 prompts, which is more than all rows: lower it to 0.5 or less"),
        (0.1, Prompts(), "prompt_mix is 0.1, and no other prompt is named"),
    ],
)
def test_a_share_that_cannot_be_had_is_refused(share: float, prompts: Prompts, sentence: str) -> None:
    """In the preflight, too, which asks the same function."""
    with pytest.raises(UserError, match=sentence):
        mix(share, prompts)


def train(layout: Layout, prompts: Prompts = BOTH, **settings: float) -> tuple[Student, list[str]]:
    said: list[str] = []
    recipe = tiny_recipe(Path(str(layout.root)) / "tiny", max_length=8192, epochs=0.2, **settings)
    return make_student(layout, ROWS, recipe, Progress(said.append), prompts), said


def test_the_mix_is_trained_and_stands_in_log_card_and_digest(layout: Layout) -> None:
    """Other weights, another digest; the checks see the very rows that were trained."""
    make_tiny_model(Path(str(layout.root)) / "tiny", context=8192)
    write_supervised(layout, ROWS)
    plain, _ = train(layout)
    plain_weights = load_file(Path(plain.folder) / "adapter_model.safetensors")
    student, said = train(layout, prompt_mix=0.25)
    sentence = "Of 24 rows 12 are trained under the own prompt, 6 under agent, 6 under short."
    assert any(sentence in line for line in said)
    assert student.manifest.config != plain.manifest.config
    weights = load_file(Path(student.folder) / "adapter_model.safetensors")
    assert any((weights[name] != plain_weights[name]).any() for name in weights)
    assert sentence in (Path(student.folder) / "README.md").read_text()
    recipe = tiny_recipe(Path(str(layout.root)) / "tiny", max_length=8192, epochs=0.2, prompt_mix=0.25)
    checked = StudentUnderTest(layout, recipe, BOTH)
    chat = ChatTemplate(load_tokenizer(Path(str(layout.root)) / "tiny"))
    rows = training_rows(ROWS, chat, recipe, BOTH).rows
    assert checked.rows == rows
    assert sum(AGENT.system in chat.tokenizer.decode(row.ids) for row in rows) == 6
    assert "rows are trained on the wrong tokens" not in training_is_sane(checked).summary


def test_the_prompt_travels_with_the_adapter_and_another_one_is_refused(layout: Layout) -> None:
    """System text and template; rows that were written with another prompt than the one set are not trained on."""
    make_tiny_model(Path(str(layout.root)) / "tiny", context=8192)
    write_supervised(layout, ROWS)
    with pytest.raises(UserError, match=r"were written with the prompt 'built-in' .* set now is 'agent'"):
        train(layout, Prompts(AGENT))
    manifest = read_manifest(layout.supervised)
    assert manifest is not None
    manifest.extra["prompt"] = {"name": "agent", "digest": AGENT.digest}
    write_manifest(layout.supervised, manifest)
    student, _ = train(layout, Prompts(AGENT))
    assert travelled_prompt(Path(student.folder)) == AGENT
    assert student.manifest.extra["prompt"] == {"name": "agent", "digest": AGENT.digest}
    assert train(layout, Prompts(AGENT))[0].unchanged
