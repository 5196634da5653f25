"""How a prompt is wrapped, for every engine: by the checkpoint's chat template, or as text.

`PROMPT_FORMAT=raw` never renders a template. `chat` wants one that works. `auto` takes the checkpoint's where it works,
and text where there is none or it does not, with a warning.

A template is rendered around random marks and cut at them.

So a template sees no text of a client's, and what looks like a special token in such a text is never parsed as one: no
role can be forged.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence

from router_backend.errors import CandidateError, InvalidRequest
from router_backend.plan.prompt import router_prompt
from router_backend.types import Role

Message = dict[str, str]
_log = logging.getLogger(__name__)
# Between two texts where there is no template.
PARAGRAPH = "\n\n"


def through_template(
    wanted: str, template: str | bool | None, render: Callable[[list[Message]], str]
) -> tuple[bool, list[str]]:
    """Whether prompts go through the template, and what there is to warn of.

    `wanted` is `PROMPT_FORMAT`; `template` the checkpoint's, or whether it has one.

    Raises CandidateError where a template is wanted that is missing or does not work.
    """
    if wanted == "raw":
        return False, []
    if not template:
        trouble = "the checkpoint has no chat template"
    else:
        try:
            around(("user",), render)
            render([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])  # shows what ends a turn
        except InvalidRequest:
            trouble = "the checkpoint's chat template leaves the user's text out"
        except MemoryError:
            raise  # a warning would not help: it takes as much each time
        except Exception as error:  # whatever its author made of it
            words = " ".join(str(error).split())[:200]
            trouble = f"the checkpoint's chat template does not work ({type(error).__name__}: {words})"
        else:
            return True, []
    if wanted == "chat":
        raise CandidateError(f"PROMPT_FORMAT=chat, but {trouble}")
    if not template:
        return False, []
    warning = f"{trouble}: prompts are sent as they are, as with PROMPT_FORMAT=raw"
    _log.warning(warning)
    return False, [warning]


def around(roles: Sequence[Role], render: Callable[[list[Message]], str]) -> list[str]:
    """What a template puts before, between and after the texts of such turns; one more than there are turns.

    Raises InvalidRequest where the template leaves one of the texts out, or has them in another order.
    """
    marks = [secrets.token_hex(16) for _ in roles]
    rest = render([{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)])
    pieces: list[str] = []
    for mark in marks:
        piece, found, rest = rest.partition(mark)
        if not found:
            raise refused(roles)
        pieces.append(piece)
    return [*pieces, rest]


def instructions(ids_of: Callable[[str], Sequence[int]]) -> list[int]:
    """The ids that the prompts of all plans begin with: what caches may share between owners."""
    one, other = ids_of(router_prompt("a")), ids_of(router_prompt("1"))
    return list(one[: shared(one, other)])


def refused(roles: Sequence[Role]) -> InvalidRequest:
    shown = [*roles[:8], *(["…"] if len(roles) > 8 else [])]
    return InvalidRequest(
        f"the checkpoint's chat template does not take messages of these roles in this order: {', '.join(shown)}",
        param="messages",
    )


def without_template(roles: Sequence[Role]) -> list[str]:
    """As `around`, without a template. Raises InvalidRequest where it could not be told who speaks."""
    if "assistant" in roles:
        raise InvalidRequest(
            "the checkpoint has no chat template: it takes no messages of an assistant", param="messages"
        )
    return ["", *[PARAGRAPH] * (len(roles) - 1), ""]


def shared(left: Sequence[int], right: Sequence[int]) -> int:
    """The length of the prefix that both have."""
    most = min(len(left), len(right))
    if left[:most] == right[:most]:
        return most
    low, high = 0, most
    while low + 1 < high:  # the prefix up to `low` is equal, the one up to `high` is not
        middle = (low + high) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle)
    return low
