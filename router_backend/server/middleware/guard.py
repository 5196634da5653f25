"""The guard: which names this server goes by, how long a head may be, and who may come in.

Every route needs a key, once any is set, but for the few that are named here.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Callable
from dataclasses import replace

from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Receive, Scope, Send

from router_backend.errors import Forbidden, HeadersTooLarge, RouterError, Unauthorized, UrlTooLong, WrongHost
from router_backend.server.errors import respond
from router_backend.server.middleware import session
from router_backend.server.middleware.headers import first_of_each
from router_backend.server.middleware.login import PATH as LOGIN
from router_backend.server.middleware.login import login_page
from router_backend.service.caller import caller
from router_backend.settings import Settings, split_list

ALWAYS_PUBLIC = frozenset({"/", "/health", "/livez", "/readyz", "/startupz"})
_SAFE = frozenset({"GET", "HEAD"})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Keys:
    """The API keys and the admin key, as digests alone."""

    def __init__(self, settings: Settings) -> None:
        self.digests = {name: _digest(key.encode()) for name, key in settings.api_keys.items()}
        self.admin = _digest(settings.admin_key.get_secret_value().encode()) if settings.admin_key else None

    def name_of(self, key: bytes) -> str | None:
        """Whose key it is. Every one is compared, so that the time says nothing."""
        sent = _digest(key)
        found = [name for name, known in self.digests.items() if hmac.compare_digest(sent, known)]
        return found[0] if found else None

    def is_admin(self, key: bytes) -> bool:
        return self.admin is not None and hmac.compare_digest(_digest(key), self.admin)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _text(headers: dict[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")


class Guard:
    """ASGI middleware. Public paths are compared whole: a path trick is just another path that needs a key."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._keys = Keys(settings)
        self._public = ALWAYS_PUBLIC | set(split_list(settings.public_paths))
        if self._keys.digests:
            self._public |= {LOGIN}
        self._is_ours = host_check(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = first_of_each(scope)
        try:
            self._check_head(scope, headers)
            self._check_key(scope, headers)
        except RouterError as error:
            await self._refuse(error, headers, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_head(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if len(scope.get("raw_path") or b"") + len(scope.get("query_string", b"")) > self._settings.max_url_bytes:
            raise UrlTooLong(f"the URL has more than {self._settings.max_url_bytes} bytes")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > self._settings.max_header_bytes:
            raise HeadersTooLarge(f"the headers have more than {self._settings.max_header_bytes} bytes")
        if not self._is_ours(_text(headers, b"host")):
            raise WrongHost("this server does not go by that name; its operator can add it to ALLOWED_HOSTS")

    def _check_key(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if not self._keys.digests and self._keys.admin is None:
            return
        kind, _, sent = headers.get(b"authorization", b"").partition(b" ")
        key = sent.strip() if kind.lower() == b"bearer" else b""
        admin = self._keys.is_admin(key)
        name = "" if admin else self._keys.name_of(key)
        if name is None and b"cookie" in headers:
            name = self._holder(scope, headers)
        if name is None and self._keys.digests and scope["path"] not in self._public:
            raise Unauthorized("send a known key as Authorization: Bearer KEY")
        caller.set(replace(caller.get(), key=name or "", admin=admin))
        scope.setdefault("state", {})["key"] = name or ("admin" if admin else None)

    def _holder(self, scope: Scope, headers: dict[bytes, bytes]) -> str | None:
        """Who is logged in. What changes anything must come from a page of this server."""
        name = session.holder(cookie_parser(_text(headers, b"cookie")).get(session.COOKIE, ""), self._keys.digests)
        if name is not None and scope.get("method") not in _SAFE:
            origin = _text(headers, b"origin").partition("://")[2]
            if not origin or origin.lower() != _text(headers, b"host").lower():
                raise Forbidden("a session counts for pages of this server alone; send the key itself")
        return name

    async def _refuse(
        self, error: RouterError, headers: dict[bytes, bytes], scope: Scope, receive: Receive, send: Send
    ) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif (
            isinstance(error, Unauthorized) and scope["method"] == "GET" and b"text/html" in headers.get(b"accept", b"")
        ):
            await login_page(scope, 401)(scope, receive, send)
        else:
            await respond(error)(scope, receive, send)


def host_check(settings: Settings) -> Callable[[str], bool]:
    """Whether a Host header names this server.

    Without `ALLOWED_HOSTS`, any name does, unless the server is on the loopback and needs no key: there a page from
    elsewhere could have its own name lead here (DNS rebinding), so a name must be localhost's. An address always does:
    it cannot be made to lead elsewhere.
    """
    names = {name.lower() for name in split_list(settings.allowed_hosts)}
    if "*" in names or (not names and (settings.api_keys or settings.host not in _LOOPBACK)):
        return lambda host: True

    def is_ours(host: str) -> bool:
        name = host.lower()
        if name in names:
            return True
        if name.startswith("["):
            return _is_address(name[1:].partition("]")[0])
        name = name.partition(":")[0]
        return name in _LOOPBACK or name in names or name.endswith(".localhost") or _is_address(name)

    return is_ours


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
