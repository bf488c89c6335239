import importlib.util
import json
import re
from typing import Any

import dagster as dg
import pytest

from po_assets.errors import UserError
from po_assets.model import BaseModel
from po_assets.training.settings import TrainingSettings, shown_defaults
from po_assets_tests.training.tiny_training import make_recipe


def test_paper_has_the_settings_of_the_manual_process():
    """design.md fixes them; a change of a default must be meant."""
    recipe = make_recipe({"profile": "paper"})
    assert (recipe.rank, recipe.alpha, recipe.dropout) == (32, 64, 0.05)
    assert (recipe.epochs, recipe.learning_rate, recipe.scheduler) == (4.0, 8e-5, "cosine")
    assert (recipe.warmup_ratio, recipe.gradient_accumulation) == (0.05, 12)
    assert (recipe.base_model.name, recipe.base_model.quantization) == ("Qwen/Qwen2.5-7B-Instruct", "auto")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lerning_rate": 1e-4}, "'lerning_rate' is not a setting; did you mean 'learning_rate'?"),
        ({"foo": 1}, "'foo' is not a setting; known are "),
        ({"rank": 0}, "rank is 0; it must be at least 1."),
        ({"dropout": "much"}, "dropout is 'much'; it must be a number."),
        ({"epochs": -1.0}, "epochs is -1.0; it must be above 0"),
        ({"scheduler": "cosin"}, "scheduler is 'cosin'; it must be 'cosine', 'linear' or 'constant'."),
        ({"seed": True}, "seed is True; it must be a whole number."),
        ({"target_modules": []}, "target_modules is []; it needs at least one name."),
        ({"target_modules": ["all-linear", "q_proj"]}, "must name layers or be ['all-linear'], not both"),
        ({"num_workers": 0}, "num_workers is 0; it must be at least 1"),
        ({"num_workers": 2.0}, "num_workers is 2.0; it must be a whole number"),
        (
            {"num_workers": 3, "gradient_accumulation": 4},
            "num_workers is 3; it must divide gradient_accumulation (4), so that all have the same work",
        ),
        ({"keep_best": True}, "keep_best is true; it needs a validation_share"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_key_or_value_is_refused_with_what_is_allowed(settings: dict[str, Any], said: str):
    """Keys with a suggestion; types as well as ranges, and what does not go together."""
    with pytest.raises(UserError, match=re.escape(said)):
        make_recipe(**settings)


def test_all_faults_are_reported_at_once():
    """And a setting is not judged by another one that is wrong itself."""
    with pytest.raises(UserError) as raised:
        make_recipe(lerning_rate=1e-4, rank=0, target_modules=[], gradient_accumulation="8", num_workers=3)
    for expected in (
        "The training recipe: 4 wrong settings",
        "did you mean 'learning_rate'?",
        "rank is 0",
        "target_modules is []",
        "gradient_accumulation is '8', which is text; it must be a whole number: write 8, without quotes.",
    ):
        assert expected in str(raised.value)
    assert "num_workers" not in str(raised.value)


def test_what_is_open_takes_the_profiles_default():
    """What is given wins; in the Launchpad the description shows both profiles' values."""
    recipe = make_recipe({"profile": "paper", "max_length": 1024}, epochs=2.5)
    assert (recipe.epochs, recipe.learning_rate, recipe.base_model.max_length) == (2.5, 8e-5, 1024)
    shown = str(TrainingSettings.model_fields["learning_rate"].description)
    assert "By profile: 0.002 (embedded), 8e-05 (paper)" in shown


def launched(settings: dict[str, Any], base_model: dict[str, Any] | None = None, **shown: Any) -> Any:
    """What a run's recipe comes to whose Launchpad showed the defaults `shown` and set the rest."""

    @dg.op
    def use(recipe: TrainingSettings):
        made = recipe.resolved()
        return [made.epochs, made.learning_rate, made.gradient_accumulation]

    base = BaseModel.configure_at_launch()
    recipe = TrainingSettings.configure_at_launch(base_model=base, **shown)

    @dg.job(resource_defs={"base_model": base, "recipe": recipe})
    def train() -> None:
        use()

    resources = {"base_model": {"config": base_model or {}}, "recipe": {"config": settings}}
    return train.execute_in_process(run_config={"resources": resources}).output_for_node("use")


def test_a_wrong_setting_fails_a_run_before_its_first_step():
    """Dagster names each unknown key; our bounds are sentences, whether the value is of the profile or given."""
    with pytest.raises(dg.DagsterInvalidConfigError) as raised:
        launched({"lerning_rate": 1.0, "rnk": 2, "rank": 8})
    assert "lerning_rate" in str(raised.value)
    assert "rnk" in str(raised.value)
    with pytest.raises(dg.DagsterResourceFunctionError) as failed:
        launched({"rank": 0})
    assert "rank is 0; it must be at least 1." in str(failed.value.__cause__)
    assert launched({"epochs": None, "rank": 8}) == [0.9, 2e-3, 4]


def test_a_settings_file_may_set_what_another_profile_sets():
    """`epochs: 4` and no lessons are meant where somebody wrote them."""
    assert launched({}, comparisons=0.0, documents=0.0, epochs=4.0) == [4.0, 2e-3, 4]


def test_settings_that_do_not_change_the_weights_are_not_in_the_digest():
    """More workers or fewer checkpoints must not train an unchanged student again; everything else must."""
    plain = make_recipe().effective()
    assert make_recipe(workers=7, checkpoint_seconds=5.0).effective() == plain
    for change in ({"seed": 1}, {"rank": 8}, {"fast_path": False}, {"precision": "float32"}):
        assert make_recipe(**change).effective() != plain
    assert make_recipe({"max_length": 512}).effective() != plain


def test_settings_that_are_newer_than_adapters_are_in_the_digest_only_where_they_are_used():
    """Adapters made before stay valid. The sum of several workers rounds differently, so that it counts."""
    plain = make_recipe().effective()
    newer = {"num_workers", "pack_tokens", "deterministic", "validation_share", "keep_best", "prompt_mix"}
    assert not newer & set(plain)
    assert make_recipe(num_workers=2).effective() == plain | {"num_workers": 2}
    held_out = {"validation_share": 0.1, "keep_best": False}
    assert make_recipe(validation_share=0.1).effective() == plain | held_out


@pytest.mark.parametrize(("profile", "epochs", "rate"), [("embedded", 0.9, 2e-3), ("paper", 4.0, 8e-5)])
def test_the_launchpad_shows_what_the_profile_sets(
    monkeypatch: pytest.MonkeyPatch, profile: str, epochs: float, rate: float
):
    """In the schema of the real job, loaded under a profile."""
    monkeypatch.setenv("PO_PROFILE", profile)
    place = importlib.util.find_spec("po_assets.definitions")
    code = importlib.util.module_from_spec(place)
    place.loader.exec_module(code)
    resources = code.defs.resolve_job_def("product_owner_student").run_config_schema.config_type.fields["resources"]
    model, shown = (
        resources.config_type.fields[name].config_type.fields["config"].config_type.fields
        for name in ("base_model", "recipe")
    )
    assert json.loads(model["profile"].default_value_as_json_str) == profile
    assert json.loads(shown["epochs"].default_value_as_json_str) == epochs
    assert json.loads(shown["learning_rate"].default_value_as_json_str) == rate


NO_LESSONS = {"comparisons": 0.0, "documents": 0.0}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {},
            "epochs 0.9, learning_rate 0.002, gradient_accumulation 4, comparisons 2.6, documents 0.7 in the recipe are",
        ),
        (NO_LESSONS | {"epochs": 1.0, "learning_rate": 1e-4, "gradient_accumulation": 2}, [1.0, 1e-4, 2]),
        (NO_LESSONS | {"epochs": 1.0, "gradient_accumulation": 12}, "Set learning_rate: 8e-05 there"),
    ],
)
def test_another_profile_chosen_in_the_launchpad_is_not_trained_with_the_shown_values(
    settings: dict[str, Any], expected: object
):
    """They stand there for the profile that Dagster was started with."""
    paper = {"profile": "paper"}
    if isinstance(expected, str):
        with pytest.raises(UserError, match=re.escape(expected)):
            launched(settings, paper, **shown_defaults("embedded"))
    else:
        assert launched(settings, paper, **shown_defaults("embedded")) == expected
