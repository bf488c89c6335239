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


def test_every_wrong_key_and_value_is_reported_at_once():
    """Keys with a suggestion, values with what is allowed; types as well as ranges."""
    wrong: dict[str, Any] = {
        "lerning_rate": 1e-4,
        "foo": 1,
        "rank": 0,
        "dropout": "much",
        "epochs": -1.0,
        "scheduler": "cosin",
        "target_modules": [],
        "seed": True,
    }
    with pytest.raises(UserError) as raised:
        make_recipe(**wrong)
    for expected in (
        "The training recipe: 8 wrong settings",
        "'lerning_rate' is not a setting; did you mean 'learning_rate'?",
        "'foo' is not a setting; known are ",
        "rank is 0; it must be at least 1.",
        "dropout is 'much'; it must be a number.",
        "epochs is -1.0; it must be above 0",
        "scheduler is 'cosin'; it must be 'cosine', 'linear' or 'constant'.",
        "target_modules is []; it needs at least one name.",
        "seed is True; it must be a whole number.",
    ):
        assert expected in str(raised.value)


def test_layers_are_named_or_all_are_meant():
    """And a setting is not judged by another one that is wrong itself."""
    with pytest.raises(UserError, match=r"must name layers or be \['all-linear'\], not both") as raised:
        make_recipe(gradient_accumulation="8", num_workers=3, target_modules=["all-linear", "q_proj"])
    assert "gradient_accumulation is '8'; it must be a whole number." in str(raised.value)
    assert "num_workers" not in str(raised.value)


def test_what_is_open_takes_the_profiles_default():
    """What is given wins; in the Launchpad the description shows both profiles' values."""
    recipe = make_recipe({"profile": "paper", "max_length": 1024}, epochs=2.5)
    assert (recipe.epochs, recipe.learning_rate, recipe.base_model.max_length) == (2.5, 8e-5, 1024)
    shown = str(TrainingSettings.model_fields["learning_rate"].description)
    assert "By profile: 0.002 (embedded), 8e-05 (paper)" in shown


def test_a_wrong_setting_fails_a_run_before_its_first_step():
    """Dagster names each unknown key; our bounds are sentences, whether the value is of the profile or given."""

    @dg.op
    def use(recipe: TrainingSettings) -> None:
        recipe.resolved()

    base_model = BaseModel.configure_at_launch()
    resources = {"base_model": base_model, "recipe": TrainingSettings.configure_at_launch(base_model=base_model)}

    @dg.job(resource_defs=resources)
    def train() -> None:
        use()

    def run(**settings: Any) -> dg.ExecuteInProcessResult:
        return train.execute_in_process(run_config={"resources": {"recipe": {"config": settings}}})

    with pytest.raises(dg.DagsterInvalidConfigError) as raised:
        run(lerning_rate=1.0, rnk=2, rank=8)
    assert "lerning_rate" in str(raised.value)
    assert "rnk" in str(raised.value)
    with pytest.raises(dg.DagsterResourceFunctionError) as failed:
        run(rank=0)
    assert "rank is 0; it must be at least 1." in str(failed.value.__cause__)
    assert run(epochs=None, rank=8).success


def test_settings_that_do_not_change_the_weights_are_not_in_the_digest():
    """More workers or fewer checkpoints must not train an unchanged student again; everything else must."""
    plain = make_recipe().effective()
    assert make_recipe(workers=7, checkpoint_seconds=5.0).effective() == plain
    for change in ({"seed": 1}, {"rank": 8}, {"fast_path": False}, {"precision": "float32"}):
        assert make_recipe(**change).effective() != plain
    assert make_recipe({"max_length": 512}).effective() != plain


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

    @dg.op
    def use(recipe: TrainingSettings):
        made = recipe.resolved()
        return [made.epochs, made.learning_rate, made.gradient_accumulation]

    base_model = BaseModel.configure_at_launch()
    recipe = TrainingSettings.configure_at_launch(base_model=base_model, **shown_defaults("embedded"))

    @dg.job(resource_defs={"base_model": base_model, "recipe": recipe})
    def train() -> None:
        use()

    resources = {"base_model": {"config": {"profile": "paper"}}, "recipe": {"config": settings}}
    if isinstance(expected, str):
        with pytest.raises(UserError, match=re.escape(expected)):
            train.execute_in_process(run_config={"resources": resources})
    else:
        assert train.execute_in_process(run_config={"resources": resources}).output_for_node("use") == expected
