"""The base of every settings class that is read from a ``parameters`` file."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Settings(BaseModel):
    """A frozen group of parameters in which an unknown name is an error instead of being ignored.

    Attributes:
        without_effect: Names of those that change no result, such as the number of processes.
    """

    without_effect: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(extra="forbid", frozen=True)


class Described(Settings):
    """Settings in which yes and no of YAML are refused where a text is meant."""

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_text(cls, value: Any) -> Any:
        for name, given in value.items() if isinstance(value, dict) else ():
            field = cls.model_fields.get(name)
            if field is not None and field.annotation is not bool:
                parts = given
                if isinstance(given, dict):
                    parts = [*given, *(given.values() if field.annotation == dict[str, str] else ())]
                for part in parts if isinstance(parts, list) else [parts]:
                    if isinstance(part, bool):
                        raise ValueError(
                            f"'{name}' holds {str(part).lower()}, which is what YAML makes of words such as no, NO, "
                            "off, yes, on and true: put the word in quotes"
                        )
        return value
