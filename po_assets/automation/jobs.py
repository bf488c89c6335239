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

conflicts_on_demand = dg.define_asset_job(
    name="conflicts_on_demand",
    description="Conflicts rows made from teacher rows, up to the share set in the Launchpad under resource curation; "
    "landed as one file, on which the sensor then runs the graph.",
    selection=dg.AssetSelection.assets("synthetic_conflicts"),
)

candidates_for_people = dg.define_asset_job(
    name="candidates_for_people",
    description="A review file with the answers that a person should look at.",
    selection=dg.AssetSelection.assets("review_candidates"),
)

export_student = dg.define_asset_job(
    name="export_student",
    description="The current student for other runtimes, with the check that they answer as the adapter does. Forms "
    "and number of cases are set in the Launchpad under resource export.",
    selection=dg.AssetSelection.assets("exported_student"),
)

ask_teacher = dg.define_asset_job(
    name="ask_teacher",
    description="New teacher rows from an LLM, landed as one file; the sensor then runs the graph on them. Model, "
    "payloads and budget are set in the Launchpad under resources teacher_llm and batch_plan.",
    selection=dg.AssetSelection.assets("teacher_batch"),
    # It waits for an API for minutes or hours, and writes nothing that the graph reads until it lands: it must not keep
    # other runs from the artifact root, as the default executor would.
    executor_def=dg.in_process_executor,
)
