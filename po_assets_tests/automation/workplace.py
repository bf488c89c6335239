"""A place to run the whole graph in seconds: a few short rows, three evaluation cases, a tiny base model, an instance."""

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from po_assets_tests.evaluation.scenes import CONCEPT, REQUIREMENTS, REVIEW, VISION, cases, cases_table
from po_assets_tests.model.tiny_model import make_tiny_model

REPOSITORY = Path(__file__).resolve().parents[2]
ROWS = 8
CONFLICTS_REVIEW = REVIEW.replace("status: aligned", "status: conflicts").replace(
    "conflicts: []", "conflicts:\n  - C001 keeps the tool on one server while the concept serves all of Norway"
)


@dataclass(frozen=True)
class Workplace:
    """Folders of one test."""

    folder: Path
    model: Path | None = None
    """The base model's folder, where another place has it."""

    @property
    def tiny(self) -> Path:
        """The base model."""
        return self.model or self.folder / "tiny"

    @property
    def root(self) -> Path:
        """The artifact root."""
        return self.folder / "artifacts"

    @property
    def incoming(self) -> Path:
        """The landing folder."""
        return self.root / "incoming"

    @property
    def home(self) -> Path:
        """DAGSTER_HOME, with the dagster.yaml of `make ui`."""
        return self.folder / "home"

    def environment(self, **variables: str) -> dict[str, str]:
        """The environment in which a user of this place would start Dagster."""
        own = {
            "DAGSTER_HOME": str(self.home),
            "PO_ARTIFACTS_ROOT": str(self.root),
            "PO_TEST_BASE_MODEL": str(self.tiny),
            "PYTHONWARNINGS": "ignore",
            "TOKENIZERS_PARALLELISM": "false",
        }
        return {**os.environ, **own, **variables}

    def land(self, name: str, *rows: dict[str, Any] | str, age: float = 60) -> Path:
        """Land a file whose last change is `age` seconds ago; a row that is a text is written as it is."""
        path = self.incoming / f"{name}.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        os.utime(path, (time.time() - age,) * 2)
        return path


def make_workplace(folder: Path) -> Workplace:
    """A workplace with one landed file of good rows, one of them with the status conflicts."""
    place = Workplace(folder)
    place.incoming.mkdir(parents=True)
    (place.root / "evaluation").mkdir()
    place.home.mkdir()
    shutil.copy(REPOSITORY / "deploy" / "local" / "dagster.yaml", place.home)
    make_tiny_model(place.tiny, context=6000)
    place.land("good", *good_rows())
    table = cases_table(cases(3)).to_dict(orient="records")
    (place.root / "evaluation" / "po_eval_cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    return place


def good_rows(count: int = ROWS, name: str = "FerryPlan") -> list[dict[str, Any]]:
    """Rows in the teacher format whose inputs are not those of the evaluation cases; the last one is conflicts."""
    return [good_row(f"{name}{number}", conflicts=number == count) for number in range(1, count + 1)]


def good_row(product: str, *, conflicts: bool = False) -> dict[str, Any]:
    """A row about a product of this name."""
    concept, requirements, vision, review = (
        text.replace("TideTable", product).replace("harbour", "ferry").replace("berth", "crossing")
        for text in (CONCEPT, REQUIREMENTS, VISION, CONFLICTS_REVIEW if conflicts else REVIEW)
    )
    return {
        "concept": concept,
        "requirements_yaml": requirements,
        "teacher_product_vision": vision,
        "teacher_product_owner_review": review,
        "score": 0.9,
        "metadata": {},
    }
