"""po_assets: distil a teacher LLM into a Product Owner student, as a Dagster asset graph."""
