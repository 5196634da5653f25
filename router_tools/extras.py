"""The extras of the package that commands need, and what is said where one is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from router_backend.errors import SettingsError


@contextmanager
def packages_of(name: str) -> Iterator[None]:
    """Imports in this block belong to an extra. Raises SettingsError where one of its packages is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{error.name} is not installed, and {name} needs it: pip install 'router-backend[{name}]'"
        ) from None
