"""Refusals: what ZeroGPU's errors mean to the caller.

`spaces` raises `gr.Error`s that differ by their titles and texts alone. tests/space/test_parts.py pins those.
"""

from __future__ import annotations

import logging
import re

import gradio as gr
import httpx

from router_backend.errors import (
    DurationTooLong,
    EngineError,
    GpuAborted,
    NoGpu,
    QuotaExceeded,
    RouterError,
    Unauthorized,
)

DURATION, QUOTA, PENDING = "ZeroGPU illegal duration", "ZeroGPU quota exceeded", "ZeroGPU pending credits exceeded"
QUEUE, CLIENT, WORKER = "ZeroGPU queue timeout", "ZeroGPU client error", "ZeroGPU worker error"
NONE_FREE, EXPIRED, ABORTED = "No GPU was available", "Expired ZeroGPU proxy token", "GPU task aborted"
_WAIT = re.compile(r"Try again in (?:(\d+) days?, )?(\d+):(\d\d):(\d\d)")
_log = logging.getLogger(__name__)
_SOON, _A_MINUTE, _AN_HOUR = 5, 60, 3600


def explain(error: Exception, duration: int) -> RouterError:
    """The error for the caller; `duration` is what was asked for, in seconds."""
    if isinstance(error, RouterError):
        return error
    if not isinstance(error, gr.Error):
        if isinstance(error, httpx.HTTPError | RuntimeError):  # no answer from ZeroGPU, or one that nobody knows
            _log.warning("ZeroGPU does not answer as it should: %s: %s", type(error).__name__, error)
            return NoGpu("ZeroGPU does not answer as it should; try again in a minute", retry_after=_A_MINUTE)
        return EngineError("the request could not be handed to the GPU")
    title, message = getattr(error, "title", ""), str(error.message)
    if title == QUEUE or message.startswith(NONE_FREE):
        return NoGpu("no GPU is free just now; try again in a minute", retry_after=_A_MINUTE)
    if title == DURATION:
        return DurationTooLong(
            f"the request asks for {duration} GPU seconds, more than one call may have: ask for fewer tokens, or send "
            "a Hugging Face token whose account may have longer calls",
            param="max_new_tokens",
        )
    if title == PENDING:
        return QuotaExceeded(
            "too many of your requests hold GPU seconds at once; try again when one of them has ended",
            retry_after=_SOON,
        )
    if title == QUOTA:
        return _quota(message, duration)
    if message == EXPIRED:
        return Unauthorized(
            "the token that says whose GPU seconds are used has expired: load the page again, or send a new one",
            code="gpu_token_expired",
        )
    if message == ABORTED:
        return GpuAborted(
            "the GPU was taken away before the answer was whole, or its process died: try again, with fewer tokens "
            "if it happens again",
            retry_after=_SOON,
        )
    if title == WORKER:
        return EngineError(f"the model failed on the GPU: {message}")
    return NoGpu("ZeroGPU refused the request; try again in a minute", retry_after=_A_MINUTE)


def _quota(message: str, duration: int) -> QuotaExceeded:
    wait = _WAIT.search(message)
    if wait is None:
        return QuotaExceeded(
            "the GPU seconds that this Space has for callers it does not know are used up: send a Hugging Face token "
            "to use those of your account, or try later",
            retry_after=_AN_HOUR,
        )
    days, hours, minutes, seconds = (int(part or 0) for part in wait.groups())
    left = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    return QuotaExceeded(
        f"your ZeroGPU quota does not hold the {duration} seconds that this request asks for: try again in "
        f"{left} seconds, ask for fewer tokens, or use an account with a larger quota",
        retry_after=left,
    )
