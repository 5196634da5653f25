"""The object that the clients ask for."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import BaseModel, Field


class Ticket(BaseModel):
    """A ticket of a help desk."""

    title: str
    priority: Literal["low", "normal", "urgent"]
    hours: Annotated[int, Field(description="Work that it takes, in hours.")]
    tags: list[str]
    due: date
    reporter: Annotated[str, Field(json_schema_extra={"format": "email"})]
    assignee: str | None
