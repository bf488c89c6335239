"""Prompts as Jinja templates: what they write, that the question is found again, and what is said of a faulty file."""

import pytest
from jinja2.sandbox import SandboxedEnvironment

from po_assets.errors import UserError
from po_assets.product_owner import build_prompt
from po_assets.product_owner.templates import AGENT, BUILT_IN, VARIABLES, Prompt, read_prompt

OURS = """\
{% block system %}
You guard a product vision.
{% endblock %}
Idea: {{ concept }}

Specification:
{{ requirements_yaml }}
{% if existing_vision_yaml %}
Vision so far:
{{ existing_vision_yaml }}
{% endif %}
Answer in two blocks.
"""
QUESTIONS = [
    ("A planner.\n\nSpecification:\nis a word in it", "title: P\nconstraints:\n- id: C001", ""),
    ("A planner.", "title: P", "product_name: P\nnon_goals: []"),
]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("prompt", [BUILT_IN, AGENT, read_prompt(OURS, "ours")], ids=lambda prompt: prompt.name)
def test_the_question_is_found_again_in_what_a_prompt_writes(prompt: Prompt, question: tuple[str, str, str]) -> None:
    """So that the checks of the training rows and the grammar in use know what is asked; asked again it is the same."""
    written = prompt.user(*question)
    parts = prompt.parts(written)
    assert parts is not None
    found = (parts.concept, parts.requirements_yaml, parts.existing_vision_yaml or "")
    assert prompt.user(*(text or "" for text in found)) == written
    assert found[1:] == question[1:]
    assert prompt.parts("Something else.") is None


@pytest.mark.parametrize("question", [*QUESTIONS, ("A\n\nREQUIREMENTS:\nb", "c: d", "e\n\nEXISTING_VISION:\nf")])
def test_the_built_in_template_says_what_build_prompt_writes(question: tuple[str, str, str]) -> None:
    """The file travels with an adapter; here the same is written without Jinja."""
    assert BUILT_IN.turns(*question) == [{"role": "user", "content": build_prompt(*question)}]
    template = SandboxedEnvironment().from_string(BUILT_IN.source)
    assert template.render(zip(VARIABLES, question, strict=True)) == build_prompt(*question)


def test_a_file_holds_system_text_and_users_turn() -> None:
    """An outer fence of the requirements is taken off, and white space around the texts."""
    system, user = read_prompt(OURS, "ours").turns(" A planner.\n", "```yaml\ntitle: P\n```")
    assert system == {"role": "system", "content": "You guard a product vision."}
    assert user["content"] == "Idea: A planner.\n\nSpecification:\ntitle: P\n\nAnswer in two blocks."


def test_another_system_text_is_another_prompt() -> None:
    """The digest is of both parts, and of nothing else."""
    ours = read_prompt(OURS, "ours")
    assert ours.digest == read_prompt(OURS, "a copy").digest
    assert ours.digest != read_prompt(OURS.replace("guard", "keep"), "ours").digest
    assert ours.digest != read_prompt(OURS.replace("Idea", "Concept"), "ours").digest


def test_a_system_block_in_a_comment_is_none() -> None:
    """The text that was tried before stays beside the one that counts."""
    tried = read_prompt("{# {% block system %}Old.{% endblock %} #}\n" + OURS, "ours")
    assert (tried.system, tried.source) == (read_prompt(OURS, "ours").system, read_prompt(OURS, "ours").source)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (
            "{% block system %}For {{ team }}.{% endblock %}{{ concept }} {{ requirement_yaml }} {{ today }}",
            [
                "requirements_yaml does not stand in it.",
                "'requirement_yaml' is not a variable; did you mean 'requirements_yaml'?",
                "'today' is not a variable; known are concept, requirements_yaml, existing_vision_yaml.",
                "its system text names the variable 'team'",
            ],
        ),
        ("", ["concept does not stand in it.", "requirements_yaml does not stand in it."]),
        ("{{ concept }}\n{{ requirements_yaml }\n", ["it is no Jinja template: line 2:"]),
        ("{{ concept }} / {{ requirements_yaml | yaml }}", ["No filter named 'yaml'."]),
        ("{{ concept }} / {{ requirements_yaml | upper }}", ["cannot be found again in what it writes"]),
        (
            "{% block systm %}You guard.{% endblock %}{{ concept }} / {{ requirements_yaml }}",
            ["its block 'systm' would stand in the user's text; did you mean {% block system %}?"],
        ),
        ("{{ concept }}{{ requirements_yaml }}", ["cannot be found again in what it writes"]),
        (
            "{{ concept }} / {{ requirements_yaml }}{{ concept.__class__.__mro__ }}",
            ["it fails with SecurityError: access to attribute '__class__' of 'str' object is unsafe."],
        ),
        (
            "{% include 'other' %}{{ concept }} / {{ requirements_yaml }}",
            ["it takes 'other' from another file; a prompt must be whole"],
        ),
        (
            "{% block system %}A{% endblock %}{{ concept }} / {{ requirements_yaml }}{% block system %}B{% endblock %}",
            ["it is no Jinja template: line 1: block 'system' defined twice."],
        ),
    ],
)
def test_a_faulty_file_is_told_of_with_all_its_faults(text: str, sentences: list[str]) -> None:
    """Before anything is made with it."""
    with pytest.raises(UserError) as error:
        read_prompt(text, "ours")
    assert "The prompt 'ours' cannot be used" in str(error.value)
    assert [sentence for sentence in sentences if sentence not in str(error.value)] == []
    assert str(error.value).count("\n- ") == len(sentences)
