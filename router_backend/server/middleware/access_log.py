"""Gives each request an id, a log line, its count and its span, and answers what nobody else caught."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router_backend.errors import NotReady
from router_backend.server.disconnect import ClientGone
from router_backend.server.errors import describe, respond
from router_backend.server.middleware.scope import first_of_each, is_ui, path_of
from router_backend.service import tracing
from router_backend.service.caller import Caller, caller
from router_backend.service.metrics import Metrics
from router_backend.settings import Settings
from router_backend.types import Chunk, Step

_log = logging.getLogger("router_backend.access")
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_QUIET = {"/livez", "/readyz", "/startupz", "/health"}


def note(request: Request, last: Chunk, prompt: str) -> None:
    """Remembers an answer's sums for the request's log line, and the prompt, which LOG_PROMPTS lets into it."""
    request.scope["state"]["note"] = {
        "prompt_tokens": last.usage.prompt_tokens,
        "completion_tokens": last.usage.completion_tokens,
        "finish_reason": last.finish_reason,
        "queue_seconds": last.timings.queue_seconds,
        "decode_seconds": last.timings.decode_seconds,
        "prompt": prompt,
    }


def routed(request: Request, chunk: Chunk) -> None:
    """Remembers a plan's route, as far as it stands, for the headers of the answer."""
    if chunk.route:
        request.scope["state"]["route"] = chunk.route


class AccessLog:
    """ASGI middleware. Probes are logged at DEBUG, so that they do not bury the rest."""

    def __init__(self, app: ASGIApp, metrics: Metrics, settings: Settings) -> None:
        self._app = app
        self._metrics = metrics
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = first_of_each(scope)
        sent = headers.get(b"x-request-id", b"").decode("latin-1")
        traceparent = headers.get(b"traceparent", b"").decode("latin-1")
        state: dict[str, Any] = scope.setdefault("state", {})
        request_id = sent if _ID.fullmatch(sent) else f"req-{secrets.token_hex(8)}"
        span, trace_id = tracing.begin_request(scope["method"], traceparent)
        caller.set(Caller(request_id, trace_id=trace_id))
        path = path_of(scope)  # a mount changes the scope on the way
        status = 0
        start = time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [
                    (b"x-request-id", request_id.encode()),
                    *_careful(message["headers"], self._settings.frame_ancestors),
                    *_route(state.get("route", ())),
                ]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except (ClientGone, ClientDisconnect):
            if not status:
                await Response(status_code=499)(scope, receive, send_with_id)
        except asyncio.CancelledError:  # what the drain could not wait for
            if status:
                raise
            await respond(NotReady("the server is shutting down", retry_after=5))(scope, receive, send_with_id)
        except Exception as error:
            _log.exception("unhandled error", extra={"request_id": request_id})
            if status:
                raise  # the headers are out: only a broken connection tells the client
            await JSONResponse(describe(error), 500)(scope, receive, send_with_id)
        finally:
            # The path as the API declares it: few values, whatever clients ask for.
            who = caller.get()  # as the guard has found
            key = "admin" if who.admin else who.key or None
            route = "/gradio" if is_ui(path) else str(getattr(scope.get("route"), "path", "other"))
            self._metrics.http_request(scope["method"], route, status)
            if span is not None:
                what = {"http.response.status_code": status, "http.route": route, "router.key": key or ""}
                tracing.end_request(span, f"{scope['method']} {route}", what)
            level = logging.DEBUG if path in _QUIET else logging.INFO
            if _log.isEnabledFor(level):
                fields = {
                    "request_id": request_id,
                    "key": key,
                    "method": scope["method"],
                    "path": path,
                    "status": status,
                    "seconds": round(time.monotonic() - start, 4),
                    **state.get("note", {}),
                }
                if not self._settings.log_prompts:
                    fields.pop("prompt", None)
                _log.log(level, "request", extra=fields)


def _route(steps: Sequence[Step]) -> list[tuple[bytes, bytes]]:
    """The tools of a plan, and the probability that the checkpoint gave the first of them."""
    if not steps:
        return []
    route, first = " -> ".join(step.tool for step in steps), steps[0]
    confidence = f"{first.odds.of(first.tool):.4f}"
    return [(b"x-router-route", route.encode("ascii", "replace")), (b"x-router-confidence", confidence.encode())]


def _careful(headers: Iterable[tuple[bytes, bytes]], frame_ancestors: str) -> list[tuple[bytes, bytes]]:
    """What makes a browser careful with an answer; pages also say who may show them in a frame.

    (A second Content-Security-Policy narrows the first.)
    """
    more = [(b"x-content-type-options", b"nosniff")]
    if any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers):
        more.append((b"referrer-policy", b"same-origin"))
        more.append((b"content-security-policy", f"frame-ancestors {frame_ancestors}".encode()))
    return more
