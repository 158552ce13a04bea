"""The base of every settings class that is read from a ``parameters`` file."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen group of parameters in which an unknown name is an error instead of being ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)
