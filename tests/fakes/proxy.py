"""A reverse proxy that shows a server below a path, as nginx's `location PREFIX/ { proxy_pass TARGET/; }` does."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from router_backend.server.serve import bind
from tests.fakes.running import until

_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade"}
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@contextlib.contextmanager
def proxy(target: str, prefix: str, *, keep_prefix: bool = False) -> Iterator[str]:
    """The address below which `target` is shown. `keep_prefix`: the path is handed on as it came."""
    own = httpx.AsyncClient(base_url=target, timeout=60, limits=httpx.Limits(max_connections=None))

    async def forward(request: Request) -> Response:
        path = request.scope["raw_path"].decode("ascii")
        if not path.startswith(f"{prefix}/"):
            return PlainTextResponse("not below the prefix", 404)
        if not keep_prefix:
            path = path.removeprefix(prefix)
        query = request.scope["query_string"]
        url = own.base_url.copy_with(raw_path=path.encode() + (b"?" + query if query else b""))
        asked = own.build_request(
            request.method,
            url,
            headers=[pair for pair in request.headers.raw if pair[0].decode() not in _HOP],
            content=await request.body(),
        )
        answer = await own.send(asked, stream=True)

        async def body() -> AsyncIterator[bytes]:
            try:
                async for piece in answer.aiter_raw():
                    yield piece
            finally:
                await answer.aclose()

        response = StreamingResponse(body(), answer.status_code)
        response.raw_headers = [pair for pair in answer.headers.raw if pair[0].decode().lower() not in _HOP]
        return response

    app = Starlette(routes=[Route("/{path:path}", forward, methods=_METHODS)])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    with bind("127.0.0.1", 0) as listener:

        async def serve() -> None:
            async with own:
                await server.serve(sockets=[listener])

        thread = threading.Thread(target=lambda: asyncio.run(serve()), name="proxy")
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}{prefix}"
        finally:
            server.should_exit = True
            thread.join(15)
    assert not thread.is_alive()
