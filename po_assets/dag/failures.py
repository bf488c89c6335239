"""The one place where an error that a person can mend becomes Dagster's failure."""

import contextlib
from collections.abc import Iterator

import dagster as dg

from po_assets.errors import UserError


@contextlib.contextmanager
def user_errors_fail_the_step() -> Iterator[None]:
    """A `UserError` inside the block fails the step with its sentence and is not tried again: nothing would change.

    Also a decorator, put between `@dg.asset` and the function.
    """
    try:
        yield
    except UserError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
