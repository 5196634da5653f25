"""A small, fixed part of the fuzzing in `make test`; `make fuzz` is the whole."""

from __future__ import annotations

import sys

import pytest

from tests.fuzz import fuzz, fuzz_gradio

pytestmark = pytest.mark.usefixtures("tmp_path")  # schemathesis keeps its cases in the folder that it runs in


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="schemathesis for Python 3.10 does not know our jsonschema-rs")
def test_no_request_of_our_own_description_breaks_the_server_or_the_description() -> None:
    code, said, total = fuzz(examples=3)
    assert code == 0, said[-8000:]
    assert total > 800


@pytest.mark.slow
@pytest.mark.parametrize("keys", [True, False], ids=["keys", "no keys"])
def test_every_call_of_gradios_counts_for_the_key_that_sent_it(keys: bool) -> None:
    assert fuzz_gradio(120, seed=7, keys=keys) == []
