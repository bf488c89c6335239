"""Words for people: numbers with their nouns, durations, text of others, progress and lines of a command."""

import math
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence


def amount(number: int, noun: str) -> str:
    """A number with its noun: `1 row`, `1,234 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def say(text: str) -> None:
    """A line of a command's standard output, at once; nothing in it acts on the terminal, whoever wrote it."""
    print(printable(text), flush=True)  # noqa: T201


def verb(number: int, singular: str, plural: str) -> str:
    """The verb that goes with a number."""
    return singular if number == 1 else plural


def first_upper(text: str) -> str:
    """The text with its first letter in upper case and nothing else changed."""
    return text[:1].upper() + text[1:]


def join(items: Sequence[str]) -> str:
    """The items as English prose: "a", "a and b", "a, b and c"; nothing for no item."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def duration(seconds: float) -> str:
    """Seconds for people: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    if not math.isfinite(seconds):
        return "unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def printable(text: str) -> str:
    """The text without characters that a terminal, a log or a page acts on or hides; their code points stand there.

    Line ends and tabs stay; so do letters of every script, and the joiners inside emoji.
    """
    return "".join(char if _is_plain(char) else _code_point(char) for char in text)


def shown(value: object, limit: int = 80) -> str:
    """Text that somebody else wrote (a file name, a key, a label), on one line and not longer than `limit` characters.

    A backtick is shown by its code point, since sentences that hold the text may be read as markdown.
    """
    text = printable(str(value)).replace("\n", "\\n").replace("\t", "\\t").replace("`", "\\x60")
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def fenced(text: str) -> str:
    """The text as a block of markdown that shows it as it is, whatever fences and markup stand in it."""
    longest = max((len(run) for run in re.findall("~+", text)), default=0)
    fence = "~" * max(4, longest + 1)
    return f"{fence}\n{printable(text)}\n{fence}"


def markdown_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of markdown; what is in a cell stays in it, its markup still acts."""
    head = list(columns)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _is_plain(char: str) -> bool:
    return char in "\n\t\u200d\ufe0f" or unicodedata.category(char) not in {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}


def _code_point(char: str) -> str:
    number = ord(char)
    return f"\\x{number:02x}" if number < 0x100 else f"U+{number:04X}"


class Progress:
    """Log lines and live numbers of long work, throttled. No progress bars: in a log they are noise."""

    def __init__(
        self,
        say: Callable[[str], None],
        observe: Callable[[dict[str, float]], None] | None = None,
        *,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`say` gets log lines, `observe` numbers to plot; the work asks `due` before it reports."""
        self.say = say
        self.clock = clock
        self._observe = observe
        self._every = every_seconds
        self._last = -math.inf

    def due(self, *, last: bool = False) -> bool:
        """Whether it is time for a report: the first, one every `every_seconds`, and the last."""
        now = self.clock()
        if not last and now - self._last < self._every:
            return False
        self._last = now
        return True

    def observe(self, numbers: dict[str, float]) -> None:
        """Pass numbers to plot through."""
        if self._observe:
            self._observe(numbers)
