"""Probe: what a server upstream is and honours, asked with tiny requests and never assumed from its name.

A constraint is honoured by whoever answers with the one odd text that it allows; who ignores it says something else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from router_backend.engines.conversation import Message
from router_backend.engines.upstream.wire import Refused, Wire
from router_backend.errors import CandidateError, EngineError, EngineLost, InvalidRequest, UpstreamDown, UpstreamError
from router_backend.types import Constraint

T = TypeVar("T")
_ODD = "qzq7"
_SCHEMA = json.dumps(
    {"type": "object", "properties": {_ODD: {"const": 7}}, "required": [_ODD], "additionalProperties": False}
)
# It holds what our grammars are made of, so whoever keeps it keeps those: terminals, intersection, complement.
_ASKED = {
    "lark": f"start: TEXT\nTEXT: /({_ODD}|{_ODD}x)/ & ~/(?s:.*)x(?s:.*)/\n",
    "regex": f"{_ODD[:-1]}[7]",
    "schema": _SCHEMA,
}
_SAMPLE = "Überlegung 12345: (x != y) && `foo_bar`, 数字, naïve, https://example.org/?q=a%20b"
# What such samplers are set to by default, where a server has them: nothing but temperature and top_p is to draw.
_NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True, slots=True)
class Way:
    """How a server takes a constraint: in which field of the body, and in which form."""

    constraint: Constraint
    field: str
    fields: Callable[[str], dict[str, Any]]


def response_format(schema: str) -> dict[str, Any]:
    described = {"name": "answer", "schema": json.loads(schema), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": described}}


LLAMA_SERVER = Way("lark", "grammar", lambda said: {"grammar": f"%llguidance {{}}\n{said}"})
WAYS = (
    Way("lark", "structured_outputs.grammar", lambda said: {"structured_outputs": {"grammar": said}}),
    LLAMA_SERVER,
    Way("regex", "structured_outputs.regex", lambda said: {"structured_outputs": {"regex": said}}),
    Way("regex", "regex", lambda said: {"regex": said}),
    Way("schema", "response_format", response_format),
)
NOTHING = Way("none", "", lambda said: {})


class Link(Protocol):
    """The way to a server: a `Wire`, or a child process."""

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any: ...  # noqa: ANN401

    def stream(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str], cancelled: Callable[[], bool]
    ) -> Iterator[dict[str, Any] | None]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Served:
    """What was found.

    Attributes:
        model: the name by which it is asked for; `context` its tokens for one request, and `slots` how many it decodes
            at once, where it says so.
        route: where it completes: `v1/completions`, or `v1/chat/completions` where it has only those.
        way: how it takes the strongest constraint that it keeps.
        tokenizes: whether it has `/tokenize`, and takes token ids as a prompt.
        applies: whether it has `/apply-template`; else a template is read through its tokens.
        extras: fields beyond OpenAI's that it takes.
    """

    model: str
    context: int | None
    slots: int | None
    route: str
    way: Way
    tokenizes: bool
    applies: bool
    extras: dict[str, Any]

    @property
    def stages(self) -> bool:
        """Whether a plan can be written in stages."""
        return self.way.constraint in ("lark", "regex")


def probe(wire: Wire, named: str | None) -> Served:
    """Asks a server. `named`: the model that the operator wants.

    Raises:
        CandidateError: it does not serve that model, or its tokenizer is another than its model's.
        RouterError: it cannot be asked.
    """
    entry = _entry(wire, named)
    model = str(entry["id"])
    route = "v1/completions" if _answers(wire, model, "v1/completions") else "v1/chat/completions"
    extras = _NEUTRAL if _answers(wire, model, route, _NEUTRAL) else {}
    tokenizes = route == "v1/completions" and _tokenizes(wire, model)
    meta = entry.get("meta") if isinstance(entry.get("meta"), dict) else {}
    context = entry.get("max_model_len") or (meta or {}).get("n_ctx")
    # Stages go on after token ids: without those, what they are written under is of no use.
    ways = [way for way in WAYS if tokenizes or way.constraint == "schema"]
    way = next((way for way in ways if _keeps(wire, model, route, way)), NOTHING)
    return Served(
        model,
        context if isinstance(context, int) else None,
        _told(wire, "props", None, "total_slots", int),
        route,
        way,
        tokenizes,
        _told(wire, "apply-template", {"messages": [{"role": "user", "content": "x"}]}, "prompt", str) is not None,
        extras,
    )


def render(link: Link, served: Served, messages: list[Message]) -> str:
    """A conversation as the model reads it, by llama-server's way or vLLM's. Raises ValueError where it refuses."""
    thoughts = {"chat_template_kwargs": {"enable_thinking": False}}
    chat = {"model": served.model, "messages": messages, "add_generation_prompt": True, **thoughts}
    try:
        if served.applies:
            return str(link.ask("apply-template", chat)["prompt"])
        ids = ids_in(link.ask("tokenize", chat))
        return str(link.ask("detokenize", {"model": served.model, "tokens": ids})["prompt"])
    except (EngineLost, UpstreamDown):
        raise
    except (EngineError, InvalidRequest, CandidateError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from None


def tokens(link: Link, model: str, text: str, *, add_special: bool = False, special: bool = False) -> tuple[int, ...]:
    """Ids of a text. llama-server reads some of the fields, vLLM the others."""
    body = {
        "model": model,
        **{"content": text, "add_special": add_special, "parse_special": special},
        **{"prompt": text, "add_special_tokens": add_special},
    }
    return ids_in(link.ask("tokenize", body))


def ids_in(answer: object) -> tuple[int, ...]:
    """The ids in an answer of `/tokenize`. Raises CandidateError where there are none."""
    found = answer.get("tokens") if isinstance(answer, dict) else None
    if not isinstance(found, list) or not all(isinstance(each, int) for each in found):
        raise CandidateError("its /tokenize answers no list of token ids")
    return tuple(found)


def asked(model: str, route: str, prompt: str | tuple[int, ...], most: int, **fields: object) -> dict[str, Any]:
    """The body of a request for an answer."""
    chat = route.endswith("chat/completions")
    said = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    return {"model": model, **said, "max_tokens": most, **fields}


def text_of(answer: object) -> str:
    """The text of a whole answer, of either route. Raises CandidateError where it is none."""
    try:
        choice = answer["choices"][0]  # type: ignore[index] # whatever it is
        return str(choice["message"]["content"] if "message" in choice else choice["text"])
    except (KeyError, IndexError, TypeError):
        raise CandidateError("its answer to a completion has no choices: it speaks another API than OpenAI's") from None


def usage_of(answer: object) -> int:
    """Tokens of the prompt, as an answer says. Raises CandidateError where it does not."""
    try:
        return int(answer["usage"]["prompt_tokens"])  # type: ignore[index] # whatever it is
    except (KeyError, TypeError, ValueError):
        raise CandidateError("its answers do not say how many tokens they took (usage)") from None


def _entry(wire: Wire, named: str | None) -> dict[str, Any]:
    """What it says of the model."""
    answer = wire.ask("v1/models")
    listed = answer.get("data") if isinstance(answer, dict) else None
    entries = [each for each in listed or () if isinstance(each, dict) and "id" in each]
    names = ", ".join(str(each["id"]) for each in entries[:20]) or "none"
    if named is not None:
        entries = [each for each in entries if each["id"] == named]
        if not entries:
            raise CandidateError(f"it does not serve {named}: it has {names}")
    if len(entries) != 1:
        raise CandidateError(f"it serves {len(entries)} models ({names}): write which after the URL, as in …/v1#model")
    return entries[0]


def _answers(wire: Wire, model: str, route: str, fields: dict[str, Any] | None = None) -> bool:
    """Whether it takes such a request. Raises what `Wire.ask` does, but for the refusal of a route or a field."""
    try:
        text_of(wire.ask(route, asked(model, route, "The capital of France is", 1, temperature=0, **fields or {})))
    except Refused as error:
        if error.http_status in (401, 403) or (route.endswith("chat/completions") and not fields):
            raise
        return False
    return True


def _tokenizes(wire: Wire, model: str) -> bool:
    """Whether tokens can be asked for, and be a prompt. Raises CandidateError where they are not the model's."""
    try:
        ids, bare = (tokens(wire, model, _SAMPLE, add_special=special) for special in (True, False))
        read = [
            usage_of(wire.ask("v1/completions", asked(model, "v1/completions", prompt, 1, temperature=0)))
            for prompt in (_SAMPLE, bare)
        ]
    except (UpstreamError, CandidateError):
        return False
    if read != [len(ids), len(bare)]:
        raise CandidateError(
            f"its /tokenize is not its model's: of one text it makes {len(ids)} tokens, and the model reads {read[0]}. "
            "Start it with the tokenizer that belongs to the model"
        )
    return True


def _keeps(wire: Wire, model: str, route: str, way: Way) -> bool:
    question = asked(model, route, "The capital of France is", 24, temperature=0, **way.fields(_ASKED[way.constraint]))
    try:
        said = text_of(wire.ask(route, question))
    except UpstreamError:  # it may fall over what it does not know, and over the next one too: it is not down
        wire.breaker.note(ok=True)
        return False
    if way.constraint != "schema":
        return said.strip() == _ODD
    try:
        return bool(json.loads(said) == {_ODD: 7})
    except ValueError:
        return False


def _told(wire: Wire, path: str, body: dict[str, Any] | None, name: str, kind: type[T]) -> T | None:
    """A value in an answer that llama-server alone gives."""
    try:
        found = wire.ask(path, body).get(name)
    except (UpstreamError, AttributeError):
        return None
    return found if isinstance(found, kind) else None
