"""Settings: all wrong ones are named at once, and the key is none of them."""

import pytest

from po_assets.errors import UserError
from po_assets.teacher.settings import BatchPlan, TeacherLLM, api_key, folder_name, resolve
from po_assets_tests.teacher.scenes import KEY, KEY_VARIABLE


def good(**changes: object) -> TeacherLLM:
    return TeacherLLM(**({"model": "m", "api_key_variable": ""} | changes))  # type: ignore[arg-type]


def test_every_wrong_setting_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One look at the message is enough to correct all of them."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    teacher = TeacherLLM(
        base_url="ftp://somewhere",
        model=" ",
        api_key_variable=KEY_VARIABLE,
        temperature=0.0,
        max_output_tokens=0,
        token_limit_parameter="tokens",
        extra_body={"model": "other"},
        timeout_seconds=0,
        concurrency=0,
        requests_per_minute=0,
        retries=-1,
        price_per_million_input_tokens=-1,
    )
    plan = BatchPlan(generate=0, tries=2, min_score=1.5, max_rows=-1, max_tokens=-1, max_cost=-0.5, min_acceptance=2)
    with pytest.raises(UserError) as caught:
        resolve(teacher, plan)
    for name in (
        *("base_url", "model is empty", KEY_VARIABLE, "max_output_tokens", "token_limit_parameter", "extra_body"),
        *("timeout_seconds", "concurrency", "requests_per_minute", "retries", "price_per_million_input_tokens"),
        *("generate", "tries is 2 with temperature 0", "min_score", "max_rows", "max_tokens", "max_cost"),
        "min_acceptance",
    ):
        assert name in str(caught.value), name


def test_a_budget_in_money_without_prices_is_refused() -> None:
    """It would never end the batch."""
    with pytest.raises(UserError, match=r"max_cost is 5\.0, but both prices are 0"):
        resolve(good(), BatchPlan(max_cost=5))


def test_a_key_in_the_place_of_its_variable_is_not_repeated() -> None:
    """People paste keys into the first field that says key."""
    with pytest.raises(UserError, match="api_key_variable takes the variable's name, never the key") as caught:
        resolve(good(api_key_variable=KEY), BatchPlan())
    assert KEY not in str(caught.value)


def test_a_key_in_the_address_is_refused_and_not_repeated() -> None:
    """Addresses are logged."""
    with pytest.raises(UserError, match="base_url carries a user, password or query") as caught:
        resolve(good(base_url=f"https://user:{KEY}@example.org/v1"), BatchPlan())
    assert KEY not in str(caught.value)


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """And from nowhere else; the line end that it was read with is none of it."""
    monkeypatch.setenv(KEY_VARIABLE, f"{KEY}\n")
    settings = resolve(good(api_key_variable=KEY_VARIABLE), BatchPlan())
    assert api_key(settings.endpoint) == KEY
    assert KEY not in repr(settings)


@pytest.mark.parametrize("wrong", ["\n", "\x7f", "ü", "\u2011"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """Two keys in two lines, or a hyphen that a word processor made pretty."""
    monkeypatch.setenv(KEY_VARIABLE, f"{KEY}{wrong}{KEY}")
    with pytest.raises(
        UserError, match=f"the key in the environment variable {KEY_VARIABLE} holds a character that"
    ) as caught:
        resolve(good(api_key_variable=KEY_VARIABLE), BatchPlan())
    assert KEY not in str(caught.value)


def test_only_what_decides_the_answers_decides_the_journal() -> None:
    """A raised limit, a new price or another pace must not pay for everything again."""

    def folder(**changes: object) -> str:
        return folder_name(resolve(good(**changes), BatchPlan()).endpoint, "1")

    same = folder()
    assert folder(max_output_tokens=9, concurrency=2, timeout_seconds=9, stream=False, retries=0) == same
    for change in (
        {"model": "n"},
        {"base_url": "http://other/v1"},
        {"temperature": 0.5},
        {"instructions": "Be kind."},
        {"extra_body": {"reasoning_effort": "low"}},
    ):
        assert folder(**change) != same, change


def test_environment_variables_set_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a job can be launched without typing."""
    monkeypatch.setenv("PO_TEACHER_BASE_URL", "http://127.0.0.1:8001/v1")
    monkeypatch.setenv("PO_TEACHER_MODEL", "smollm")
    teacher = TeacherLLM()
    assert (teacher.base_url, teacher.model) == ("http://127.0.0.1:8001/v1", "smollm")
