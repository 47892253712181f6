"""The strict base of every file format that a person writes: unknown keys are errors, values are frozen."""

from pydantic import BaseModel, ConfigDict

__all__ = ["Strict"]


class Strict(BaseModel):
    """A pydantic model that accepts no unknown field, no implicit conversion of text, and no later change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)
