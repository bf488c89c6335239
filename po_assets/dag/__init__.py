"""What is Dagster's in every stage: verdicts and checks, resources, the IO manager, tables and pictures of the UI.

How a figure is computed belongs to the stage that knows it; here it only gets its shape.
"""

from po_assets.dag.artifacts import Artifacts, JsonlIOManager, read_frame, stage_frames
from po_assets.dag.checks import AssetChecks, asked_for_alone, user_errors_fail_the_step
from po_assets.dag.pages import (
    bar_chart,
    column_schema,
    data_uri,
    figure_picture,
    histogram,
    line_chart,
    page_list,
    page_table,
    place,
    records_table,
    rounded,
    short,
)
from po_assets.dag.settings import Settings
from po_assets.dag.tracking import Tracking
from po_assets.dag.verdict import (
    CannotJudge,
    GateRecord,
    Severity,
    Verdict,
    Violations,
    check_description,
    gate_record,
    read_gate,
    to_check_result,
    write_gate,
)
