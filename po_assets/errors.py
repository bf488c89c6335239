"""The one error that a person can do something about; everything else is a fault of the program."""

from collections.abc import Sequence


class UserError(ValueError):
    """Something that the person at the keyboard can mend.

    The message is one or more whole sentences: what stands where (the value quoted), what is wanted, and the way out.
    A ValueError, so that pydantic collects it from validators. Plain functions raise it; `dag.checks` turns it into
    Dagster's failure, `cli` into a line and an exit status.
    """


def all_faults(what: str, faults: Sequence[str], most: int | None = None) -> UserError:
    """One error that lists every fault, so that one attempt shows them all.

    Args:
        what: the sentence before the list, without its full stop: `the recipe has 2 wrong settings`.
        faults: a sentence each.
        most: so many are listed, and how many more there are.
    """
    more = [f"and {len(faults) - most} more"] if most and len(faults) > most else []
    return UserError(f"{what}:\n" + "\n".join(f"- {fault}" for fault in [*faults[:most], *more]))
