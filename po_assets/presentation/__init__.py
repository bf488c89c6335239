"""What people see in Dagster: verdicts of checks, tables of rows, pictures, column schemas.

How a figure is computed belongs to the stage that knows it; here it only gets its shape.
"""

from po_assets.presentation.pictures import bar_chart, figure_picture, histogram, line_chart
from po_assets.presentation.tables import column_schema, records_table
from po_assets.presentation.verdict import Verdict, check_description, to_check_result

__all__ = [
    "Verdict",
    "bar_chart",
    "check_description",
    "column_schema",
    "figure_picture",
    "histogram",
    "line_chart",
    "records_table",
    "to_check_result",
]
