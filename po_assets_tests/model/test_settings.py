from pathlib import Path

import pytest

from po_assets.errors import UserError
from po_assets.model import EMBEDDED_MODEL, BaseModel

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_the_default_profile_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing set means the model that needs neither network nor GPU."""
    monkeypatch.delenv("PO_PROFILE", raising=False)
    spec = BaseModel().resolved()
    assert (spec.profile, spec.name, spec.kind, spec.quantization) == ("embedded", EMBEDDED_MODEL, "embedded", "none")


def test_the_environment_chooses_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """PO_PROFILE=paper is the one setting that switches to the paper's model, with a pinned revision."""
    monkeypatch.setenv("PO_PROFILE", "paper")
    spec = BaseModel().resolved()
    assert (spec.name, spec.quantization, spec.kind) == ("Qwen/Qwen2.5-7B-Instruct", "auto", "hub")
    assert spec.revision is not None
    assert len(spec.revision) == 40


def test_all_wrong_settings_are_reported_at_once() -> None:
    """One attempt shows every fault, each with its value and what is allowed."""
    with pytest.raises(UserError) as raised:
        BaseModel(profile="papre", max_length=3, quantization="int3")
    message = str(raised.value)
    for expected in ("'papre'", "'embedded' or 'paper'", "max_length is 3", "'int3'", "'auto', 'none' or 'nf4'"):
        assert expected in message


def test_a_wrong_profile_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code location still loads; what uses the model says it."""
    monkeypatch.setenv("PO_PROFILE", "papre")
    with pytest.raises(UserError, match=r"profile is 'papre'; choose 'embedded' or 'paper' .*PO_PROFILE"):
        BaseModel().resolved()


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "0123abc"])
def test_a_hub_model_needs_a_pinned_revision(revision) -> None:
    """A branch or a tag can come to mean other weights."""
    with pytest.raises(UserError, match=r"pin it to a commit hash.* If a folder is meant: there is none at '/"):
        BaseModel(base_model="owner/model", revision=revision).resolved()


def test_the_profiles_revision_does_not_follow_another_model() -> None:
    """A commit belongs to one repository: overriding the paper's model without a revision is refused."""
    with pytest.raises(UserError, match="revision of base_model 'other/model' is None"):
        BaseModel(profile="paper", base_model="other/model").resolved()
    assert BaseModel(profile="paper", base_model="other/model", revision=COMMIT).resolved().revision == COMMIT


def test_a_folder_needs_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder is taken as it is, also when its path looks like a Hub id."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert BaseModel(base_model="owner/model").resolved().kind == "folder"
    assert BaseModel(base_model=str(tmp_path)).resolved().kind == "folder"
