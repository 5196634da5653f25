"""What clients of the OpenAI-compatible API may send: JSON Schemas and chat bodies, and mutations of them.

Everything is drawn from a seed. A case that is `harmless` must be answered; any other may be a 400 with a place, or a
404 for its model.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema_rs

Json = Any
GENERATORS: dict[str, dict[str, Json]] = json.loads(
    (Path(__file__).parents[1] / "schema" / "generators.json").read_text(encoding="utf-8")
)
NAMES = (
    "ünïcode",
    "a/b",
    "m~n",
    "100%",
    "two words",
    'quo"te',
    "back\\slash",
    "日本",
    "😀",
    "$ref",
    "type",
    "",
    "(one)",
)
JUNK: tuple[Json, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    10**400,
    "",
    "x",
    "null",
    [],
    [None],
    {},
    {"type": "string"},
    [{}],
    "🙂",
)


@dataclass(frozen=True)
class Case:
    """One request body, how it came about, and whether it must be answered."""

    body: dict[str, Json]
    made_by: str
    harmless: bool


def schemas(count: int, seed: int, budget: int = 2000) -> Iterator[Case]:
    """Schemas in chat bodies: what generators write, then mutations of it, one to three each."""
    draw = random.Random(seed)
    names = sorted(GENERATORS)
    draw.shuffle(names)
    for at in range(count):
        schema, steps = copy.deepcopy(GENERATORS[names[at % len(names)]]), [names[at % len(names)]]
        harmless = at < len(names) or draw.random() < 0.4
        for _ in range(draw.randint(1, 3) if at >= len(names) // 2 else 0):
            mutation = draw.choice(HARMLESS if harmless else (*HARMLESS, *DOUBTFUL, *DOUBTFUL))
            schema = mutation(draw, schema)
            steps.append(mutation.__name__)
        asked = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": draw.random() < 0.5}}
        body = {
            "messages": [{"role": "user", "content": "Fill it in."}],
            "response_format": asked,
            "max_tokens": budget,
        }
        yield Case(body, " ".join(steps), harmless)


def bodies(count: int, seed: int) -> Iterator[Case]:
    """Chat bodies as clients send them, with harmless fields more; of most, a value is replaced, dropped or added."""
    draw = random.Random(seed)
    for at in range(count):
        body, steps = copy.deepcopy(draw.choice(BODIES)), [f"body {at}"]
        for name, values in draw.sample(sorted(TAKEN.items()), draw.randint(0, 4)):
            body.setdefault(name, copy.deepcopy(draw.choice(values)))
            steps.append(name)
        harmless = at % 3 == 0
        for _ in range(0 if harmless else draw.randint(1, 2)):
            if not body:
                break
            holder, key = draw.choice([*_places(body)])
            how = draw.choice(("replace", "drop", "add"))
            if how == "replace":
                holder[key] = copy.deepcopy(draw.choice(JUNK))
            elif how == "drop":
                holder.pop(key)
            elif isinstance(holder, dict):
                holder[draw.choice((*NAMES, "name", "tools", "logprobs", "n", "content"))] = copy.deepcopy(
                    draw.choice(JUNK)
                )
            else:
                holder.append(copy.deepcopy(draw.choice(JUNK)))
            steps.append(f"{how} {key}")
        yield Case(body, " ".join(steps), harmless)


def sent(client: Any, case: Case) -> tuple[int, Json]:  # noqa: ANN401 - an HTTP client, ours or starlette's
    """The status of the answer, and its JSON."""
    content = json.dumps(case.body).encode()  # a number may be larger than clients' own encoders take
    answer = client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    return answer.status_code, answer.json()


def wrong(case: Case, status: int, answer: Json) -> str | None:
    """What is wrong with an answer; None where it is valid, or a 400 with a place."""
    if status != 200:
        error = answer["error"]
        expected = 404 if error["code"] == "model_not_found" else 400
        if case.harmless or status != expected:
            return f"{status} {error}"
        return None if error["param"] is not None or error["code"] == "invalid_json" else f"no place: {error}"
    parameters = {each["function"]["name"]: each["function"].get("parameters") for each in case.body.get("tools") or ()}
    for choice in answer["choices"]:
        asked = case.body.get("response_format") or {}
        for call in choice["message"].get("tool_calls") or ():
            arguments = json.loads(call["function"]["arguments"])
            if not jsonschema_rs.is_valid(parameters[call["function"]["name"]] or {}, arguments):
                return f"not valid: {call}"
        if asked.get("type") == "text" or parameters or not ("type" in asked or _wants_plan(case.body)):
            continue
        value = json.loads(choice["message"]["content"])
        if asked.get("type") == "json_schema":
            found = next(jsonschema_rs.validator_for(asked["json_schema"]["schema"]).iter_errors(value), None)
            if found is not None:
                return f"not valid: {found.message}: {choice['message']['content']}"
    return None


def _wants_plan(body: dict[str, Json]) -> bool:
    """Where no format is asked for, instructions of the client's own ask for text."""
    return all(message["role"] not in ("system", "developer") for message in body["messages"])


def _is_outermost(part: Json, schema: dict[str, Json]) -> bool:
    """Whether it may be what the whole schema refers to."""
    return "$ref" in schema and "properties" in json.dumps(part)


def _is_apart(schema: dict[str, Json]) -> bool:
    """Whether there are branches, which a change may let begin alike."""
    return any(word in json.dumps(schema) for word in ("anyOf", "oneOf", "$ref"))


Mutation = Callable[[random.Random, dict[str, Json]], dict[str, Json]]


def _parts(schema: Json) -> Iterator[dict[str, Json]]:
    """The schemas of values within a schema."""
    if not isinstance(schema, dict):
        return
    for keyword in ("properties", "$defs", "definitions"):
        inner = schema.get(keyword)
        for each in inner.values() if isinstance(inner, dict) else ():
            if isinstance(each, dict):
                yield each
                yield from _parts(each)
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), dict):
            yield schema[keyword]
            yield from _parts(schema[keyword])
    for keyword in ("anyOf", "oneOf", "allOf"):
        for each in schema.get(keyword, ()) if isinstance(schema.get(keyword), list) else ():
            if isinstance(each, dict):
                yield each
                yield from _parts(each)


def _at(draw: random.Random, schema: dict[str, Json]) -> dict[str, Json]:
    """One of the schemas of values."""
    found = [*_parts(schema)]
    return draw.choice(found) if found else schema


def _replaced(part: dict[str, Json], new: dict[str, Json]) -> None:
    part.clear()
    part.update(new)


def annotate(draw: random.Random, schema: dict[str, Json]) -> dict[str, Json]:
    notes: dict[str, Json] = {
        **{"title": "T", "description": "d", "default": None, "examples": [1], "x-order": 1, "$comment": "c"},
        **{"deprecated": True, "readOnly": True, "writeOnly": False, "nullable": False, "x-nullable": []},
        **{"discriminator": {"propertyName": "kind"}, "xml": {}, "example": {}, "externalDocs": {"url": "x"}},
    }
    _at(draw, schema).update(draw.sample(sorted(notes.items(), key=str), 3))
    return schema


def wrap_in_one(draw: random.Random, schema: dict[str, Json]) -> dict[str, Json]:
    part = _at(draw, schema)
    _replaced(part, {draw.choice(("anyOf", "oneOf", "allOf")): [dict(part)]})
    return schema


def refer(draw: random.Random, schema: dict[str, Json]) -> dict[str, Json]:
    part, name = _at(draw, schema), draw.choice(NAMES)
    moved = dict(part)
    place = draw.choice(("$defs", "definitions", "x-parts"))
    escaped = quote(name.replace("~", "~0").replace("/", "~1"), safe="")
    _replaced(part, {"$ref": f"#/{place}/{escaped}"})
    holder = schema.setdefault(place, {})
    if name in holder:
        _replaced(part, moved)
    else:
        holder[name] = moved
    return schema


def rename(draw: random.Random, schema: dict[str, Json]) -> dict[str, Json]:
    name = draw.choice(NAMES)
    holders = [each for each in (schema, *_parts(schema)) if isinstance(each.get("properties"), dict)]
    holders = [each for each in holders if each["properties"] and name not in each["properties"]]
    if holders and "#/properties" not in json.dumps(schema):
        holder = draw.choice(holders)
        old = draw.choice(sorted(holder["properties"]))
        if not any(
            word in json.dumps(holder["properties"][old]) for word in ("const", "enum")
        ):  # may tell branches apart
            holder["properties"] = {name if key == old else key: v for key, v in holder["properties"].items()}
            if isinstance(holder.get("required"), list):
                holder["required"] = [name if key == old else key for key in holder["required"]]
    return schema


def type_in_list(draw: random.Random, schema: dict[str, Json]) -> dict[str, Json]:
    part = _at(draw, schema)
    if isinstance(part.get("type"), str):
        part["type"] = [part["type"]]
    return schema


def or_null(draw: random.Random, schema: dict[str, Json]) -> dict[str, Json]:
    part = _at(draw, schema)
    if "null" not in json.dumps(part) and not _is_apart(schema) and not _is_outermost(part, schema):
        _replaced(part, {"anyOf": [dict(part), {"type": "null"}]})
    return schema


def in_list(draw: random.Random, schema: dict[str, Json]) -> dict[str, Json]:
    part = _at(draw, schema)
    if not _is_apart(schema) and not _is_outermost(part, schema):
        _replaced(part, {"type": "array", "items": dict(part), "maxItems": draw.randint(1, 4)})
    return schema


def add_field(draw: random.Random, schema: dict[str, Json]) -> dict[str, Json]:
    holders = [each for each in (schema, *_parts(schema)) if isinstance(each.get("properties"), dict)]
    if holders:
        draw.choice(holders)["properties"].setdefault("added", {"type": draw.choice(["string", "integer", "null"])})
    return schema


def drop(draw: random.Random, schema: dict[str, Json]) -> dict[str, Json]:
    part = _at(draw, schema)
    if part:
        del part[draw.choice(sorted(part))]
    return schema


def other_value(draw: random.Random, schema: dict[str, Json]) -> dict[str, Json]:
    part = _at(draw, schema)
    if part:
        part[draw.choice(sorted(part))] = copy.deepcopy(draw.choice(JUNK))
    return schema


def tuple_of_a_draft(draw: random.Random, schema: dict[str, Json]) -> dict[str, Json]:
    part, old = _at(draw, schema), draw.random() < 0.5
    text = json.dumps(schema)
    if not _is_outermost(part, schema) and "prefixItems" not in text and "additionalItems" not in text:
        drafts = ("https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#")
        schema["$schema"] = drafts[old]
        items, rest = ("items", "additionalItems") if old else ("prefixItems", "items")
        _replaced(part, {"type": "array", items: [dict(part), {"type": "boolean"}], rest: False, "minItems": 2})
    return schema


def add_keyword(draw: random.Random, schema: dict[str, Json]) -> dict[str, Json]:
    name, values = draw.choice(sorted(_KEYWORDS.items()))
    _at(draw, schema)[name] = copy.deepcopy(draw.choice(values))
    return schema


def two_kinds(draw: random.Random, schema: dict[str, Json]) -> dict[str, Json]:
    other = copy.deepcopy(_at(draw, copy.deepcopy(draw.choice(sorted(GENERATORS.values(), key=str)))))
    part = _at(draw, schema)
    if "$ref" not in json.dumps(other):
        _replaced(part, {draw.choice(("anyOf", "oneOf", "allOf")): [dict(part), other]})
    return schema


def other_type(draw: random.Random, schema: dict[str, Json]) -> dict[str, Json]:
    kinds = ["string", "number", "integer", "boolean", "null", "array", "object"]
    _at(draw, schema)["type"] = draw.choice([*kinds, draw.sample(kinds, 2), draw.sample(kinds, 3), "any", [], kinds])
    return schema


HARMLESS: tuple[Mutation, ...] = (annotate, wrap_in_one, refer, rename, type_in_list, or_null, in_list, add_field)
DOUBTFUL: tuple[Mutation, ...] = (drop, tuple_of_a_draft, other_value, add_keyword, add_keyword, two_kinds, other_type)
_KEYWORDS: dict[str, tuple[Json, ...]] = {
    "enum": ([], ["a"], [1, 1.0, True, None], ["a", "a"], [{"x": [1]}], [""], ['"', "\\", "\n", "…"], list(range(30))),
    "const": (None, "a", 1, 1.0, False, {"a": {}}, [], "é\u2028", "```"),
    "type": ("string", ["string", "null"], "object", ["integer", "number"]),
    "minimum": (0, 0.5, 10**20, -1e-7),
    "maximum": (-1, 1e-9, 7, 10**16),
    "exclusiveMinimum": (0, 2.5, True),
    "exclusiveMaximum": (1, 0, 1e-3),
    "multipleOf": (1, 2, 0.01, 0.5, 7, 0, 1e-9),
    "minLength": (0, 1, 40, 2.0, 600),
    "maxLength": (0, 3, 1, 10**6),
    "pattern": ("^a+$", "[", "", "^\\d{3}$", "\\p{L}+", "^(?!x)"),
    "format": ("uuid", "date", "uint32", "regex", "email", "ipv6", 7),
    "minItems": (0, 2, 5),
    "maxItems": (0, 1, 3),
    "uniqueItems": (True, False),
    "items": (False, True, {}, {"enum": [1, 2]}),
    "prefixItems": ([], [{"type": "string"}], [{"type": "integer"}, {"enum": ["a", "b"]}]),
    "additionalItems": (False,),
    "contains": ({"type": "string"},),
    "minContains": (1,),
    "additionalProperties": (False, True, {}, {"type": "integer"}),
    "required": ([], ["nowhere"], ["added"], "x"),
    "properties": ({}, {"a": True}, {"a": False}, {"a": {"type": "null"}}),
    "patternProperties": ({"^x-": {}}, {"": {}}),
    "propertyNames": ({"enum": ["a", "b"]}, {"pattern": "^a"}, {}, {"type": "string"}),
    "minProperties": (1,),
    "maxProperties": (0, 2),
    "not": ({}, {"type": "null"}),
    "if": ({"type": "string"},),
    "then": ({"minLength": 2},),
    "dependentRequired": ({"a": ["b"]},),
    "unevaluatedProperties": (False,),
    "$ref": ("#", "#/nowhere", "other.json", 7),
    "allOf": ([{}], [{"type": "string"}], [{"minLength": 1}, {"maxLength": 3}], []),
    "anyOf": (
        [{}],
        [{"type": "string"}, {"type": "string", "maxLength": 3}],
        [{"type": "integer"}, {"type": "number"}],
    ),
    "oneOf": (
        [{"type": "integer"}, {"type": "number"}],
        [{"const": 1}, {"const": 2}],
        [{"enum": ["a"]}, {"type": "string"}],
    ),
    "$id": ("it", "http://x/y", 7),
    "$anchor": ("it",),
    "$dynamicRef": ("#it",),
    "$defs": ({}, {"x": 7}),
    "nullable": (True,),
}
_USER = {"role": "user", "content": "Prove that the sum of two odd numbers is even."}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
_CALL: Json = {"name": "do", "arguments": "{}"}
_DO: Json = {"type": "function", "function": {"name": "do"}}
_TOOL: Json = {"type": "function", "function": {"name": "fill", "description": "Fills in.", "parameters": _SCHEMA}}
BODIES: tuple[dict[str, Json], ...] = (
    {"messages": [_USER]},
    {"messages": [_USER], "response_format": {"type": "text"}, "max_tokens": 9},
    {"messages": [_USER], "response_format": {"type": "json_object"}},
    {"messages": [_USER], "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMA}}},
    {"messages": [{"role": "system", "content": "Be brief."}, _USER, {"role": "assistant", "content": None}, _USER]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]}]},
    {
        "messages": [{"role": "developer", "content": [{"type": "text", "text": "x"}], "name": "boss"}, _USER],
        "response_format": {"type": "text"},
    },
    {
        "messages": [_USER, {"role": "assistant", "content": "y", "refusal": None, "tool_calls": []}, _USER],
        "response_format": {"type": "text"},
        "stop": ["q", "z"],
    },
    {"messages": [_USER], "tools": [_TOOL]},
    {"messages": [_USER], "tools": [_TOOL, _DO], "tool_choice": "required", "max_tokens": 900},
    {"messages": [_USER], "tools": [_DO], "tool_choice": {"type": "function", "function": {"name": "do"}}},
    {
        "messages": [
            _USER,
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": _CALL}]},
            {"role": "tool", "tool_call_id": "c", "content": "done"},
        ],
        "tools": [_DO],
    },
)
TAKEN: dict[str, tuple[Json, ...]] = {
    "model": ("router", None),
    "temperature": (0, 1e-40, 0.7, 2, None),
    "top_p": (0, 0.5, 1),
    "seed": (7, -1, 0, None),
    "n": (1, 2, None),
    "max_completion_tokens": (None,),
    "stream": (False, None),
    "user": ("u", ""),
    "store": (True, False),
    "metadata": ({}, {"a": "b"}, None),
    "service_tier": ("auto", "flex"),
    "parallel_tool_calls": (True, False),
    "tools": ([], None),
    "tool_choice": ("auto", "none", None),
    "functions": ([],),
    "frequency_penalty": (0, 0.0, None),
    "presence_penalty": (0,),
    "logit_bias": ({}, None),
    "logprobs": (False, None),
    "modalities": (["text"],),
    "stop": (None, []),
    "reasoning_effort": ("none", None),
    "verbosity": ("medium",),
    "safety_identifier": ("s",),
    "prompt_cache_key": ("k",),
    "audio": (None,),
    "stream_options": (None,),
}


def _places(value: Json) -> Iterator[tuple[Json, Json]]:
    """Every value within, as what holds it and the key."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)
