"""The student: from supervised rows to a LoRA adapter on the base model.

`training` reads top to bottom; what is hand-made for the speed of a CPU is in `po_assets.model.cpu`. Generating and
scoring answers belongs to `evaluation`.
"""
