"""The engines by name. Nothing of an engine is imported before it is chosen.

To add one: write `engines/NAME.py` with `load(rung, settings) -> LocalModel`, add its line here, name it in
`Candidate.engine`, and give it an extra in pyproject.toml.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from router_backend.errors import CandidateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from router_backend.engines.base import LocalModel
    from router_backend.ladder import Rung
    from router_backend.settings import Settings

ENGINES = {
    "llamacpp": "router_backend.engines.llamacpp:load",
    "echo": "router_backend.engines.echo:load",
}


def load(rung: Rung, settings: Settings) -> LocalModel:
    """Loads a rung with its engine.

    Raises:
        CandidateError: the engine is not installed, or the checkpoint cannot be had.
        RungError: the checkpoint does not load in this precision.
    """
    name = rung.candidate.engine
    if name not in ENGINES:
        raise CandidateError(f"engine not installed: {name} is not part of this version")
    module, _, function = ENGINES[name].partition(":")
    try:
        loader = cast("Callable[[Rung, Settings], LocalModel]", getattr(import_module(module), function))
    except ModuleNotFoundError as error:
        raise CandidateError(
            f"engine not installed: {name} needs {error.name} (pip install 'router-backend[{name}]')"
        ) from error
    return loader(rung, settings)
