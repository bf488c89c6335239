"""What one request brought: a whole answer, or why there is none and whether it is worth asking again.

Plain values; `client` makes them, `journal` keeps them, `outcomes` judges them.
"""

from dataclasses import dataclass
from enum import StrEnum


class Charge(StrEnum):
    """What a request without a bill may have cost."""

    NOTHING = "nothing"
    """The server turned it away before any work."""
    UNKNOWN = "unknown"
    """It may have worked on it: counted as the most that the request can cost."""


@dataclass(frozen=True)
class Usage:
    """Tokens that the server says it charges."""

    prompt: int
    completion: int


@dataclass(frozen=True)
class Fault:
    """Why no whole answer came."""

    reason: str
    """Short, and the same for all of its kind."""
    detail: str = ""
    cut: bool = False
    """An answer had begun, or may have."""
    again: bool = False
    """The same request may succeed in a while."""
    stops: bool = False
    """No request can succeed until somebody changes something."""
    wait: float | None = None
    """Seconds that the server asks to wait."""
    charge: Charge = Charge.UNKNOWN


@dataclass(frozen=True)
class Reply:
    """The outcome of one request; `fault` is None when a whole answer came, however bad or short it is."""

    text: str = ""
    finish_reason: str = ""
    refusal: str = ""
    model: str = ""
    """The model as the server names it."""
    usage: Usage | None = None
    fault: Fault | None = None
