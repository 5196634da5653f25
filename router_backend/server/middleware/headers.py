"""Headers that make a browser careful."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable

from starlette.types import Scope

Pair = tuple[bytes, bytes]

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def page_policy(page: str) -> str:
    """A Content-Security-Policy for a page of one file: its own script and style, and nothing from elsewhere."""
    found: dict[str, list[str]] = {"script": [], "style": []}
    nothing = ["'none'"]
    for kind, text in _INLINE.findall(page):
        found[kind].append(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
    sources = "; ".join(f"{kind}-src {' '.join(hashes or nothing)}" for kind, hashes in found.items())
    return f"default-src 'none'; {sources}; connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'"


def hardened(headers: Iterable[Pair], frame_ancestors: str) -> list[Pair]:
    """What is added to an answer; to pages, who may show them in a frame. (A second policy narrows the first.)"""
    more = [(b"x-content-type-options", b"nosniff")]
    if any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers):
        more.append((b"referrer-policy", b"same-origin"))
        more.append((b"content-security-policy", f"frame-ancestors {frame_ancestors}".encode()))
    return more


def first_of_each(scope: Scope) -> dict[bytes, bytes]:
    """A request's headers by name; of two with one name the first counts."""
    return dict(reversed(list(scope["headers"])))
