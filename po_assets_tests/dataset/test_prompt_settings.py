"""The resource `prompt`: which files it reads, what it says of wrong ones, and what it does to the training rows."""

from pathlib import Path

import dagster as dg
import pytest

from po_assets.dag import Artifacts
from po_assets.dataset.assets import supervised_dataset
from po_assets.dataset.publication import token_budget
from po_assets.dataset.settings import PromptSettings
from po_assets.errors import UserError
from po_assets.model import BaseModel
from po_assets.product_owner.templates import AGENT, BUILT_IN
from po_assets.storage import read_manifest, read_rows
from po_assets_tests.dataset.tables import GOOD, run
from po_assets_tests.intake.landed_rows import land
from po_assets_tests.intake.test_checks import evaluations
from po_assets_tests.model.tiny_model import make_tiny_model

OURS = (
    "{% block system %}You guard the vision.{% endblock %}Idea:\n{{ concept }}\n\nSpec:\n{{ requirements_yaml }}\nGo."
)


@pytest.fixture
def template(tmp_path: Path) -> str:
    path = tmp_path / "ours.jinja"
    path.write_text(OURS)
    return str(path)


def test_by_default_the_prompt_is_the_built_in_one_and_the_agents_is_tried() -> None:
    """And the own one is never tried against itself."""
    settings = PromptSettings()
    assert (settings.own, settings.consumers) == (BUILT_IN, (AGENT,))
    agents = PromptSettings(template="agent", consumer_prompts=["agent", "built-in"])
    assert (agents.own, agents.consumers) == (AGENT, (BUILT_IN,))


def test_files_are_named_from_the_folder_of_the_settings(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a run starts; their text counts, not their place."""
    monkeypatch.setenv("PO_SETTINGS", str(Path(template).parent / "settings.yaml"))
    settings = PromptSettings(template="ours.jinja")
    assert settings.own.system == "You guard the vision."
    before = settings.fingerprint()
    assert before == PromptSettings(template=template).fingerprint() != PromptSettings().fingerprint()
    Path(template).write_text(OURS, encoding="utf-8-sig")  # as some editors save it
    assert settings.fingerprint() == before
    Path(template).write_text(OURS.replace("Go.", "Go on."))
    assert settings.fingerprint() != before


def test_all_faults_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    """When the settings are read: no step has begun."""
    (tmp_path / "a.jinja").write_text("{{ concept }} {{ foo }}")
    (tmp_path / "b.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError) as error:
        PromptSettings(
            template=str(tmp_path / "a.jinja"),
            consumer_prompts=[str(tmp_path / "b.jinja"), str(tmp_path / "gone.jinja"), "agent", "agent"],
        )
    for sentence in (
        "'foo' is not a variable",
        "requirements_yaml does not stand in it.",
        "b.jinja' must be UTF-8 text",
        f"The prompt '{tmp_path}/gone.jinja' cannot be read: No such file or directory",
        "consumer_prompts has 'agent' twice",
    ):
        assert sentence in str(error.value)


def test_the_cases_asked_through_consumers_prompts_are_drawn_by_the_seed() -> None:
    """The same ones every time; never more than there are."""
    cases = list(range(40))
    chosen = PromptSettings(consumer_cases=10).consumer_share(cases)
    assert chosen == sorted(chosen)
    assert len(set(chosen)) == 10
    assert chosen == PromptSettings(consumer_cases=10).consumer_share(cases)
    assert chosen != PromptSettings(consumer_cases=10, seed=1).consumer_share(cases)
    assert PromptSettings(consumer_cases=99).consumer_share([3, 4]) == [3, 4]


def test_training_rows_are_asked_with_the_teams_prompt_and_pass_their_checks(tmp_path: Path, template: str) -> None:
    """The checks find the input again, so that an overlap with a case is seen under any prompt."""
    layout = land(tmp_path, a=GOOD)
    settings = PromptSettings(template=template)
    found = evaluations(run(layout, prompt=settings))
    assert {name for name, check in found.items() if not check.passed} <= {"retention", "declared_scores_match_metric"}
    prompts = [one["prompt"] for one in read_rows(layout.supervised)]
    assert all(prompt.startswith("Idea:\n") and prompt.endswith("\nGo.") for prompt in prompts)
    manifest = read_manifest(layout.supervised)
    assert manifest.extra["prompt"] == {"name": "ours", "digest": settings.own.digest}
    # Checked under the prompt that is set, not the one that they were written with.
    schema = evaluations(run(layout, dg.AssetSelection.checks_for_assets(supervised_dataset), cases=None))["schema"]
    assert not schema.passed
    assert "its prompt is not the one that evaluation uses" in str(schema.metadata)
    run(layout, [supervised_dataset], cases=None)
    assert read_manifest(layout.supervised).config != manifest.config  # type: ignore[union-attr]


def test_the_system_text_counts_in_a_rows_length(tmp_path: Path, template: str) -> None:
    """As the model sees the row: it must fit with all of it."""
    base_model = BaseModel(base_model=str(make_tiny_model(tmp_path / "tiny", context=2048)))
    own = PromptSettings(template=template).own
    layout = Artifacts(root=str(tmp_path)).layout
    pair = [("what?", "this")]
    with_system = token_budget(base_model, layout, own).row_lengths(pair)[0]
    assert with_system > token_budget(base_model, layout).row_lengths(pair)[0]
