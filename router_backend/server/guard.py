"""API keys: every route needs one, once any is set, but for the few that are named here."""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from router_backend.errors import Unauthorized
from router_backend.server.errors import respond
from router_backend.settings import Settings, split_list

ALWAYS_PUBLIC = frozenset({"/", "/health", "/livez", "/readyz", "/startupz"})


class Guard:
    """ASGI middleware. Public paths are compared whole: a path trick is just another path that needs a key."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hashes = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys.values()]
        self._public = ALWAYS_PUBLIC | set(split_list(settings.public_paths))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] != "lifespan" and self._hashes and scope["path"] not in self._public
        if guarded and not self._knows(scope):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await respond(Unauthorized("send a known key as Authorization: Bearer KEY"))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        sent = hashlib.sha256(key.strip().encode("latin-1")).digest()
        matches = [hmac.compare_digest(sent, known) for known in self._hashes]  # all of them: constant time
        return kind.lower() == "bearer" and any(matches)
