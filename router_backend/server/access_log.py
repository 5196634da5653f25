"""Gives each request an id and the log one line for it, and answers what nobody else caught."""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import Any

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router_backend.server.disconnect import ClientGone
from router_backend.server.errors import describe
from router_backend.types import Chunk

_log = logging.getLogger("router_backend.access")
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_QUIET = {"/livez", "/readyz", "/startupz", "/health"}


def request_id(request: Request) -> str:
    return str(request.scope["state"]["request_id"])


def note(request: Request, last: Chunk, prompt: str | None = None) -> None:
    """Remembers an answer's sums for the request's log line; the prompt only where the operator asked for it."""
    request.scope["state"]["note"] = {
        "prompt_tokens": last.usage.prompt_tokens,
        "completion_tokens": last.usage.completion_tokens,
        "finish_reason": last.finish_reason,
        "queue_seconds": last.timings.queue_seconds,
        "decode_seconds": last.timings.decode_seconds,
        **({"prompt": prompt} if prompt is not None else {}),
    }


class AccessLog:
    """ASGI middleware; the outermost. Probes are logged at DEBUG, so that they do not bury the rest."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = sent if _ID.fullmatch(sent) else f"req-{secrets.token_hex(8)}"
        status = 0
        start = time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = state["request_id"]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientGone:
            await Response(status_code=499)(scope, receive, send_with_id)
        except Exception as error:
            _log.exception("unhandled error", extra={"request_id": state["request_id"]})
            if status:
                raise  # the headers are out: only a broken connection tells the client
            await JSONResponse(describe(error), 500)(scope, receive, send_with_id)
        finally:
            level = logging.DEBUG if scope["path"] in _QUIET else logging.INFO
            fields = {
                "request_id": state["request_id"],
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "seconds": round(time.monotonic() - start, 4),
                **state.get("note", {}),
            }
            _log.log(level, "request", extra=fields)
