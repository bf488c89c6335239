"""From readable rows to training rows: `supervised_dataset` and `eval_cases`, their checks, and the selection policy.

Reading landed rows belongs to `teacher`; turning training rows into tokens to train on belongs to `student`.
"""
