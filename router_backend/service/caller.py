"""Who asks: what every part below the door may know of the request at hand without being handed it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """The request at hand.

    Attributes:
        request_id: as in `x-request-id`; empty outside a request.
        key: the name of its API key, never the key; empty where none was sent or none is needed.
        admin: whether it came with the admin key.
        trace_id: of its trace, in W3C's form; empty where there is none.
    """

    request_id: str = ""
    key: str = ""
    admin: bool = False
    trace_id: str = ""

    @property
    def owner(self) -> str:
        """Whose the request is, where what it leaves behind is kept apart. (No name of a key holds a colon.)"""
        return ":admin" if self.admin else self.key


caller: ContextVar[Caller] = ContextVar("caller", default=Caller())  # noqa: B039 - it is frozen
