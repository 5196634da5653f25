"""JSON closes within its budget and keeps the client's schema, whatever the checkpoint draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router_backend.engines.echo import EchoModel
from router_backend.errors import AnswerError, BudgetTooSmall, ContextOverflow, InvalidRequest
from router_backend.schema.read import ANYTHING
from router_backend.schema.write import SchemaWriter, check
from router_backend.types import Chunk, GenerateRequest, ModelInfo, SamplingParams, Turn
from router_backend.writing.stages import JOIN
from tests.fakes.random_model import RandomModel

Json = dict[str, Any]


def field(**schema: object) -> Json:
    """An object with one required field."""
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}


TREE: Json = {
    "$defs": {
        "T": {
            "type": "object",
            "properties": {"v": {"type": "string"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/T"}}},
            "required": ["v", "kids"],
        }
    },
    "$ref": "#/$defs/T",
}
SHAPES: Json = {
    "type": "object",
    "properties": {
        "shapes": {
            "type": "array",
            "minItems": 2,
            "maxItems": 5,
            "items": {
                "oneOf": [
                    {
                        "type": "object",
                        "properties": {
                            "radius": {"type": "number", "exclusiveMinimum": 0},
                            "kind": {"const": "circle"},
                        },
                        "required": ["kind", "radius"],
                    },
                    {
                        "type": "object",
                        "properties": {"kind": {"enum": ["square", "line"]}, "size": {"type": "integer"}},
                        "required": ["kind", "size"],
                    },
                    {"type": "null"},
                ]
            },
        },
        "note": {"type": ["string", "null"]},
        "names": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 3, "maximum": 12}},
    },
    "required": ["shapes"],
}
WORDS: Json = {
    "type": "object",
    "properties": {
        "date": {"type": "string", "format": "date-time"},
        "id": {"type": "string", "format": "uuid"},
        "mail": {"type": "string", "format": "email"},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$", "maxLength": 9},
        "some": {"type": "string", "pattern": "b/c"},
        "word": {"type": "string", "minLength": 3, "maxLength": 7},
        "share": {"type": "number", "minimum": 0.25, "maximum": 0.5},
        'Größe "x"': {"type": "integer", "minimum": -5, "maximum": -3},
    },
    "required": ["date", "id", "mail", "code", "some", "word", "share", 'Größe "x"'],
    "additionalProperties": False,
}
SCHEMAS = {"anything": json.loads(ANYTHING), "tree": TREE, "shapes": SHAPES, "words": WORDS}
RUNAWAYS = (b"", b"[{", b"0123456789-.", b'aaaa "\\', b" \xf0\x9f\x98\x80")


def smallest(writer: SchemaWriter, schema: Json) -> int:
    root, sizes = writer._sized(json.dumps(schema))
    return sizes[root].least + JOIN


def write(model: Any, schema: Json, limit: int, seed: int = 0, **fields: Any) -> tuple[Any, Chunk]:  # noqa: ANN401
    """The value, once it was found to be whole, valid and inside its budget."""
    request = GenerateRequest("t", "p", SamplingParams(limit, seed=seed), "json", schema=json.dumps(schema), **fields)
    chunks = list(SchemaWriter(model).write(request, lambda: False))
    text = "".join(chunk.text for chunk in chunks)
    value = json.loads(text)
    jsonschema_rs.validate(schema, value)
    assert json.dumps(value, ensure_ascii=False).count('"') == text.count('"'), "no name twice"
    last = chunks[-1]
    assert last.finish_reason == "stop"
    assert last.usage.completion_tokens == model.count_tokens(text) <= limit
    return value, last


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    extra=st.one_of(st.integers(0, 40), st.integers(0, 400)),
    name=st.sampled_from(sorted(SCHEMAS)),
    favours=st.sampled_from(RUNAWAYS),
)
def test_row_14_every_answer_is_whole_valid_and_in_its_budget(seed: int, extra: int, name: str, favours: bytes) -> None:
    model = RandomModel(favours)
    write(model, SCHEMAS[name], smallest(SchemaWriter(model), SCHEMAS[name]) + extra, seed)


scalars = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "maxLength": 5},
        {"type": "integer"},
        {"type": "number", "minimum": 1},
        {"type": "boolean"},
        {"enum": ["x", "yy", 3, None]},
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
        {"type": "string", "format": "date"},
    ]
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(lambda item, least: {"type": "array", "items": item, "minItems": least}, inner, st.integers(0, 2)),
        st.builds(
            lambda parts, required: {
                "type": "object",
                "properties": {f"p{at}": part for at, part in enumerate(parts)},
                "required": [f"p{at}" for at in range(len(parts)) if required >> at & 1],
            },
            st.lists(inner, min_size=1, max_size=4),
            st.integers(0, 15),
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schema=values, seed=st.integers(0, 2**32 - 1), extra=st.integers(0, 150))
def test_any_nested_schema_closes(schema: Json, seed: int, extra: int) -> None:
    whole, model = field(**schema), RandomModel(b"aaaa ")
    write(model, whole, smallest(SchemaWriter(model), whole) + extra, seed)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_row_14_below_the_smallest_budget_it_is_refused_by_that_number(name: str) -> None:
    model = RandomModel()
    least = smallest(SchemaWriter(model), SCHEMAS[name])
    write(model, SCHEMAS[name], least)
    with pytest.raises(BudgetTooSmall, match=f"this schema is {least}$"):
        write(model, SCHEMAS[name], least - 1)


def test_one_text_may_have_the_whole_budget_and_several_share_it() -> None:
    one, _ = write(RandomModel(b"ab"), field(type="string"), 400)
    assert len(one["a"].encode()) > 250
    both = {"type": "object", "properties": {n: {"type": "string"} for n in "ab"}, "required": ["a", "b"]}
    value, _ = write(RandomModel(b"ab"), both, 400)
    assert min(len(text.encode()) for text in value.values()) > 90


def test_text_that_is_stopped_ends_with_an_ellipsis_and_the_next_one_stands() -> None:
    schema = {"type": "object", "properties": {n: {"type": "string"} for n in "ab"}, "required": ["a", "b"]}
    value, _ = write(RandomModel(b"abcd "), schema, 120)
    assert value["a"].endswith("…") and value["b"]


def test_optional_fields_and_items_come_where_there_is_room() -> None:
    schema = {"type": "object", "properties": {n: {"type": "integer"} for n in "abcdefgh"}}
    model = RandomModel()
    assert write(model, schema, smallest(SchemaWriter(model), schema))[0] == {}
    assert any(len(write(RandomModel(b', "'), schema, 300, seed)[0]) > 2 for seed in range(8))
    items = {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 1}
    assert any(len(write(model, field(**items), 300, seed)[0]["a"]) > 2 for seed in range(8))


@pytest.mark.parametrize("limit", range(22, 61))
def test_an_open_object_is_asked_for_in_a_small_budget_too(limit: int) -> None:
    model = RandomModel(b'"ab')
    values = [write(model, json.loads(ANYTHING), limit, seed)[0] for seed in range(8)]
    assert any(values) and model.seen
    inner = field(type="object")
    assert any(write(model, inner, limit + len('{"a": }'), seed)[0]["a"] for seed in range(8))


def test_an_open_object_is_empty_unasked_only_where_nothing_fits() -> None:
    model = RandomModel(b'"ab')
    assert write(model, json.loads(ANYTHING), smallest(SchemaWriter(model), json.loads(ANYTHING)))[0] == {}
    assert not model.seen


def test_recursion_ends_where_the_budget_does() -> None:
    def depth(tree: Json) -> int:
        return 1 + max(map(depth, tree["kids"]), default=0)

    model = RandomModel(b'{"a')
    assert max(depth(write(model, TREE, 2000, seed)[0]) for seed in range(3)) > 2
    assert depth(write(model, TREE, smallest(SchemaWriter(model), TREE))[0]) == 1


def test_fields_with_values_of_their_own_tell_branches_apart() -> None:
    model = RandomModel()
    kinds = [shape["kind"] for seed in range(12) for shape in write(model, SHAPES, 400, seed)[0]["shapes"] if shape]
    assert {"circle", "square", "line"} <= set(kinds)


def test_answer_is_repeatable_and_streams_as_it_comes_to_stand() -> None:
    model = RandomModel()
    first, second = (write(model, WORDS, 300, 5)[0] for _ in range(2))
    assert first == second != write(model, WORDS, 300, 6)[0]
    request = GenerateRequest("t", "p", SamplingParams(300), "json", schema=json.dumps(WORDS))
    pieces = [chunk.text for chunk in SchemaWriter(model).write(request, lambda: False) if chunk.text]
    assert len(pieces) > 5


def test_conversation_and_prefix_reach_the_model() -> None:
    model = RandomModel()
    history = (Turn("system", "s"),)
    _, last = write(model, field(type="boolean"), 50, history=history)
    assert all(seen.history == history and seen.output == "text" for seen in model.seen)
    assert last.usage.prompt_tokens == 2 and model.seen[0].prefix == '{"a":'


def test_cancel_ends_without_an_answer() -> None:
    request = GenerateRequest("t", "p", SamplingParams(50), "json", schema=json.dumps(field(type="string")))
    assert [chunk.finish_reason for chunk in SchemaWriter(RandomModel()).write(request, lambda: True)] == ["cancelled"]


def test_prompt_and_budget_must_fit_in_the_context() -> None:
    small = RandomModel(info=ModelInfo("random", "native", "random", 60, 1))
    with pytest.raises(ContextOverflow, match="prompt has 1 tokens and the answer may have 60"):
        write(small, field(type="string"), 60)
    write(small, field(type="string"), 59)


def test_engine_that_ignores_grammars_is_found_out() -> None:
    echo = EchoModel(script=lambda request: "nonsense")
    for schema, words in ((field(enum=["x", "y"]), "chose none"), (field(type="string", minLength=20), "too little")):
        with pytest.raises(AnswerError, match=words):
            write(echo, schema, 300)
    assert write(echo, field(type="integer", minimum=7), 300)[0] == {"a": 7}, "nothing usable: the example"
    assert write(echo, field(type="string", pattern="^x{3}$"), 300)[0] == {"a": "xxx"}
    with pytest.raises(AnswerError, match="not valid JSON"):
        check("{", ANYTHING)
    with pytest.raises(AnswerError, match="does not keep the schema"):
        check("[]", ANYTHING)


def test_schema_is_read_where_the_model_is_too() -> None:
    with pytest.raises(InvalidRequest, match="outermost type must be object"):
        write(RandomModel(), {"type": "array"}, 100)


@pytest.mark.parametrize("last", "12")
@pytest.mark.parametrize(
    "kind",
    [
        {"enum": [f"{'1-' * 30}1", f"{'1-' * 30}2"]},
        {"type": "string", "pattern": "^(1-){30}[12]$"},
        {"type": "string", "minLength": 61, "maxLength": 61},
    ],
)
def test_what_repeats_itself_because_it_must_is_not_cut(kind: Json, last: str) -> None:
    """A token for each character, so that the guard against repetition could see it."""
    said = f'{"1-" * 30}{last}"'
    model = EchoModel(script=lambda asked: f' "{said}' if "CHOICE" in (asked.grammar or "") else said)
    model.tokenize = lambda text: list(text)  # type: ignore[method-assign]
    assert write(model, field(**kind), 400)[0] == {"a": said[:-1]}


@pytest.mark.parametrize("kind", ["integer", "number"])
@pytest.mark.parametrize("step", [1, 5, 0.25, 0.01, 7])
def test_multiples(kind: str, step: float) -> None:
    for seed, favours in enumerate((b"", b"9", b"0.-", b"123")):
        value, _ = write(RandomModel(favours), field(type=kind, multipleOf=step), 100, seed)
        assert isinstance(value["a"], int | float)
        write(RandomModel(favours), field(type=kind, multipleOf=step, minimum=3, maximum=40), 100, seed)


def test_no_value_of_a_set_comes_twice() -> None:
    kind = {"type": "array", "uniqueItems": True, "items": {"enum": ["x", "y", "z"]}}
    sets = [write(RandomModel(b',"'), field(**kind, minItems=2), 200, seed)[0]["a"] for seed in range(12)]
    assert any(len(each) == 3 for each in sets) and all(len(set(each)) == len(each) >= 2 for each in sets)


SETS: list[Json] = [
    {"type": "string"},
    {"type": "string", "maxLength": 2},
    {"type": "string", "pattern": "^[ab]{1,3}$"},
    {"type": "string", "format": "uuid"},
    {"type": "integer"},
    {"type": "number"},
    {"type": "integer", "minimum": 1, "maximum": 5},
    {"type": "integer", "minimum": 1},
    {"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": 50},
    {"type": "integer", "exclusiveMaximum": -5, "multipleOf": 3},
    {"type": ["string", "null"]},
    {"anyOf": [{"enum": ["x", "y"]}, {"type": "integer", "minimum": 1, "maximum": 2}, {"type": "null"}]},
    {"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^[ab]$"}, {"type": "boolean"}]},
]


@pytest.mark.parametrize("items", SETS, ids=json.dumps)
def test_no_value_of_a_set_of_any_kind_comes_twice(items: Json) -> None:
    """As pydantic writes `set[str]`."""
    kind = {"type": "array", "uniqueItems": True, "items": items, "minItems": 3, "maxItems": 5}
    model = RandomModel(b',"')
    least = smallest(SchemaWriter(model), field(**kind))
    for seed, extra in enumerate((0, 5, 20, 60, 300)):
        write(model, field(**kind), least + extra, seed)


@pytest.mark.parametrize("items", [{"type": "string"}, {"type": "integer"}, {"type": "number", "minimum": 0.5}])
def test_a_set_is_one_where_the_checkpoint_repeats_itself_and_a_grammar_takes_nothing_away(items: Json) -> None:
    echo = EchoModel(script=lambda asked: "," if "CHOICE" in (asked.grammar or "") else '1111"')
    kind = {"type": "array", "uniqueItems": True, "items": items, "minItems": 3, "maxItems": 4}
    assert len(write(echo, field(**kind), 300)[0]["a"]) >= 3


def test_a_set_of_all_that_there_is_ends() -> None:
    """Where a checkpoint says the same number for ever, the others are counted up: there are so many, and no more."""
    echo = EchoModel(script=lambda asked: "," if "CHOICE" in (asked.grammar or "") else "7")
    for step in (1, 1.0):
        number = {"type": "integer", "minimum": 0, "maximum": 99, "multipleOf": step}
        kind = {"type": "array", "uniqueItems": True, "items": number, "minItems": 3}
        assert len(write(echo, field(**kind), 3000)[0]["a"]) == 99


NAMED: list[Json] = [
    {"propertyNames": {"format": "uuid"}},
    {"propertyNames": {"pattern": "^[a-c]{1,2}$"}},
    {"propertyNames": {"minLength": 2, "maxLength": 4}},
    {"patternProperties": {"^x-[0-9]{2}$": {"type": "integer"}}, "additionalProperties": False},
    {"patternProperties": {"^[a-z]{3}$": {"type": "integer"}}},
    {"propertyNames": {"pattern": "^[a-z]{1,2}$"}, "properties": {"A": {"type": "string"}, "b": {"type": "null"}}},
    {"additionalProperties": {"type": "integer"}, "properties": {"a": {"type": "null"}}, "required": ["a"]},
    {"additionalProperties": {"type": "integer"}},
]


@pytest.mark.parametrize("kind", NAMED, ids=json.dumps)
@pytest.mark.parametrize(("least", "most"), [(0, 9), (2, 3), (3, 3)])
def test_names_and_their_number_are_kept(kind: Json, least: int, most: int) -> None:
    schema = field(
        type="object", **({"additionalProperties": {"type": "integer"}} | kind), minProperties=least, maxProperties=most
    )
    model = RandomModel(b',"')
    smallest_of = smallest(SchemaWriter(model), schema)
    counts = {len(write(model, schema, smallest_of + extra, extra)[0]["a"]) for extra in (0, 3, 30, 100, 400)}
    assert max(counts) >= max(1, least)


WRITTEN_ELSEWHERE: dict[str, Json] = {
    "TypeBox closes what it composes": {
        "allOf": [{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}],
        "properties": {"b": {"type": "integer"}},
        "required": ["b"],
        "unevaluatedProperties": False,
    },
    "a reference that is closed": {
        "$ref": "#/$defs/A",
        "unevaluatedProperties": False,
        "$defs": {"A": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}},
    },
    "branches that are closed": {
        "type": "object",
        "anyOf": [
            {"properties": {"k": {"const": "a"}, "x": {"type": "integer"}}, "required": ["k", "x"]},
            {"properties": {"k": {"const": "b"}}, "required": ["k"]},
        ],
        "unevaluatedProperties": False,
    },
    "a tuple that is closed": field(
        type="array", prefixItems=[{"type": "integer"}], unevaluatedItems=False, minItems=1
    ),
    "names of two patterns that nothing refers to": {
        **field(type="integer"),
        "$defs": {"X": {"type": "object", "patternProperties": {"^a": {}, "^b": {}}}},
    },
    "z.never()": {
        "type": "object",
        "properties": {"a": {"anyOf": [{"type": "integer"}, {"not": {}}]}, "b": {"not": {}}},
        "required": ["a"],
    },
    "pydantic's Decimal": field(
        anyOf=[{"type": "number"}, {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}]
    ),
    "pydantic's Decimal with places": field(
        anyOf=[
            {"type": "number", "exclusiveMinimum": 0},
            {
                "type": "string",
                "pattern": r"^(?!^[-+.]*$)[+-]?0*(?:\d{0,3}|(?=[\d.]{1,6}0*$)\d{0,3}\.\d{0,2}0*$)",
            },
        ]
    ),
    "a rule for passwords": field(type="string", pattern=r"^(?=.*\d)(?=.*[a-z])(?!.*\s).{8,12}$"),
}


@pytest.mark.parametrize("name", WRITTEN_ELSEWHERE)
def test_what_others_write_is_kept(name: str) -> None:
    schema, model = WRITTEN_ELSEWHERE[name], RandomModel(b'",}a0')
    for seed, extra in enumerate((0, 4, 60, 200)):
        write(model, schema, smallest(SchemaWriter(model), schema) + extra, seed)


def test_bounds_of_draft_4_and_openapi_3_0() -> None:
    kind = {"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 2, "exclusiveMaximum": False}
    for schema in (field(**kind), field(allOf=[kind], nullable=False)):
        request = GenerateRequest("t", "p", SamplingParams(60), "json", schema=json.dumps(schema))
        said = "".join(each.text for each in SchemaWriter(RandomModel(b"0")).write(request, lambda: False))
        assert json.loads(said)["a"] in (1, 2)


def test_a_tuple_is_written_whole() -> None:
    kind = {"prefixItems": [{"type": "string"}, {"type": "integer"}, {"type": ["boolean", "null"]}], "items": False}
    model = RandomModel()
    for extra in (0, 50):
        schema = field(type="array", **kind)
        value, _ = write(model, schema, smallest(SchemaWriter(model), schema) + extra)
        assert [type(each) for each in value["a"][:2]] == [str, int] and len(value["a"]) == 3


@pytest.mark.parametrize("said", ["true", " true", ' "yes', '"yes', "-", " 7", "null"])
def test_a_value_may_begin_with_a_blank_or_without(said: str) -> None:
    """What the checkpoint begins is what is written: neither form is kept from it."""
    echo = EchoModel(script=lambda asked: said if "CHOICE" in (asked.grammar or "") else '5"')
    value, _ = write(echo, field(type=["string", "number", "boolean", "null"]), 100)
    kinds = {"t": bool, '"': str, "-": int, "7": int, "n": type(None)}
    assert type(value["a"]) is kinds[said.strip()[0]]
    one_of = write(echo, field(enum=[True, "yes", None, 1]), 100)[0]["a"] if said.strip() in ("true", "null") else True
    assert one_of in (True, None)


def test_a_number_of_an_enum_ends_where_the_checkpoint_ends_it() -> None:
    said = ""
    echo = EchoModel(script=lambda asked: said)
    for said, value in (("1,", 1), (" 10}", 10), ("100", 100), (" 1", 1)):  # noqa: B007 - the script says it
        assert write(echo, field(enum=[1, 10, 100]), 100)[0] == {"a": value}


GENERATORS: dict[str, Json] = json.loads((Path(__file__).parent / "generators.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_what_generators_write_is_kept(name: str) -> None:
    """Closed and checked against the schema itself, by the writer."""
    model, schema = RandomModel(b"ab "), GENERATORS[name]
    least = smallest(SchemaWriter(model), schema)
    for seed, extra in enumerate((0, 30, 300)):
        sampling = SamplingParams(least + extra, seed=seed)
        request = GenerateRequest("t", "p", sampling, "json", schema=json.dumps(schema))
        text = "".join(chunk.text for chunk in SchemaWriter(model).write(request, lambda: False))
        assert isinstance(json.loads(text), dict)


# Kinds D and E of the faults that users meet


def kept(whole: Json) -> None:
    """Written in several budgets, and valid for a checker that knows the schema alone."""
    model = RandomModel(b'",}a0')
    least = smallest(SchemaWriter(model), whole)
    for seed, extra in enumerate((0, 5, 60, 300)):
        write(model, whole, least + extra, seed)


ANIMALS: Json = {
    "oneOf": [
        {
            "oneOf": [
                {"type": "object", "properties": {"pet": {"const": "cat"}, "colour": {"const": c}}, "required": [*r]}
                for c, r in (("black", ("pet", "colour")), ("white", ("pet", "colour")))
            ]
        },
        {"type": "object", "properties": {"pet": {"const": "dog"}, "name": {"type": "string"}}, "required": ["pet"]},
    ]
}
PERSON: Json = {"properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name", "age"]}
FIRM: Json = {"properties": {"name": {"type": "string"}, "staff": {"type": "integer"}}, "required": ["name", "staff"]}
FAULT_E: dict[str, Json] = {
    "zod z.iso.time()": {"type": "string", "format": "time", "pattern": r"^(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d)?$"},
    "zod z.uuidv7()": {
        "type": "string",
        "format": "uuid",
        "pattern": r"^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12})$",
    },
    "a format and a pattern that looks ahead": {"type": "string", "format": "date", "pattern": "^(?!2).*"},
    "a URI of another scheme": {"type": "string", "format": "uri", "pattern": r"^s3:\/\/.*"},
    "zod startsWith and endsWith": {"type": "string", "allOf": [{"pattern": "^a.*"}, {"pattern": ".*z$"}]},
    "three patterns": {"type": "string", "allOf": [{"pattern": "^(?!ab)"}, {"pattern": "m"}, {"pattern": "z$"}]},
    "alternatives with anchors of their own": {"type": "string", "pattern": "^ab$|^cd"},
    "names that are not to be": {"type": "string", "pattern": "^(?!a|b)[abc]{2,6}$"},
    "words that are not to be": {"type": "string", "pattern": "^(?!a$|b$)[abc]{1,6}$"},
    "pydantic's nested discriminators": ANIMALS,
    "objects apart by a further field": {"anyOf": [PERSON, FIRM]},
    "an optional field first": {"anyOf": [{**PERSON, "required": ["age"]}, {**FIRM, "required": ["staff"]}]},
    "at least one of two": {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "pydantic's bounded int | float": {"anyOf": [{"type": "integer"}, {"type": "number"}], "minimum": 0},
    "zod z.email().or(z.literal(''))": {"anyOf": [{"type": "string", "format": "email"}, {"const": ""}]},
    "pydantic's date | datetime": {"anyOf": [{"type": "string", "format": "date-time"}, {"format": "date"}]},
    "a URI or a word": {"anyOf": [{"type": "string", "format": "uri"}, {"enum": ["auto", "a.b (c)/d", 3]}]},
    "a multiple or null": {"type": ["number", "null"], "multipleOf": 0.25},
    "a set or null": {"type": ["array", "null"], "items": {"enum": ["x", "y"]}, "uniqueItems": True},
    "a record or null": {"type": ["object", "null"], "propertyNames": {"pattern": "^a"}, "additionalProperties": {}},
    "whole numbers as floats": {"type": "string", "minLength": 1.0, "maxLength": 3.0},
}


@pytest.mark.parametrize("name", FAULT_E)
def test_fault_e_what_others_write_is_taken_and_kept(name: str) -> None:
    kept(field(**FAULT_E[name]))


def test_fault_e_ids_that_name_nothing() -> None:
    """As jsonschema.net writes them."""
    inner = {"$id": "#/properties/a", "type": "string"}
    schema = {"$id": "my schema", "type": "object", "properties": {"a": inner}, "required": ["a"]}
    request = GenerateRequest("t", "p", SamplingParams(60), "json", schema=json.dumps(schema))
    assert json.loads("".join(each.text for each in SchemaWriter(RandomModel()).write(request, lambda: False)))


@pytest.mark.parametrize(
    ("regex", "text"),
    [("^(?!admin|root)[a-z]+$", "beetroot"), ("^(?!admin$|root$)[a-z]+$", "xroot"), ("^(?=.*a|.*b)[a-z]+$", "xxb")],
)
def test_fault_d_a_look_ahead_of_several_is_checked_as_it_is_meant(regex: str, text: str) -> None:
    check(json.dumps({"a": text}), json.dumps(field(type="string", pattern=regex)))


def test_fault_d_a_pattern_that_becomes_too_costly_while_it_is_written_is_kept_all_the_same() -> None:
    regex = r"^(?=.*\d)(?=.*[a-z])(?=.*[A-Z])(?!.*\s)(?!.*(012|123|234|abc)).{12,}$"
    write(RandomModel(b"ab "), field(type="string", pattern=regex), 100)


@pytest.mark.parametrize("last", "12")
def test_fault_d_two_uuids_that_differ_in_the_last_digit(last: str) -> None:
    stem = "00000000-0000-4000-8000-00000000000"
    model = EchoModel(script=lambda asked: f' "{stem}{last}"')
    model.tokenize = lambda text: list(text)  # type: ignore[method-assign]
    assert write(model, field(enum=[f"{stem}1", f"{stem}2"]), 400)[0] == {"a": stem + last}
