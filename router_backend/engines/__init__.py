"""The engines by name. Nothing of an engine is imported before it is chosen.

To add one: write `engines/NAME.py` with `load(rung, settings, path) -> LocalModel`, add its line here, name it in
`Candidate.engine`, and give it an extra in pyproject.toml.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from router_backend.errors import CandidateError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from router_backend.checkpoints.ladder import Rung
    from router_backend.engines.base import LocalModel
    from router_backend.settings import Settings

ENGINES = {
    "llamacpp": "router_backend.engines.llamacpp:load",
    "transformers": "router_backend.engines.transformers.load:load",
    "echo": "router_backend.engines.echo:load",
    "upstream": "router_backend.engines.upstream.model:load",
}
PACKAGES = {"llamacpp": "xllamacpp", "transformers": "torch"}
# What transformers needs for checkpoints that come quantised, by their method, and what is done where it is missing.
_GPTQMODEL = (
    "it is built from source, beside torch for CUDA (pip install --no-build-isolation {}); or take a checkpoint in "
    "compressed-tensors or a GGUF"
)
QUANTIZERS = {
    "compressed-tensors": ({"compressed_tensors": "compressed-tensors"}, "pip install 'router-backend[quantized]'"),
    "awq": ({"gptqmodel": "gptqmodel"}, _GPTQMODEL.format("gptqmodel")),
    "gptq": ({"gptqmodel": "gptqmodel", "optimum": "optimum"}, _GPTQMODEL.format("gptqmodel optimum")),
}


def missing(name: str, method: str | None = None) -> str | None:
    """Why an engine cannot be used here, or not for weights quantised by a method; or None. Imports nothing."""
    if name not in ENGINES:
        return f"engine not installed: {name} is not part of this version"
    package = PACKAGES.get(name)
    if package is not None and find_spec(package) is None:
        return f"engine not installed: {name} needs {package} (pip install 'router-backend[{name}]')"
    needed, advice = QUANTIZERS.get(method or "", ({}, ""))
    if lacking := [title for module, title in needed.items() if find_spec(module) is None]:
        return f"{' and '.join(lacking)} not installed, and its weights are quantised by {method}: {advice}"
    return None


def load(rung: Rung, settings: Settings, path: Path) -> LocalModel:
    """Loads a rung with its engine, out of the file or folder where it is.

    Raises:
        CandidateError: the engine is not installed, or the checkpoint is broken.
        RungError: the checkpoint does not load in this precision.
    """
    name = rung.candidate.engine
    reason = missing(name)
    if reason is not None:
        raise CandidateError(reason)
    module, _, function = ENGINES[name].partition(":")
    begin = cast("Callable[[Rung, Settings, Path], LocalModel]", getattr(import_module(module), function))
    return begin(rung, settings, path)
