"""The one way to register an asset check: a decorator on a function that returns a `Verdict`.

Also the one place where an error that a person can mend becomes Dagster's failure: `user_errors_fail_the_step`.

    checks = AssetChecks[Evidence]("normalized_teacher")

    @checks.register(blocking=True)
    def ledger_balances(found: Evidence) -> Verdict:
        \"\"\"Every landed line has exactly one outcome, by counting the lines of the files themselves.\"\"\"
        ...

The function's name is the check's name, its docstring the description in the UI. A check that looks at every row of a
table is a class instead, made from the evidence, with `add(row)` and `verdict()`: one pass over the table then serves
all of them in constant memory. The checks of one asset run in one step, since each step of a run may be a process that
loads the code location again:

    @checks.step
    def normalized_teacher_checks(artifacts: Artifacts, selection: IntakeSettings) -> Evidence:
        \"\"\"Gather what the checks look at; parameters are resources, by name.\"\"\"
"""

import contextlib
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import dagster as dg

from po_assets.dag.verdict import CannotJudge, Severity, Verdict, to_check_result
from po_assets.errors import UserError
from po_assets.storage import disk_fault
from po_assets.storage.layout import step_history_fault

Evidence = TypeVar("Evidence")
_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")


@contextlib.contextmanager
def user_errors_fail_the_step() -> Iterator[None]:
    """A `UserError` inside the block fails the step with its sentence and is not tried again: nothing would change.

    So does a disk that is full or cannot be written to, and one that has no room for Dagster's own record of the step.
    Also a decorator, put between `@dg.asset` and the function.
    """
    if fault := step_history_fault():
        raise dg.Failure(description=fault, allow_retries=False)
    try:
        yield
    except UserError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    except Exception as error:
        if (sentence := disk_fault(error)) is None:
            raise
        raise dg.Failure(description=sentence, allow_retries=False) from error


def asked_for_alone(context: dg.AssetExecutionContext, what: str, job: str) -> bool:
    """Whether the run makes this asset only; says why nothing is done where it makes others too ("Materialize all").

    Counted in the run's job: a run of the whole graph need not name what it selects.
    """
    alone = len(context.job_def.asset_layer.selected_asset_keys) <= 1
    if not alone:
        key = context.asset_key.to_user_string()
        context.log.warning("%s: materialize %s alone, or launch the job %s.", what, key, job)
    return alone


class RowCheck(Protocol):
    """Sees every row of a table once, then gives its verdict."""

    def add(self, row: Any) -> object:
        """Look at one row."""

    def verdict(self) -> Verdict:
        """What was found."""


@dataclass(frozen=True)
class _Registered(Generic[Evidence]):
    name: str
    description: str
    blocking: bool
    severity: Severity
    judge: Callable[[Evidence], Verdict | RowCheck]

    def look_at(self, evidence: Evidence | Verdict) -> Verdict | RowCheck:
        """The verdict, or what is to see the rows first."""
        if isinstance(evidence, Verdict):
            return evidence
        try:
            return self.judge(evidence)
        except CannotJudge as error:
            return error.verdict


class AssetChecks(Generic[Evidence]):
    """The checks of one asset, in the order in which they were registered."""

    def __init__(self, asset: str, *, rows: Callable[[Evidence], Iterable[Any]] | None = None) -> None:
        """`rows` gives the table that the row checks look at, from the evidence."""
        self.asset = asset
        self._rows = rows
        self._registered: dict[str, _Registered[Evidence]] = {}

    Judge = TypeVar("Judge", bound=Callable[..., Verdict | RowCheck])

    def register(self, *, blocking: bool = False, severity: Severity = "ERROR") -> Callable[[Judge], Judge]:
        """Make a check of a function of the evidence, or of a class of row checks (`FitsContext` is `fits_context`).

        Args:
            blocking: what is downstream is not made when the check fails with severity ERROR.
            severity: of a failure, unless the verdict says otherwise.
        """

        def add(judge: "AssetChecks.Judge") -> "AssetChecks.Judge":
            name = _CAPITAL.sub("_", judge.__name__).lower()
            if name in self._registered:
                raise ValueError(f"{self.asset} has two checks named {name!r}")
            description = " ".join((inspect.getdoc(judge) or "").split("\n\n")[0].split())
            self._registered[name] = _Registered(name, description, blocking, severity, judge)
            return judge

        return add

    @property
    def names(self) -> tuple[str, ...]:
        """The checks' names, in order."""
        return tuple(self._registered)

    def verdicts(self, evidence: Evidence | Verdict, wanted: Collection[str] | None = None) -> dict[str, Verdict]:
        """The verdicts of the wanted checks (all by default): one pass over the rows, if any check looks at them.

        A verdict in the evidence's place, because there is none, is that of every check.
        """
        chosen = [check for check in self._registered.values() if wanted is None or check.name in wanted]
        found = {check.name: check.look_at(evidence) for check in chosen}
        watching = [judge for judge in found.values() if not isinstance(judge, Verdict)]
        if watching and not isinstance(evidence, Verdict):
            if self._rows is None:
                raise TypeError(f"the checks of {self.asset} look at rows, and AssetChecks was given none")
            for row in self._rows(evidence):
                for judge in watching:
                    judge.add(row)
        verdicts: dict[str, Verdict] = {}
        for check in chosen:
            given = found[check.name]
            verdict = given if isinstance(given, Verdict) else given.verdict()
            verdicts[check.name] = replace(verdict, severity=verdict.severity or check.severity)
        return verdicts

    def step(
        self,
        gather: Callable[..., Evidence | Verdict] | None = None,
        *,
        complete: Callable[[Evidence, dict[str, Verdict]], None] | None = None,
        **options: Any,
    ) -> Any:
        """Dagster's definition of all these checks as one step; a decorator of the function that gathers the evidence.

        Args:
            gather: its parameters are resources, by name.
            complete: called with evidence and verdicts when all checks ran, none deselected.
            options: further arguments of `dagster.multi_asset_check` (`pool`, `op_tags`, `retry_policy`).
        """
        if gather is None:
            return lambda function: self.step(function, complete=complete, **options)
        resources = list(inspect.signature(gather).parameters)

        def run(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
            wanted = {key.name for key in context.selected_asset_check_keys}
            with user_errors_fail_the_step():
                evidence = gather(**{name: getattr(context.resources, name) for name in resources})
                verdicts = self.verdicts(evidence, wanted)
                if complete and not isinstance(evidence, Verdict) and wanted >= set(self.names):
                    complete(evidence, verdicts)
            for name, verdict in verdicts.items():
                yield to_check_result(name, self.asset, verdict)

        run.__doc__ = gather.__doc__
        return dg.multi_asset_check(
            name=gather.__name__,
            specs=[
                dg.AssetCheckSpec(check.name, asset=self.asset, blocking=check.blocking, description=check.description)
                for check in self._registered.values()
            ],
            can_subset=True,
            required_resource_keys=set(resources),
            **options,
        )(run)
