"""Declared: the state that the Space should have, as `.huggingface/spaces.yml` says it. Nothing on the hub reads it."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from router_backend.errors import SettingsError

PLACE = Path(".huggingface/spaces.yml")


class Declared(BaseModel):
    """What is asked of the hub.

    Attributes:
        hardware: the hub's name of it, like `zero-a10g`.
        sleep_time: seconds without a request; None: the hub's own.
        variables: for everyone to see.
        secrets: their names; the values stand in no file.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    hardware: str
    sleep_time: int | None = None
    variables: dict[str, str] = {}
    secrets: list[str] = []


def read(root: Path) -> Declared:
    """Raises SettingsError where the file is missing or wrong; the message names the key."""
    try:
        found = Declared.model_validate(yaml.safe_load((root / PLACE).read_text("utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{PLACE} cannot be read: {type(error).__name__}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(f"{PLACE}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if both := found.variables.keys() & set(found.secrets):
        raise SettingsError(f"{PLACE}: {min(both)} is a variable and a secret")
    return found
