"""The checks of synthetic_conflicts, in one step. What they look at, and what they say, belongs to `verdicts`."""

from collections.abc import Iterator

import dagster as dg

from po_assets.dag import Artifacts, to_check_result
from po_assets.dataset.settings import SelectionSettings
from po_assets.errors import UserError
from po_assets.review.assets import synthetic_conflicts
from po_assets.review.conflicts import audit_table

_ASSET = "synthetic_conflicts"
_DESCRIPTIONS = {
    "share_reached": "With the made rows, the training rows have the wanted share of conflicts.",
    "rows_are_sound": "Every made row passes the validator, scores enough by the metric, and says where it comes from.",
    "form_is_not_telling": "A classifier that sees no word tells made rows from their parents no better than chance.",
}
BLOCKING = ("rows_are_sound", "form_is_not_telling")


@dg.multi_asset_check(
    name="synthetic_conflicts_checks",
    specs=[
        dg.AssetCheckSpec(name, asset=synthetic_conflicts, blocking=name in BLOCKING, description=description)
        for name, description in _DESCRIPTIONS.items()
    ],
    can_subset=True,
)
def synthetic_conflicts_checks(
    context: dg.AssetCheckExecutionContext, artifacts: Artifacts, selection: SelectionSettings
) -> Iterator[dg.AssetCheckResult]:
    """Audit the published table again."""
    try:
        verdicts = audit_table(artifacts.layout, selection.near_duplicate_threshold)
    except UserError as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    for key in context.selected_asset_check_keys:
        yield to_check_result(key.name, _ASSET, verdicts[key.name])


curation_checks = [synthetic_conflicts_checks]
