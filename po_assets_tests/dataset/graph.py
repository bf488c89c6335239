"""The graph up to the dataset with all its checks, run in Dagster with words for tokens, for tests."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest

from po_assets.dag import Artifacts, JsonlIOManager
from po_assets.dataset import assets, checks
from po_assets.dataset.publication import TokenBudget
from po_assets.dataset.settings import PromptSettings, SelectionSettings
from po_assets.intake.assets import normalized_teacher, raw_teacher
from po_assets.intake.checks import teacher_checks
from po_assets.model import BaseModel
from po_assets.product_owner.templates import Prompt
from po_assets.storage import Layout
from po_assets_tests.dataset.tables import WORD_COUNT, case, write_cases

ASSETS = [raw_teacher, normalized_teacher, assets.eval_cases, assets.supervised_dataset]


def words_for_tokens(_model: BaseModel, _layout: Layout, prompt: Prompt) -> TokenBudget:
    """Words instead of a model's tokens, in the asset and in its checks."""
    return replace(WORD_COUNT, prompt=prompt)


def run(
    layout: Layout,
    selection: Any = None,
    cases: Iterable[Mapping[str, Any]] | None = (case(900), case(901)),
    prompt: PromptSettings | None = None,
    budget: Callable[..., TokenBudget] = words_for_tokens,
    **policy: Any,
) -> dg.ExecuteInProcessResult:
    """Materialize the graph with all checks, or only what is selected."""
    if cases is not None:
        write_cases(layout, cases)
    artifacts = Artifacts(root=str(layout.root))
    with pytest.MonkeyPatch.context() as patch:
        for module in (assets, checks):
            patch.setattr(module, "token_budget", budget)
        return dg.materialize(
            [*ASSETS, *teacher_checks, *checks.dataset_checks],
            selection=selection,
            resources={
                "artifacts": artifacts,
                "io_manager": JsonlIOManager(artifacts=artifacts),
                "selection": SelectionSettings(**policy),
                "base_model": BaseModel(),
                "prompt": prompt or PromptSettings(),
            },
            raise_on_error=False,
        )
