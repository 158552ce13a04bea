"""The base of every settings class that is read from a ``parameters`` file."""

from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator


class Settings(BaseModel):
    """A frozen group of parameters: no unknown names, no infinite numbers, and no yes or no for a number or a text.

    Attributes:
        without_effect: Names of those that change no result, such as the number of processes.
    """

    without_effect: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_words_of_yaml(cls, value: Any) -> Any:
        for name, given in value.items() if isinstance(value, dict) else ():
            field = cls.model_fields.get(name) if isinstance(name, str) else None
            if field is None:
                continue
            for part in _parts(given, names_only=field.annotation != dict[str, str]):
                if isinstance(part, bool) and not _takes_truth(field.annotation):
                    raise ValueError(
                        f"'{name}' holds {str(part).lower()}, which is what YAML makes of words such as no, NO, "
                        "off, yes, on and true: put the word in quotes, or write a number"
                    )
                if isinstance(part, str) and not part.isascii() and any("\ud800" <= sign <= "\udfff" for sign in part):
                    raise ValueError(f"'{name}' holds half of a character, which no file can hold: {part!a}")
        return value


def _parts(given: Any, names_only: bool) -> list[Any]:
    """Return the values of a list, the names of a mapping (with its values, where these are texts), or the value."""
    if isinstance(given, dict):
        return [*given] if names_only else [*given, *given.values()]
    return given if isinstance(given, list) else [given]


def _takes_truth(annotation: Any) -> bool:
    """Return whether yes and no are values of a type."""
    if annotation in (bool, Any, object):
        return True
    if get_origin(annotation) in (Union, UnionType, Annotated, list, tuple):
        return any(_takes_truth(part) for part in get_args(annotation))
    return False
