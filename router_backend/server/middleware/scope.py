"""What a request's scope says: its headers by name, its path on this server, and a HEAD that asks as a GET does."""

from __future__ import annotations

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def first_of_each(scope: Scope) -> dict[bytes, bytes]:
    """A request's headers by name; of two with one name the first counts."""
    return dict(reversed(list(scope["headers"])))


def path_of(scope: Scope) -> str:
    """The path as this server's routes have it, without the proxy's prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def is_ui(path: str) -> bool:
    """Whether a path is the UI's: at `/gradio`, or one of the two that its clients look for at the root."""
    return path.startswith(("/gradio/", "/gradio_api/")) or path in ("/gradio", "/config")


class Prefix:
    """ASGI middleware; the outermost. Behind a proxy that shows this server at `root_path`, every link needs it.

    A proxy may take the prefix off a request's path or leave it on: both are the same request.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app, self._root = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and self._root:
            path = scope["path"]
            if path != self._root and not path.startswith(f"{self._root}/"):
                path = self._root + path
            scope = {**scope, "root_path": self._root, "path": path}
        await self._app(scope, receive, send)


class HeadAsGet:
    """ASGI middleware; the innermost. A HEAD is answered as its GET is, without the body, also of an endless one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        ended = False

        async def send_head(message: Message) -> None:
            nonlocal ended
            if ended:
                raise OSError("the answer to a HEAD has no body")  # as ASGI says of a client that has gone
            if message["type"] == "http.response.body":
                ended = True
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        scope["method"] = "GET"  # in the same scope, where the route is written for the access log
        try:
            await self._app(scope, receive, send_head)
        except (OSError, ClientDisconnect):
            if not ended:
                raise
        finally:
            scope["method"] = "HEAD"
