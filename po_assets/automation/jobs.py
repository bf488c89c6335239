"""The jobs: which assets are materialized together."""

import dagster as dg

main_job = dg.define_asset_job(
    name="product_owner_student",
    description="From landed teacher rows to a gated student: every asset of the graph, with its checks.",
    selection=dg.AssetSelection.assets(
        "raw_teacher",
        "normalized_teacher",
        "eval_cases",
        "supervised_dataset",
        "lora_adapter",
        "baseline_report",
        "eval_report",
    ),
)
