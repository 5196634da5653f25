"""The boundary around Gradio: which of its paths there are, and what reaches it.

Gradio gives the page, its files and the description of the functions. It never sees a body, an `Origin` or a query.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from router_backend.errors import InvalidRequest
from router_backend.server.body import read_body
from router_backend.server.gradio.calls import Calls, Message, change
from router_backend.server.middleware.scope import path_of
from router_backend.server.sse import PING_SECONDS, event, streamed
from router_backend.service.caller import caller

if TYPE_CHECKING:
    import gradio as gr

    from router_backend.ui.backend import Backend

PATH, API = "/gradio", "/gradio_api"
# What the page asks for, and what clients read before they call.
_FILES = ("/", "/config", "/theme.css", "/favicon.ico", "/assets/{path:path}", "/static/{path:path}", f"{API}/info")
_TOLD = frozenset({b"host", b"x-forwarded-proto", b"x-forwarded-host", b"accept", b"accept-encoding", b"if-none-match"})
# A page that does not know yet that its stream was closed waits on it for the answer to its next call.
_LINGER = 3.0

Value = str | int | float | bool | None
Name = Annotated[str, Field(min_length=1, max_length=128)]


class _Body(BaseModel):
    """Clients of Gradio send more than is needed: it is not read."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


class CallBody(_Body):
    data: Annotated[list[Value], Field(max_length=32)]


class JoinBody(CallBody):
    fn_index: int
    session_hash: Name


class CancelBody(_Body):
    session_hash: Name
    event_id: Name


@dataclass(frozen=True, slots=True)
class Files:
    """ASGI app: Gradio's own, asked for a file with what it needs to know and nothing else."""

    gradio: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        root = scope.get("root_path", "").removesuffix(PATH) + PATH
        path = root + path_of(scope)
        headers = [(name, value) for name, value in scope["headers"] if name in _TOLD]
        told = {"root_path": root, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}
        await self.gradio({**scope, **told}, receive, send)


def boundary(blocks: gr.Blocks, gradio: ASGIApp, calls: Calls, backend: Backend) -> Router:
    """The paths below `/gradio`, and `/config` and `/gradio_api` at the root. All others are a 404."""
    max_body_bytes = backend.settings.max_body_bytes

    async def join(request: Request) -> Response:
        with backend.charged():
            body = await read_body(request, JoinBody, max_body_bytes)
            function = blocks.fns.get(body.fn_index)
            if function is None or function.fn is None:
                raise InvalidRequest("fn_index: there is no such function", param="fn_index")
            await calls.settled(caller.get().key, body.session_hash)
            return JSONResponse({"event_id": calls.begin(caller.get().key, body.session_hash, function, body.data)})

    async def call(request: Request) -> Response:
        name = request.path_params["name"]
        with backend.charged():
            body = await read_body(request, CallBody, max_body_bytes)
            for function in blocks.fns.values():
                if function.api_name == name and function.api_visibility != "private" and function.fn is not None:
                    return JSONResponse({"event_id": calls.begin(caller.get().key, None, function, body.data)})
        raise HTTPException(404)

    async def cancel(request: Request) -> Response:
        body = await read_body(request, CancelBody, max_body_bytes)
        calls.cancel(caller.get().key, body.session_hash, body.event_id)
        return JSONResponse({"success": True})

    def messages(name: str | None, linger: float = 0.0) -> AsyncGenerator[Message, None]:
        if name is None or not calls.knows(caller.get().key, name):
            raise HTTPException(404)
        return calls.read(caller.get().key, name, linger)

    async def data(request: Request) -> Response:
        return streamed(_session(messages(request.query_params.get("session_hash"), _LINGER)))

    async def answer(request: Request) -> Response:
        return streamed(_plain(messages(request.path_params["event"])))

    async def reset(request: Request) -> Response:
        return JSONResponse({"success": True})  # the page asks for it after `cancel`, which has done it all

    async def heartbeat(request: Request) -> Response:
        return streamed(_beats())

    return Router(
        [
            *(Route(path, Files(gradio), methods=["GET"]) for path in _FILES),
            Route(f"{API}/queue/join", join, methods=["POST"]),
            Route(f"{API}/queue/data", data, methods=["GET"]),
            Route(f"{API}/call/{{name:path}}", call, methods=["POST"]),
            Route(f"{API}/call/{{name:path}}/{{event}}", answer, methods=["GET"]),
            Route(f"{API}/cancel", cancel, methods=["POST"]),
            Route(f"{API}/reset", reset, methods=["POST"]),
            Route(f"{API}/heartbeat/{{session}}", heartbeat, methods=["GET"]),
        ],
        redirect_slashes=False,
    )


async def _session(messages: AsyncGenerator[Message, None]) -> AsyncGenerator[bytes, None]:
    """As `queue/data` has it: after the first answer of a call what changed of it."""
    shown: dict[str, list[Any]] = {}
    async with aclosing(messages):
        async for message in messages:
            if message["msg"] == "process_generating":
                number, whole = message["event_id"], message["output"]["data"]
                if number in shown:
                    changes = [change(old, new) for old, new in zip(shown[number], whole, strict=True)]
                    message = {**message, "output": {**message["output"], "data": changes}}
                shown[number] = whole
            yield event(message)


async def _plain(messages: AsyncGenerator[Message, None]) -> AsyncGenerator[bytes, None]:
    """As `call` has it: each answer whole."""
    async with aclosing(messages):
        async for message in messages:
            kind, output = message["msg"], message.get("output", {})
            if kind == "heartbeat":
                yield b"event: heartbeat\n" + event(None)
            elif kind == "process_generating":
                yield b"event: generating\n" + event(output["data"])
            elif kind == "process_completed":
                good = message["success"]
                told = output.get("data") if good else output
                yield (b"event: complete\n" if good else b"event: error\n") + event(told)


async def _beats() -> AsyncGenerator[bytes, None]:
    """What older clients hold open; nothing hangs on it."""
    while True:
        yield b"data: ALIVE\n\n"
        await asyncio.sleep(PING_SECONDS)
