"""The student: from supervised rows to a LoRA adapter on the base model.

`training` reads top to bottom; the `fast_*` modules hold one optimization each. Generating and scoring answers
belongs to `evaluation`.
"""
