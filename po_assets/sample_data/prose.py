"""Sentence forms that concepts and requirements are written in, and small helpers of English.

The forms of a vision stand in `vision`, those of a review in `review`.
"""

from collections.abc import Sequence
from random import Random

from po_assets.sample_data.draws import pick

TRAINING_REGIONS = (
    "Galicia", "northern Italy", "Scotland", "Bavaria", "Ontario", "the Netherlands", "Catalonia", "southern Chile",
    "Wales", "Brittany", "Kenya", "Denmark", "Queensland", "Slovenia", "Andalusia", "Vermont", "Estonia", "Tyrol",
    "Colombia", "Flanders", "Kerala", "Portugal", "Nova Scotia", "Moravia", "Saxony", "Costa Rica",
)  # fmt: skip
EVALUATION_REGIONS = (
    "Norway", "Tasmania", "Corsica", "Hokkaido", "Sardinia", "Patagonia", "Iceland", "Savoy", "Crete", "Uruguay",
)  # fmt: skip

CONCEPTS = (
    (
        "{product} is {a_category} for {users} at {organisation} in {region}. Today {problem}. "
        "It must {needs}. It does not {never}."
    ),
    (
        "{Organisation} in {region} want {a_category} called {product} for {users}, because {problem}. "
        "It has to {needs}. It will not {never}."
    ),
    (
        "At {organisation} in {region} {problem}. {product} is {a_category} that must {needs}. "
        "It serves {users} and does not {never}."
    ),
    (
        "{product}, {a_category}, is made for {users} at {organisation} in {region}, where {problem}. "
        "The product must {needs}. {product} does not {never}."
    ),
    (
        "We are building {product}, {a_category} for {organisation} in {region}. Its job is to {needs}. "
        "It does not {never}. {Users} need it because {problem}."
    ),
    (
        "{Problem}, say {users} at {organisation} in {region}. {A_category} named {product} shall {needs}. "
        "It shall not {never}."
    ),
    (
        "{Users} at {organisation} in {region} ask for {a_category}, as {problem}. {product} must {needs}. "
        "It does not {never}."
    ),
    (
        "{product} is planned for {organisation} in {region}. {Users} complain that {problem}. "
        "This {category} is to {needs}. It will not {never}."
    ),
)

REQUIREMENT_FORMS = (
    "{Who} can {action}",
    "{Who} can {action}",
    "{Who} must be able to {action}",
    "Let {who} {action}",
    "Allow {who} to {action}",
)

TITLES = (
    "{product} requirements",
    "Requirements for {product}",
    "{product} first release",
    "{product} {category}",
)

_NUMBERS: dict[str, tuple[str, ...]] = {
    "{percent}": ("10", "15", "20", "25", "30", "35", "40", "50"),
    "{small}": ("2", "3", "4", "5", "8"),
    "{big}": ("200", "300", "500", "800"),
    "{days}": ("30", "60", "90", "180"),
    "{hours}": ("4", "8", "12", "24"),
    "{uptime}": ("99", "99.5", "99.8", "99.9"),
    "{money}": ("8000", "12000", "20000", "30000"),
}


def fill_numbers(rng: Random, text: str) -> str:
    """The text with each placeholder such as `{percent}` replaced by a drawn figure."""
    if "{" not in text:
        return text
    for placeholder, figures in _NUMBERS.items():
        if placeholder in text:
            text = text.replace(placeholder, pick(rng, figures))
    return text


def first_upper(text: str) -> str:
    """The text with its first letter in upper case and nothing else changed."""
    return text[:1].upper() + text[1:]


def article(noun: str) -> str:
    """The noun behind "a" or "an", chosen by its first letter."""
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def join(items: Sequence[str]) -> str:
    """The items as English prose: "a", "a and b", "a, b and c"; nothing for no item."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
