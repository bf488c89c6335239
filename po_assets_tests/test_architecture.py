"""The folders of the package: imports run one way, and what is imported often is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "po_assets"
# From the top down: a module may import from its own folder and from those below it.
ORDER = (
    "cli",
    "definitions",
    "automation",
    "serving",
    "teacher",
    "review",
    "evaluation",
    "training",
    "dataset",
    "intake",
    "model",
    "sample_data",
    "dag",
    "storage",
    "product_owner",
    "text",
    "errors",
)


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported(path: Path) -> set[str]:
    """The names below `po_assets` that a file imports, at whatever level."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= (
                {node.module} if node.module != "po_assets" else {f"po_assets.{alias.name}" for alias in node.names}
            )
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("po_assets.")}


def folder_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down_the_list_only(path: Path) -> None:
    """No circle can arise, and a folder can be read without those above it."""
    own = folder_of(path)
    above = {name for name in imported(path) if ORDER.index(name) < ORDER.index(own)}
    assert not above, f"{path.relative_to(PACKAGE)} ({own}) imports from above: {', '.join(sorted(above))}"


@pytest.mark.parametrize("folder", ["benchmarks"])
def test_nothing_but_tests_imports_from_the_tests(folder: str) -> None:
    """What users run stands on what users get."""
    for path in (PACKAGE.parent / folder).rglob("*.py"):
        assert "po_assets_tests" not in path.read_text(), path


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("po_assets.storage", ("dagster", "pandas", "torch", "transformers")),
        ("po_assets.product_owner", ("dagster", "pandas", "torch", "transformers")),
        ("po_assets.definitions", ("torch", "transformers", "peft", "llguidance", "matplotlib")),
    ],
)
def test_light_modules_bring_nothing_heavy(module: str, heavy: tuple[str, ...]) -> None:
    """Every step of a run, and every worker, imports them again."""
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
