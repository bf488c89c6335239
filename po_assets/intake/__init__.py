"""From landed lines to readable rows: `raw_teacher` and `normalized_teacher`, their checks, and the row ledger.

Which of the readable rows are trained on belongs to `dataset`; the metric and the validator to `product_owner`.
"""
