"""From a URL to an engine that was asked what it honours."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from router_backend.engines.conversation import through_template
from router_backend.engines.upstream.model import UpstreamModel
from router_backend.engines.upstream.probe import Served, probe, render
from router_backend.engines.upstream.wire import Wire
from router_backend.errors import CandidateError, RouterError
from router_backend.types import ModelInfo

if TYPE_CHECKING:
    from router_backend.checkpoints.ladder import Rung
    from router_backend.settings import Settings

_log = logging.getLogger(__name__)
_TOLD = {
    "lark": "keeps llguidance's grammars",
    "regex": "keeps regular expressions",
    "schema": "keeps JSON schemas alone: a plan comes from one call and is put into form here",
    "none": "keeps no constraint: a plan comes from one call and is put into form here",
}


def load(rung: Rung, settings: Settings, path: Path) -> UpstreamModel:
    """Asks the server of a rung. Raises CandidateError: it is not there, or is not what it should be."""
    url, _, model = rung.candidate.name.partition("#")
    key = settings.upstream_api_key
    wire = Wire(url, key.get_secret_value() if key else None, settings.upstream_timeout)
    try:
        served = probe(wire, model or None)
        info, chat = _info(served, rung.strategy, settings), False
        if served.tokenizes:
            template, rendered = None, partial(render, wire, served)
            with suppress(ValueError):
                template = rendered([{"role": "user", "content": "x"}])
            chat, warnings = through_template(settings.prompt_format, template, rendered)
            info = replace(info, warnings=(*info.warnings, *warnings))
        return UpstreamModel(wire, served, info, chat=chat)
    except RouterError as error:
        wire.close()
        raise error if isinstance(error, CandidateError) else CandidateError(error.message) from None
    except BaseException:
        wire.close()
        raise


def _info(served: Served, strategy: str, settings: Settings) -> ModelInfo:
    context = min(settings.context_length, served.context or settings.context_length)
    told = f"{served.model} {_TOLD[served.way.constraint]}"
    _log.info(told)
    return ModelInfo(
        served.model,
        strategy,
        "upstream",
        context,
        min(settings.slots, served.slots or settings.slots),
        settings.upstream_budget_line,
        keeps_grammars=served.stages,
        weighs=False,
        warnings=() if served.stages else (told,),
    )
