"""Sessions of people in a browser: a cookie that says which key its holder once showed. Nothing is kept here."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time

COOKIE = "router_session"
SECONDS = 12 * 3600


def issue(name: str, digest: bytes, now: float | None = None) -> str:
    """A session of the key with this name, signed with the key's own digest: it ends with the key."""
    until = int((time.time() if now is None else now) + SECONDS)
    what = f"{base64.urlsafe_b64encode(name.encode()).decode()}.{until}"
    return f"{what}.{_sign(what, digest)}"


def holder(session: str, digests: dict[str, bytes]) -> str | None:
    """The name of the key that a session was issued for, where it still holds."""
    what, _, signature = session.rpartition(".")
    encoded, _, until = what.partition(".")
    try:
        name = base64.b64decode(encoded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    digest = digests.get(name)
    if digest is None or not hmac.compare_digest(signature.encode(), _sign(what, digest).encode()):
        return None
    return name if until.isdecimal() and time.time() < int(until) else None


def _sign(what: str, digest: bytes) -> str:
    return hmac.new(digest, f"session {what}".encode(), hashlib.sha256).hexdigest()
