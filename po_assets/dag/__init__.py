"""What is Dagster's in every stage: verdicts and checks, resources, the IO manager, tables and pictures of the UI.

How a figure is computed belongs to the stage that knows it; here it only gets its shape.
"""

from po_assets.dag.artifacts import Artifacts, JsonlIOManager, read_frame, stage_frames
from po_assets.dag.checks import AssetChecks, asked_for_alone, user_errors_fail_the_step
from po_assets.dag.gate import GateRecord, gate_record, read_gate, write_gate
from po_assets.dag.pages import page_list, page_table, place, short
from po_assets.dag.pictures import bar_chart, data_uri, figure_picture, histogram, line_chart
from po_assets.dag.settings import Settings
from po_assets.dag.tracking import Tracking
from po_assets.dag.verdict import (
    CannotJudge,
    Severity,
    Verdict,
    Violations,
    check_description,
    column_schema,
    records_table,
    rounded,
    to_check_result,
)
