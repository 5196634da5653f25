"""A plan is recognised by its keys and their types, and keeps both the rules and the client's schema."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from router_backend.plan.part import form_of, is_plan, with_plans
from router_backend.plan.rules import findings_of
from router_backend.plan.schema import KEYS, Plan
from router_backend.schema.nodes import Object, resolved
from router_backend.schema.read import read
from router_backend.schema.write import SchemaWriter
from router_backend.types import GenerateRequest, SamplingParams
from router_backend.writing.stages import JOIN
from tests.fakes.own_plans import OWN, Free
from tests.fakes.random_model import RandomModel

TOOLS = ("/general-search", "/math", "/code")
Json = dict[str, Any]
TEXT: Json = {"type": "string"}
TEXTS: Json = {"type": "array", "items": TEXT}
LISTS = ("route_plan", "expected_artifacts", "thinking_outline", "todo_list", "tags", "acceptance_criteria")


def part_of(schema: Json) -> Object | None:
    root = resolved(read(json.dumps(schema)))
    assert isinstance(root, Object)
    return root if form_of(root, TOOLS) else None


def fields_of(model: type[BaseModel]) -> set[str]:
    return {name for name in model.model_fields if name in KEYS} - ({"metrics"} if model is not Free else set())


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    extra=st.one_of(st.integers(0, 40), st.integers(0, 500)),
    model=st.sampled_from(OWN),
    favours=st.sampled_from([b"", b'aaaa "\\', b"0123456789-.", b'",]}', b" \xf0\x9f\x98\x80"]),
)
def test_own_classes_get_plans_that_keep_rules_and_schema(
    seed: int, extra: int, model: type[BaseModel], favours: bytes
) -> None:
    checkpoint, schema = RandomModel(favours), json.dumps(model.model_json_schema())
    writer = SchemaWriter(checkpoint, partial(with_plans, tools=TOOLS))
    root, sizes = writer._sized(schema)
    limit = sizes[root].least + JOIN + extra
    request = GenerateRequest("t", "p", SamplingParams(limit, seed=seed), "json", schema=schema)
    chunks = list(writer.write(request, lambda: False))
    text = "".join(chunk.text for chunk in chunks)
    value = json.loads(text)
    jsonschema_rs.validate(json.loads(schema), value)
    model.model_validate_json(text)
    assert chunks[-1].usage.completion_tokens == len(text.encode()) <= limit
    plan = value.get("plan", value)
    assert not findings_of(plan, (name for name in plan if name in KEYS), TOOLS)
    if "route_plan" in plan:
        assert plan["route_plan"], "a route is never empty"


def test_an_item_for_which_no_room_is_left_does_not_come() -> None:
    """It was planned, and the text before it took what it needed: it would be an ellipsis above the budget."""
    (model,) = (each for each in OWN if each.__name__ == "Optional")
    writer = SchemaWriter(RandomModel(), partial(with_plans, tools=TOOLS))
    schema = json.dumps(model.model_json_schema())
    request = GenerateRequest("t", "p", SamplingParams(337, seed=146583), "json", schema=schema)
    text = "".join(chunk.text for chunk in writer.write(request, lambda: False))
    assert len(text.encode()) <= 337 and '"…"' not in text


@pytest.mark.parametrize("missing", KEYS)
def test_schema_that_lacks_a_key_is_a_plan_without_it(missing: str) -> None:
    plan = Plan.model_json_schema()
    schema = {**plan, "properties": {name: each for name, each in plan["properties"].items() if name != missing}}
    schema["required"] = list(schema["properties"])
    root = part_of(schema)
    assert root is not None and not is_plan(root)
    form = form_of(root, TOOLS)
    assert form is not None and {name.partition(".")[0] for name in form.shapes} == {*KEYS} - {missing}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"tags": TEXTS, "difficulty": TEXT, "todo_list": TEXTS}},
        {"type": "object", "properties": {"route_plan": TEXT, "tags": TEXTS}},
        {"type": "object", "properties": {"route_plan": TEXTS}},
        {"type": "object", "properties": {name: {"type": "integer"} for name in KEYS}},
        {"type": "object", "properties": {"plan": TEXTS, "name": TEXT}},
    ],
)
def test_what_is_no_plan(schema: Json) -> None:
    assert part_of(schema) is None


def test_field_that_a_plan_cannot_satisfy_keeps_its_own_schema() -> None:
    properties = {name: TEXTS if name in LISTS else TEXT for name in KEYS if name != "metrics"}
    schema = {"type": "object", "properties": {**properties, "difficulty": {"enum": ["easy", "hard"]}}}
    root = part_of(schema)
    assert root is not None
    form = form_of(root, TOOLS)
    assert form is not None and "difficulty" not in form.shapes and "route_plan" in form.shapes


def test_which_schema_is_the_plans_own() -> None:
    plan = Plan.model_json_schema()
    assert is_plan(read(json.dumps(plan)))
    metrics = {**plan["$defs"]["Metrics"], "required": list(plan["$defs"]["Metrics"]["properties"])}
    strict = {**plan, "$defs": {**plan["$defs"], "Metrics": metrics}}
    assert is_plan(read(json.dumps(strict))), "as a client's strict mode rewrites it"
    for change in ({"tags": {"type": "string"}}, {"more": {"type": "string"}}, {"tags": {**TEXTS, "maxItems": 2}}):
        changed = {**plan, "properties": {**plan["properties"], **change}}
        assert not is_plan(read(json.dumps(changed)))


def test_schemas_that_hold_themselves_are_read_to_an_end() -> None:
    endless = {"$ref": "#/$defs/A", "$defs": {"A": {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}}}}
    node = read(json.dumps(endless))
    assert with_plans(node, TOOLS) is node and not is_plan(node)
