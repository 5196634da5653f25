"""What of JSON Schema is understood, and how the rest is refused."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from router_backend.errors import InvalidRequest
from router_backend.schema import grammar
from router_backend.schema.nodes import Array, Choice, Number, Object, Pattern, Text, Tuple, Union, resolved, walk
from router_backend.schema.read import MOST_NODES, MOST_OPTIONS, read


def of(schema: object) -> Any:  # noqa: ANN401 - whichever node it is
    """The node of a field."""
    root = resolved(read(json.dumps({"type": "object", "properties": {"a": schema}, "required": ["a"]})))
    assert isinstance(root, Object)
    return resolved(root.fields[0].value)


def refusal(schema: object, *, whole: bool = False) -> str:
    text = json.dumps(schema if whole else {"type": "object", "properties": {"a": schema}})
    with pytest.raises(InvalidRequest) as caught:
        read(text)
    where, _, _ = caught.value.message.partition(": ")
    assert (caught.value.param, caught.value.code) == (where, "invalid_schema")
    return caught.value.message


def test_kinds() -> None:
    assert isinstance(of({"type": "string", "title": "A", "description": "b", "default": "c"}), Text)
    assert of({"type": "integer", "exclusiveMinimum": 2.5, "maximum": 7.9}).minimum == 3
    assert of({"type": "integer", "exclusiveMinimum": 2, "exclusiveMaximum": 7}).maximum == 6
    assert isinstance(of({"type": "number", "format": "double"}), Number)
    assert of({"type": "boolean"}).options == ("true", "false")
    assert of({"const": {"x": 1}}).options == ('{"x": 1}',)
    assert isinstance(of({"items": {"type": "string"}}), Array)
    assert isinstance(of({"properties": {}}), Object)
    assert isinstance(of({"minLength": 2}), Text)
    assert isinstance(of({"format": "date"}), Pattern)
    assert isinstance(of(True), Union) and isinstance(of({}), Union)
    assert isinstance(of({"allOf": [{"type": "string"}]}), Text)


def test_what_pydantic_writes() -> None:
    class Colour(Enum):
        RED = "red"
        BLUE = "blue"

    class Cat(BaseModel):
        kind: Literal["cat"]
        lives: int = Field(ge=1, le=9)

    class Dog(BaseModel):
        kind: Literal["dog"]
        name: str = "Rex"

    class Home(BaseModel):
        colour: Colour
        pets: list[Cat | Dog]
        best: Cat | Dog = Field(discriminator="kind")
        notes: dict[str, int | float | None]
        word: Literal["a", "b"] | None = None
        text: str | Literal["c"] = "c"
        inner: Home | None = None

    root = resolved(read(json.dumps(Home.model_json_schema())))
    assert isinstance(root, Object) and [each.required for each in root.fields] == [True] * 4 + [False] * 3
    assert {type(node) for node in walk(root)} >= {Array, Choice, Number, Object, Text, Union}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strin"}, "schema.properties.a: type 'strin' is not known"),
        ({"type": "integer", "multipleOf": 0}, "schema.properties.a: multipleOf must be"),
        ({"type": "integer", "minimum": 1, "maximum": 2, "multipleOf": 7}, "no number is within"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems' is supported for texts, numbers and the values"),
        ({"type": "array", "uniqueItems": True, "items": {"type": "number", "minimum": 0, "maximum": 1}}, "two bounds"),
        (
            {
                "type": "array",
                "uniqueItems": True,
                "items": {"minimum": 1, "maximum": 2, "type": "integer"},
                "minItems": 3,
            },
            "2 different values",
        ),
        ({"type": "array", "uniqueItems": True, "items": {"enum": ["x", "y"]}, "minItems": 3}, "2 different values"),
        ({"type": "array", "prefixItems": {}}, "prefixItems must be a list"),
        ({"type": "array", "prefixItems": [{}], "uniqueItems": True}, "beside 'prefixItems'"),
        ({"type": "array", "prefixItems": [{}], "items": False, "minItems": 2}, "must be an object"),
        ({"type": "array", "contains": {}}, "'contains' is not supported"),
        ({"type": "object", "patternProperties": {"^a": {}, "^b": {}}}, "'patternProperties'"),
        ({"type": "object", "properties": {"x": {}}, "patternProperties": {"^a": {}}}, "'patternProperties'"),
        (
            {"type": "object", "properties": {"x": {}}, "additionalProperties": False, "minProperties": 1},
            "'minProperties'",
        ),
        ({"type": "object", "properties": {"x": {}, "y": {}}, "maxProperties": 1}, "'maxProperties'"),
        ({"not": {"type": "string"}}, "'not' is not supported"),
        ({"type": "string", "pattern": "^a(?=b)b$"}, "look-around"),
        ({"type": "string", "pattern": f"^(?={'[]' * 34}"}, "pattern"),
        (
            {"properties": {"A": {}}, "required": ["A"], "propertyNames": {"pattern": "^[a-z]$"}},
            "propertyNames forbids",
        ),
        ({"type": "string", "pattern": f"^(?={'([a]' * 60}"}, "pattern"),
        (
            {
                "type": "array",
                "uniqueItems": True,
                "items": {"type": "integer", "minimum": 0, "maximum": 99, "multipleOf": 1.5},
            },
            "is not whole",
        ),
        ({"anyOf": [{"type": "string", "pattern": "(?=a)b"}, {"type": "null"}]}, "look-around"),
        (
            {"allOf": [{"properties": {"x": {}}, "unevaluatedProperties": False}, {"required": ["y"]}]},
            "allOf.0: 'unevaluatedProperties' is not supported",
        ),
        ({"allOf": []}, "must be a list that is not empty"),
        ({"allOf": [{"type": "string"}, {"type": "object"}]}, "there is no such value"),
        (
            {"allOf": [{"properties": {"x": {}}, "required": ["x"]}, {"additionalProperties": False}]},
            "must be an object",
        ),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "may have a value in common"),
        ({"oneOf": [{"enum": ["x", "y"]}, {"const": "x"}]}, "may have a value in common"),
        ({"oneOf": [{"type": "string"}, {"const": "x"}]}, "may have a value in common"),
        ({"anyOf": [{"oneOf": [{"type": "string"}, {"type": "string"}]}, {"type": "null"}]}, "value in common"),
        ({"type": "object", "propertyNames": {"anyOf": [{"minLength": 2}, {"enum": ["a"]}]}}, "propertyNames: only"),
        ({"$ref": ""}, "must be a text that is not empty"),
        ({"anyOf": []}, "must be a list that is not empty"),
        ({"enum": []}, "must be a list that is not empty"),
        ({"type": "string", "format": "date", "pattern": "^x$"}, "no plain text"),
        ({"type": "string", "minLength": -1}, "minLength must be"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "greater than"),
        ({"type": "string", "minLength": 5000}, "at most 512"),
        ({"type": "integer", "minimum": 1e300}, "must be a number between"),
        (
            {"properties": {"b": {"anyOf": [{"type": "array"}, {"items": {}}]}}},
            "schema.properties.a.properties.b: two",
        ),
        (
            {"properties": {"b": {"$ref": "#/$defs/Nothing"}}},
            "properties.b: $ref '#/$defs/Nothing' leads nowhere",
        ),
        ({"type": "integer", "minimum": 0.1, "maximum": 0.9}, "no integer is within"),
        ({"type": "number", "minimum": 2, "maximum": 1}, "no number is within"),
        ({"properties": {"x": {}}, "required": ["y"], "additionalProperties": False}, "required names 'y'"),
        ({"type": "object", "properties": {"x\u0000": {}}}, "cannot be shown"),
        ({"$ref": "https://example.com/schema.json"}, "nothing is fetched from elsewhere"),
        ({"$ref": "#/$defs/Nothing"}, "leads nowhere"),
        ({"anyOf": [{"type": "array"}, {"type": "array", "items": {"type": "string"}}]}, "begin alike"),
        ({"anyOf": [{"type": "integer", "minimum": 3}, {"enum": [1, 2]}]}, "begin alike"),
        (7, "must be an object"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(schema: object, words: str) -> None:
    assert words in refusal(schema)


def test_outermost_type_is_object() -> None:
    assert "outermost" in refusal({"type": "string"}, whole=True)
    assert "outermost" in refusal({"anyOf": [{"type": "object"}, {"type": "null"}]}, whole=True)
    assert "outermost" in refusal({"type": ["object", "string"]}, whole=True)


def test_row_11_recursion_that_never_ends() -> None:
    for schema in (
        {"$ref": "#"},
        {"$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}, "$ref": "#/$defs/A"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {
            "type": "object",
            "properties": {"a": {"type": "array", "minItems": 1, "items": {"$ref": "#"}}},
            "required": ["a"],
        },
    ):
        assert "itself" in refusal(schema, whole=True)


def test_row_11_size_is_bounded() -> None:
    deep: object = {"type": "string"}
    for _ in range(40):
        deep = {"type": "array", "items": deep}
    assert "nests deeper" in refusal(deep)
    assert f"more than {MOST_OPTIONS} enum values" in refusal({"enum": list(range(MOST_OPTIONS + 1))})
    many = {f"p{number}": {"type": "integer"} for number in range(MOST_NODES + 1)}
    assert "more than 1000 parts" in refusal({"type": "object", "properties": many})
    with pytest.raises(InvalidRequest, match="65536 characters"):
        read(json.dumps({"enum": ["x" * 70_000]}))


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(?=x)y", "look-around"),
        ("(a)\\1", "backreferences"),
        ("(a", "unclosed group"),
        ("x" * 300, "at most 256 characters"),
        ("x*" * 129, "printable text of at most 256 characters"),
        ("^a{300}$", "no plain text"),
        ('^"$', "no plain text"),
        ("^é$", "no plain text"),
    ],
)
def test_row_11_patterns_that_cannot_be_kept(pattern: str, words: str) -> None:
    assert words in refusal({"type": "string", "pattern": pattern})


@pytest.mark.parametrize(
    ("pattern", "example"), [("^(a+)+b$", "ab"), ("^a|b$", "a"), ("[0-9]{3}", "000"), ("b/c", "b/c"), ("^$", "")]
)
@pytest.mark.timeout(100)  # for ever, where it is not bounded
def test_row_11_patterns_cost_little(pattern: str, example: str) -> None:
    node = of({"type": "string", "pattern": pattern})
    assert node.example == example


@pytest.mark.parametrize(
    "pattern", ["((a{1,100}){1,100}){1,100}b", "(.*a.{20}){5}b", "(.|.a|.aa)*a.{200}", "(x+x+)+y" * 20]
)
@pytest.mark.timeout(100)
def test_row_11_costly_patterns_are_bounded_in_time(pattern: str) -> None:
    try:
        of({"type": "string", "pattern": pattern})
    except InvalidRequest as error:
        assert "pattern" in error.message


def test_formats_are_what_validators_take() -> None:
    import jsonschema_rs

    for name, regex in grammar.FORMATS.items():
        example = grammar.shortest(f"({regex})", 0)
        assert example is not None
        jsonschema_rs.Draft202012Validator({"format": name}, validate_formats=True).validate(example)


def test_read_schemas_are_remembered() -> None:
    text = json.dumps({"type": "object"})
    assert read(text) is read(text)


@pytest.mark.parametrize(
    ("schema", "options"),
    [
        ({"type": "string", "enum": ["aaa", "bbb", None]}, ('"aaa"', '"bbb"')),
        ({"type": ["string", "null"], "enum": ["aaa", None, 3]}, ('"aaa"', "null")),
        ({"type": "integer", "enum": [1, 2.0, 2.5, True]}, ("1", "2.0")),
        ({"enum": ["a", "b"], "const": "b"}, ('"b"',)),
        ({"enum": [True, 1], "const": 1}, ("1",)),
    ],
)
def test_type_enum_and_const_are_intersected(schema: object, options: tuple[str, ...]) -> None:
    assert of(schema).options == options


@pytest.mark.parametrize(
    "schema", [{"type": "string", "enum": [1]}, {"enum": ["a"], "const": "b"}, {"type": "null", "const": 0}]
)
def test_what_is_left_empty_is_refused(schema: object) -> None:
    assert "schema.properties.a: no value of its enum" in refusal(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "password"},
        {"type": "string", "format": "regex", "contentEncoding": "base64", "x-order": 3, "$id": "A", "$comment": "c"},
        {"type": "string", "minimum": 3, "nullable": True, "readOnly": True, "examples": [1], "deprecated": False},
    ],
)
def test_annotations_say_nothing(schema: object) -> None:
    assert isinstance(of(schema), Text)
    assert isinstance(of({"type": "integer", "format": "uint32", "maxLength": 3}), Number)
    assert isinstance(of({"title": "A", "description": "anything"}), Union)


@pytest.mark.parametrize(
    "reference",
    ["#/$defs/a~1b", "#/$defs/a%7E1b", "#/x-more/0/%C3%A9%20~01", "#it", "it", "it#", "http://x/s#/$defs/a~1b"],
)
def test_local_references_are_resolved(reference: str) -> None:
    kept = {"type": "string", "minLength": 2}
    schema = {
        "$id": "http://x/s",
        "type": "object",
        "properties": {"a": {"$ref": reference}},
        "$defs": {"a/b": kept, "named": {"$anchor": "it", **kept}, "other": {"$id": "it", **kept}},
        "x-more": [{"é ~1": kept}],
    }
    root = resolved(read(json.dumps(schema)))
    assert isinstance(root, Object)
    found = resolved(root.fields[0].value)
    assert isinstance(found, Text) and found.least == 2


def fields(schema: object) -> dict[str, bool]:
    """The names of an object's fields, and whether each is required."""
    return {field.name: field.required for field in of(schema).fields}


def test_what_stands_together_holds_together() -> None:
    assert of({"allOf": [{"type": "integer"}, {"minimum": 3}, {"minimum": 2}, {"type": "number"}]}).minimum == 3
    assert of({"type": "string", "anyOf": [{"const": "a"}, {"const": "b"}]}).ways[0].node.options == ('"a"', '"b"')
    assert of({"enum": ["a", "bbb", 7], "minLength": 2, "type": "string"}).options == ('"bbb"',)
    base = {"type": "object", "properties": {"x": {"type": "string"}, "y": {}}, "required": ["x"]}
    own = {"properties": {"x": {"maxLength": 3}, "z": {}}, "required": ["z"], "additionalProperties": {"type": "null"}}
    whole = of({"allOf": [base, own], "description": "as .NET writes heirs"})
    assert [(each.name, each.required) for each in whole.fields] == [("x", True), ("y", False), ("z", True)]
    text = resolved(whole.fields[0].value)
    assert isinstance(text, Text) and text.most == 3
    assert of({"$ref": "#/properties/a/x-word", "maxLength": 2, "x-word": {"type": "string"}}).most == 2


def test_names_of_fields() -> None:
    record = {"propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}, "required": ["b"]}
    assert fields({"type": "object", **record}) == {"a": False, "b": True}
    assert fields({"type": "object", "properties": {"x": {}}, "required": ["y"]}) == {"x": False, "y": True}
    assert fields({"properties": {"x": False, "y": {}}}) == {"y": False}, "zod's never"


@pytest.mark.parametrize(
    "schema",
    [
        {"prefixItems": [{"type": "string"}, {"enum": [1]}], "items": False},
        {"items": [{"type": "string"}, {"enum": [1]}], "additionalItems": False, "minItems": 2},
        {"type": "array", "prefixItems": [{"type": "string"}], "items": {"const": 1}, "minItems": 2},
        {"type": "array", "prefixItems": [{"type": "string"}, {"const": 1}, {"type": "null"}], "maxItems": 2},
    ],
)
def test_tuples_are_written_whole(schema: object) -> None:
    node = of(schema)
    assert isinstance(node, Tuple) and [type(each) for each in node.items] == [Text, Choice]


def test_a_format_and_its_pattern_both_hold() -> None:
    node = of({"type": "string", "format": "date", "pattern": "^2026"})
    assert node.example.startswith("2026-")
    assert of({"type": "string", "format": "email", "pattern": "^(?!x).*@.*$"}).regex.startswith("(")


def test_bounds_that_every_written_number_keeps_are_none() -> None:
    node = of({"type": "integer", "minimum": -(2**53) + 1, "maximum": 2**64})
    assert (node.minimum, node.maximum) == (None, None)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "object", "propertyNames": {"type": "number"}}, "there is no such value"),
        ({"type": "object", "propertyNames": {"enum": ["a"]}, "required": ["b"]}, "'b', which propertyNames forbids"),
        (
            {"type": "object", "propertyNames": {"pattern": "^[ab]$"}, "minProperties": 3},
            "the names that are allowed are no 3",
        ),
        (
            {"type": "object", "patternProperties": {"^[ab]$": {}}, "additionalProperties": False, "minProperties": 3},
            "the names that are allowed are no 3",
        ),
        ({"type": "array", "uniqueItems": True, "minItems": 3, "items": {"pattern": "^[ab]$"}}, "no 3 short texts"),
        ({"type": "array", "uniqueItems": True, "minItems": 2, "items": {"maxLength": 0}}, "1 different values"),
        ({"type": "integer", "minimum": 10**15}, "must be a number between"),
        ({"type": "integer", "exclusiveMinimum": 10**15 - 1}, "no number is within its bounds"),
        ({"type": "number", "maximum": -(10**15)}, "must be a number between"),
        ({"type": "integer", "multipleOf": 333333, "minimum": 10**9}, "too costly to keep"),
        ({"format": "time", "allOf": [{"pattern": r"^1\d:(?=0)"}]}, "look-around"),
    ],
)
def test_fault_d_what_no_value_could_keep_is_refused(schema: object, words: str) -> None:
    assert words in refusal(schema)
