"""A small, fixed part of the fuzzing in `make test`; `make fuzz` is the whole."""

from __future__ import annotations

import pytest

from tests.fuzz import fuzz


@pytest.mark.slow
def test_no_request_of_our_own_description_breaks_the_server_or_the_description() -> None:
    code, said, total = fuzz(examples=3)
    assert code == 0, said[-8000:]
    assert total > 800
