"""The guard: which names this server goes by, how long a head may be, and who may come in.

Every route needs a key, once any is set, but for the few that are named here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from starlette.types import ASGIApp, Receive, Scope, Send

from router_backend.errors import (
    Forbidden,
    HeadersTooLarge,
    InvalidRequest,
    RateLimited,
    RouterError,
    Unauthorized,
    UrlTooLong,
    WrongHost,
)
from router_backend.server.errors import respond
from router_backend.server.middleware.connection import PROBES, Limits
from router_backend.server.middleware.scope import first_of_each, path_of
from router_backend.service.admission import Buckets
from router_backend.service.caller import caller
from router_backend.settings import Settings, split_list

ALWAYS_PUBLIC = PROBES | {"/"}
_SAFE = frozenset({"GET", "HEAD"})
_ASK_PEOPLE = 'Basic realm="router", charset="UTF-8"'  # a browser then asks for a name and a key, and keeps them
_ADMIN = ":admin"  # the name of the admin's key: no other has a colon, and a browser can send none
_GUESSES = 20.0  # wrong keys of an address at once, and in a minute
_REMEMBERED = 4096  # keys that were right
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_PORT = re.compile(r":[0-9]{1,5}\Z")


class Guesses:
    """Wrong keys of each address. Where there were too many lately, no further key of that address is tried.

    A key that was right there before goes on: many clients may share the address of a proxy.
    """

    def __init__(self) -> None:
        self._wrong = Buckets(_GUESSES)
        self._right: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def check(self, address: str, key: bytes) -> None:
        """Raises RateLimited where a key is not to be tried."""
        wait = self._wrong.wait(address)
        if wait and (address, _digest(key)) not in self._right:
            raise RateLimited("too many wrong keys came from this address; try again later", retry_after=wait)

    def tell(self, address: str, key: bytes, *, right: bool) -> None:
        """What became of a key that was tried."""
        if not right:
            self._wrong.take(address)
            return
        self._right[address, _digest(key)] = None
        if len(self._right) > _REMEMBERED:
            self._right.popitem(last=False)


def _address(scope: Scope) -> str:
    """The client's; of IPv6 the network, which one machine may have as a whole."""
    host = (scope.get("client") or ("",))[0]
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(found, ipaddress.IPv4Address) or found.ipv4_mapped:
        return host
    return str(ipaddress.ip_network((int(found), 64), strict=False))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _text(headers: dict[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")


def _named(sent: bytes) -> tuple[bytes, bytes]:
    """The name and the key in what a browser sends as Basic credentials. Neither, where they are not well-formed."""
    try:
        name, colon, key = base64.b64decode(sent.strip(), validate=True).partition(b":")
    except binascii.Error:
        return b"", b""
    return (name, key) if colon else (b"", b"")


class Checks(ABC):
    """ASGI middleware that answers what its `_check` raises."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = first_of_each(scope)
        try:
            self._check(scope, headers)
        except RouterError as error:
            await self._refuse(error, headers, scope, receive, send)
            return
        await self._app(scope, receive, send)

    @abstractmethod
    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None: ...

    async def _refuse(
        self, error: RouterError, headers: dict[bytes, bytes], scope: Scope, receive: Receive, send: Send
    ) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = respond(error)
        if b"transfer-encoding" in headers:
            answer.headers["Connection"] = "close"  # nothing behind a body that was not read is a request
        if error.status == 401 and scope["method"] in _SAFE and b"text/html" in headers.get(b"accept", b""):
            answer.headers["WWW-Authenticate"] = _ASK_PEOPLE
        await answer(scope, receive, send)


class Heads(Checks):
    """What the head of a request may be, whoever sends it."""

    def __init__(self, app: ASGIApp, settings: Settings, limits: Limits) -> None:
        super().__init__(app)
        self._limits = limits
        self._is_ours = host_check(settings)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        limits = self._limits
        if len(scope.get("raw_path") or b"") + len(scope.get("query_string", b"")) > limits.url_bytes:
            raise UrlTooLong(f"the URL has more than {limits.url_bytes} bytes")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > limits.header_bytes:
            raise HeadersTooLarge(f"the headers have more than {limits.header_bytes} bytes")
        if b"transfer-encoding" in headers and (b"content-length" in headers or scope.get("http_version") == "1.0"):
            # RFC 9112, 6.1 and 6.3: a proxy in front may have read another length, and smuggle a request behind it.
            raise InvalidRequest("send Content-Length or Transfer-Encoding, not both, and the latter in HTTP/1.1 alone")
        told = _text(headers, b"x-forwarded-host")  # Gradio makes links of it
        if not self._is_ours(_text(headers, b"host")) or (told and not self._is_ours(told)):
            raise WrongHost("this server does not go by that name; its operator can add it to ALLOWED_HOSTS")


class Guard(Checks):
    """Who may come in. Public paths are compared whole: a path trick is just another path that needs a key."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        super().__init__(app)
        keys = dict(settings.api_keys)
        if settings.admin_key:
            keys[_ADMIN] = settings.admin_key.get_secret_value()
        self._digests = {name: _digest(key.encode()) for name, key in keys.items()}
        self._needs_key = bool(settings.api_keys)
        self._guesses = Guesses()
        self._public = ALWAYS_PUBLIC | set(split_list(settings.public_paths))
        self._friends = set(split_list(settings.cors_origins))

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if not self._digests:
            return
        kind, _, sent = headers.get(b"authorization", b"").partition(b" ")
        basic = kind.lower() == b"basic"
        claimed, key = _named(sent) if basic else (None, sent.strip() if kind.lower() == b"bearer" else b"")
        address = _address(scope)
        path = path_of(scope)  # a public one says nothing about a key; nor does an open one, beside the admin's alone
        guarded = path not in self._public and (self._needs_key or path.startswith("/admin/"))
        if key and guarded:
            self._guesses.check(address, key)
        name = self._name_of(key, claimed)
        if basic and name is not None and scope.get("method") not in _SAFE:
            self._check_origin(headers)
        if key and guarded:
            self._guesses.tell(address, key, right=name is not None)
        if name is None and self._needs_key and guarded:
            raise Unauthorized("send a known key as Authorization: Bearer KEY")
        admin = name == _ADMIN
        caller.set(replace(caller.get(), key="" if admin else name or "", admin=admin))

    def _name_of(self, key: bytes, claimed: bytes | None) -> str | None:
        """The name of a key: of the one that is `claimed`, where a name came with it.

        Every key is compared, so that the time says nothing.
        """
        sent = _digest(key)
        found = [name for name, known in self._digests.items() if hmac.compare_digest(sent, known)]
        return next((name for name in found if claimed in (None, name.encode())), None)

    def _check_origin(self, headers: dict[bytes, bytes]) -> None:
        """Browsers send a name and a key with every request, also with one that a page of another site makes."""
        site, origin = _text(headers, b"sec-fetch-site"), _text(headers, b"origin").lower()
        if site in ("same-origin", "none") or (not site and not origin):  # neither: not a browser
            return
        same = not site and origin.partition("://")[2] == _text(headers, b"host").lower()
        if not same and origin not in self._friends:
            raise Forbidden(
                "a page of another origin asks with a name and a key that the browser remembers; "
                "send the key as Authorization: Bearer KEY, or add the origin to CORS_ORIGINS"
            )


def host_check(settings: Settings) -> Callable[[str], bool]:
    """Whether a Host header names this server.

    Without `ALLOWED_HOSTS`, any name does, unless the server is on the loopback and needs no key: there a page from
    elsewhere could have its own name lead here (DNS rebinding), so it must be one of the loopback's three names.
    """
    names = {name.lower() for name in split_list(settings.allowed_hosts)}
    if "*" in names or (not names and (settings.api_keys or settings.host not in _LOOPBACK)):
        return lambda host: True
    known = names | {"localhost", "127.0.0.1", "[::1]"}
    return lambda host: host.lower() in known or _PORT.sub("", host.lower()) in known
