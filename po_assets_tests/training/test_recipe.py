import dagster as dg
import pytest

from po_assets.errors import UserError
from po_assets.model import BaseModel
from po_assets.training.recipe import StudentRecipe, make_recipe


def test_paper_has_the_settings_of_the_manual_process():
    """design.md fixes them; a change of a default must be meant."""
    recipe = make_recipe({"profile": "paper"})
    assert (recipe.rank, recipe.alpha, recipe.dropout) == (32, 64, 0.05)
    assert (recipe.epochs, recipe.learning_rate, recipe.scheduler) == (4.0, 8e-5, "cosine")
    assert (recipe.warmup_ratio, recipe.gradient_accumulation) == (0.05, 12)
    assert (recipe.model.name, recipe.model.quantization) == ("Qwen/Qwen2.5-7B-Instruct", "nf4")


def test_every_wrong_key_and_value_is_reported_at_once():
    """Keys with a suggestion, values with what is allowed, the base model's settings among them."""
    with pytest.raises(UserError) as raised:
        make_recipe(
            {
                "profile": "papre",
                "lerning_rate": 1e-4,
                "foo": 1,
                "rank": 0,
                "dropout": "much",
                "epochs": -1.0,
                "scheduler": "cosin",
                "target_modules": [],
                "seed": True,
            }
        )
    message = str(raised.value)
    for expected in (
        "9 wrong setting(s)",
        "'lerning_rate' is no setting; did you mean 'learning_rate'?",
        "'foo' is no setting; known are ",
        "rank is 0; it must be 1 to 1,024.",
        "dropout is 'much'; it must be of type float.",
        "epochs is -1.0; it must be above 0",
        "scheduler is 'cosin'; it must be one of cosine, linear, constant.",
        "target_modules is (); it needs at least one name.",
        "seed is True; it must be of type int.",
        "profile is 'papre'",
    ):
        assert expected in message


def test_each_wrong_type_is_named_by_itself():
    """Of the base model's settings too; a setting is not judged by another one that is wrong itself."""
    with pytest.raises(UserError) as raised:
        make_recipe(
            {
                "profile": "papre",
                "max_length": "abc",
                "quantization": "int8",
                "gradient_accumulation": "8",
                "num_workers": 3,
                "target_modules": ["all-linear", "q_proj"],
            }
        )
    message = str(raised.value)
    for expected in (
        "4 wrong setting(s)",
        "max_length is 'abc'; it must be of type int.",
        "profile is 'papre'",
        "quantization is 'int8'",
        "gradient_accumulation is '8'; it must be of type int.",
        "it must name layers or be ['all-linear'], not both.",
    ):
        assert expected in message
    assert "num_workers" not in message


def test_the_resource_resolves_to_a_complete_recipe():
    """What is left empty in the Launchpad takes the profile's default; what is given wins."""
    recipe = StudentRecipe(base_model=BaseModel(profile="paper", max_length=1024), epochs=2.5).resolved()
    assert (recipe.epochs, recipe.learning_rate, recipe.model.max_length) == (2.5, 8e-5, 1024)


def test_the_launchpad_rejects_wrong_keys_all_at_once():
    """Dagster's own validation of a run's configuration names each unknown key."""

    @dg.op
    def use(recipe: StudentRecipe) -> None:
        recipe.resolved()

    base_model = BaseModel.configure_at_launch()

    @dg.job(
        resource_defs={"base_model": base_model, "recipe": StudentRecipe.configure_at_launch(base_model=base_model)}
    )
    def train() -> None:
        use()

    config = {"resources": {"recipe": {"config": {"lerning_rate": 1.0, "rnk": 2, "rank": 8}}}}
    with pytest.raises(dg.DagsterInvalidConfigError) as raised:
        train.execute_in_process(run_config=config)
    assert "lerning_rate" in str(raised.value)
    assert "rnk" in str(raised.value)


def test_settings_that_do_not_change_the_weights_are_not_in_the_digest():
    """More workers or fewer checkpoints must not train an unchanged student again; everything else must."""
    plain = make_recipe({}).numerics()
    assert make_recipe({"workers": 7, "checkpoint_seconds": 5.0}).numerics() == plain
    for change in ({"seed": 1}, {"rank": 8}, {"fast_path": False}, {"max_length": 512}, {"precision": "float32"}):
        assert make_recipe(change).numerics() != plain
