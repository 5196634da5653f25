"""Whatever schema or chat body is sent: a valid answer, or a 400 with a place. A small part of `make fuzz`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.random_model import RandomModel
from tests.fakes.running import app
from tests.fakes.sweep import Case, bodies, schemas, sent, wrong


@pytest.mark.parametrize("kind", [schemas, bodies])
@pytest.mark.parametrize("favours", [b"ab ", b'[{"'])
def test_each_is_answered_or_refused_with_a_place(kind: object, favours: bytes) -> None:
    cases: list[Case] = [*(schemas if kind is schemas else bodies)(150, seed=len(favours))]
    model: Any = RandomModel(favours)  # in the place of an echo, which keeps no grammar
    with app(model, context_length=100_000) as running:
        found = [(case, sent(running.client, case)) for case in cases]
    problems = [f"{case.made_by}: {why}" for case, (status, answer) in found if (why := wrong(case, status, answer))]
    assert not problems, "\n".join(problems)
    statuses = {status for _, (status, _) in found}
    assert statuses == {200, 400}


def test_the_sweep_sees_what_is_wrong() -> None:
    case = next(iter(schemas(1, seed=1)))
    answer = {"choices": [{"message": {"content": "{}"}}]}
    required = {**case.body["response_format"]["json_schema"]["schema"], "required": ["nowhere"]}
    body = {"response_format": {"type": "json_schema", "json_schema": {"schema": required}}}
    assert "not valid" in (wrong(Case(body, "", harmless=False), 200, answer) or "")
    error = {"error": {"param": None, "code": "invalid_value"}}
    assert wrong(Case({}, "", harmless=False), 400, error) and wrong(Case({}, "", harmless=False), 502, error)
    unserved = {"error": {"param": "model", "code": "model_not_found"}}
    assert wrong(Case({}, "", harmless=False), 404, error) and not wrong(Case({}, "", harmless=False), 404, unserved)
    placed = {"error": {"param": "n", "code": "invalid_value"}}
    assert wrong(Case({}, "", harmless=True), 400, placed) and not wrong(Case({}, "", harmless=False), 400, placed)
