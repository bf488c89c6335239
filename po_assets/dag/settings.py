"""Settings: one pydantic class each, which is also the Dagster resource that the Launchpad shows.

A field is written once, with its bound and its default; the docstring below it is its description. Wrong settings are
one `UserError` that lists all of them; it fails a run before its first step.
"""

import copy
import difflib
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar

import dagster as dg
from pydantic import ConfigDict, ValidationError, create_model
from pydantic_core import ErrorDetails

from po_assets.errors import UserError, all_faults
from po_assets.storage import digest_of
from po_assets.text import amount

# pydantic's error types, in the words of a person who mends a setting.
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
_TYPES = {
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "finite_number": "a finite number",
    "int": "a whole number",
    "list": "a list",
    "string": "a string",
}


_PLAIN = (bool, int, float, str, list, dict, type(None))


class Settings(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Base of all settings: unknown keys are refused, values are not converted, all faults are told at once."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    noun: ClassVar[str] = "settings"
    """What a person calls them, in errors: `the training recipe`."""
    without_effect: ClassVar[frozenset[str]] = frozenset()
    """Fields on which no result depends (how often something is saved, say); they are not part of the fingerprint."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise settings_error(type(self), error) from None

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """A description is one line, however its docstring is wrapped."""
        for field in cls.model_fields.values():
            field.description = field.description and " ".join(field.description.split())

    @classmethod
    def configure_at_launch(cls, **values: Any) -> Any:
        """The resource with these defaults, to be changed in the Launchpad.

        They become defaults of a subclass: Dagster's own way forgets the value of a Literal field, and a None.
        """
        plain = {name: value for name, value in values.items() if isinstance(value, _PLAIN)}
        fields: dict[str, Any] = {}
        for name, value in plain.items():
            field = copy.copy(cls.model_fields[name])
            field.default, field.default_factory = value, None
            fields[name] = (field.annotation, field)
        known = {"use_attribute_docstrings": False}  # the descriptions are there: a search would cost each step 0.1 s
        changed = create_model(
            cls.__name__, __base__=cls, __module__=cls.__module__, __doc__=cls.__doc__, __cls_kwargs__=known, **fields
        )
        resources = {name: value for name, value in values.items() if name not in plain}
        return super(Settings, changed).configure_at_launch(**resources)

    def values(self) -> dict[str, Any]:
        """Every value by name."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def effective(self) -> dict[str, Any]:
        """The values on which results depend, as plain data."""
        return {
            name: value
            for name, value in sorted(self.values().items())
            if name not in self.without_effect and not isinstance(value, dg.ConfigurableResource)
        }

    def fingerprint(self) -> str:
        """Digest (sha256, hex) of the values on which results depend."""
        return digest_of(self.effective())


def settings_error(settings: type[Settings], error: ValidationError) -> UserError:
    """Every fault of a validation, as sentences with the value and what is allowed."""
    faults = [_sentence(settings, detail) for detail in error.errors()]
    return all_faults(f"{settings.noun[:1].upper()}{settings.noun[1:]}: {amount(len(faults), 'wrong setting')}", faults)


def _plain_number(value: object) -> str:
    """A number that stands as text, in the spelling that YAML takes for one (it takes 2e-3 for text); else nothing."""
    try:
        number = Decimal(value) if isinstance(value, str) else Decimal("nan")
    except InvalidOperation:
        return ""
    return f"{number:f}" if number.is_finite() and abs(number.adjusted()) < 20 else ""


def _sentence(settings: type[Settings], detail: ErrorDetails) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(name, list(settings.model_fields), n=1)
        known = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(settings.model_fields))}."
        return f"{name!r} is not a setting; {known}"
    if kind == "missing":
        return f"{name} is missing."
    if kind in _BOUNDS:
        word, key = _BOUNDS[kind]
        return f"{name} is {value!r}; it must be {word} {context[key]:g}."
    if kind == "literal_error":
        return f"{name} is {value!r}; it must be {context['expected']}."
    if kind == "value_error":  # of a validator, which says what is wrong itself
        return str(context["error"])
    for prefix, words in _TYPES.items():
        if kind.startswith(prefix):
            if prefix in ("float", "int") and (plain := _plain_number(value)):
                return f"{name} is {value!r}, which is text; it must be {words}: write {plain}, without quotes."
            return f"{name} is {value!r}; it must be {words}."
    return f"{name} is {value!r}: {detail['msg']}."
