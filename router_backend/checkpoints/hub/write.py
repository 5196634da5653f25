"""What writes to a hub: huggingface_hub's own client, with the token and the words that our commands use."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from router_backend.checkpoints.hub.api import may_have_token
from router_backend.errors import HubError
from router_backend.settings import Settings


def hub_access(settings: Settings) -> HfApi:
    """The client for the hub of `HF_ENDPOINT`, with the token of `HF_TOKEN` or of a login.

    Raises:
        HubError: offline mode is on, or there is no token, or the hub would get it in plain text.
    """
    if settings.hf_hub_offline or constants.HF_HUB_OFFLINE:
        raise HubError("HF_HUB_OFFLINE is set (make sets it): run this command with HF_HUB_OFFLINE=0")
    token = settings.hf_token.get_secret_value() if settings.hf_token else get_token()
    if not token:
        raise HubError("no token: run `hf auth login`, or set HF_TOKEN to one that may write")
    if not may_have_token(settings.hf_endpoint or constants.ENDPOINT):
        raise HubError("HF_ENDPOINT begins with http: a token is sent over https only, or to this machine")
    return HfApi(endpoint=settings.hf_endpoint, token=token, library_name="router-backend")


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turns what a hub refuses, and connections that fail, into one sentence without addresses."""
    try:
        yield
    except HfHubHTTPError as error:
        raise HubError(f"{what}: {words(error)}") from None
    except httpx2.TransportError as error:
        raise HubError(f"{what}: the connection failed ({type(error).__name__}); run the command again") from None


def words(error: HfHubHTTPError) -> str:
    """The status and the hub's own message, which huggingface_hub appends to its own; without addresses."""
    said = re.sub(r"https?://\S+", "…", error.server_message or "").strip()
    return f"{error.response.status_code}" + (f", {said[:300]}" if said else "")
