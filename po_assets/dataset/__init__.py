"""From readable rows to training rows: `supervised_dataset` and `eval_cases`, their checks, and the selection.

Reading landed rows belongs to `intake`; turning training rows into tokens to train on belongs to `training`.
"""
