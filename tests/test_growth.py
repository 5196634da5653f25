"""`benchmarks/curves.py`: what is made of measured points."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from curves import PANELS, picture, power, powers, report

MEMORY = {"server_mb": 90.0, "llama_mb": 600.0}
SIZES = (1, 2, 4, 8, 16, 32, 64)


def rows(constant: float, exponent: float) -> list[dict[str, Any]]:
    return [{"x": size, "seconds": constant + 0.5 * size**exponent, **MEMORY} for size in SIZES]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_an_exponent_is_found_again(exponent: float) -> None:
    found = power([(size, 3 * size**exponent) for size in SIZES])
    assert found.exponent == pytest.approx(exponent, abs=1e-9) and found.factor == pytest.approx(3)
    assert (found.least, found.most) == (1, 64)


def test_a_constant_is_left_behind_where_it_no_longer_dominates() -> None:
    every, beyond = powers(rows(5, 1), "seconds")
    assert every is not None and beyond is not None
    assert every.exponent < 0.6 < 0.75 < beyond.exponent < 1
    assert (beyond.least, beyond.most) == (16, 64)


def test_what_is_mostly_constant_has_no_exponent_beyond_it() -> None:
    every, beyond = powers(rows(50, 1), "seconds")
    assert every is not None and every.exponent < 0.2 and beyond is None


def test_points_without_a_logarithm_or_with_refusals_are_left_out() -> None:
    found = [{"x": 0, "seconds": 1.0}, *rows(0, 1), {"x": 128, "seconds": 1.0, "refused": 60}]
    every, _ = powers(found, "seconds")
    assert every is not None and every.exponent == pytest.approx(1) and (every.least, every.most) == (1, 64)
    assert powers(found[:3], "seconds") == (None, None)


def test_a_report_has_every_part_and_what_it_broke_at(tmp_path: Path) -> None:
    told = {"status": 429, "code": "too_late", "message": "the queue is so long"}
    parts: dict[str, Any] = {}
    for name, panel in PANELS.items():
        values = dict.fromkeys(panel.columns, 7.0) | {"refused": 0.0}
        found = [{**values, **row, "times": 3} for row in rows(0, 1)]
        parts[name] = {"rows": found, "broke": [{"x": 128, "times": 60, **told}]}
    parts["history"]["rows"].insert(0, {**parts["history"]["rows"][0], "x": 0})
    parts["history"]["broke"] = [
        {"x": 320, "status": 0, "code": "the browser", "message": "full", "MAX_BODY_BYTES": "9"}
    ]
    parts["tools"]["broke"] = []
    machine = {"processor": "a processor", "cores": 2, "memory_gb": 16.0}
    text = report({"machine": machine, "commit": "0123456789", "versions": {"xllamacpp": "1"}, "parts": parts})
    assert "| s | tools | 1.00 (1 to 64) | 1.00 (2 to 64) |" in text
    assert "| llama.cpp MB | clients | 0.00 (1 to 64) | the constant dominates: 1.00 times from first to last |" in text
    assert "- 128, 60 of them: HTTP 429 `too_late`, the queue is so long" in text
    assert "- 320, with MAX_BODY_BYTES=9: the browser, full" in text and text.count("Nothing broke.") == 1
    assert all(f"**{panel.title}**" in text for panel in PANELS.values())
    picture(parts, tmp_path / "growth.png")
    drawn = (tmp_path / "growth.png").read_bytes()
    assert drawn.startswith(b"\x89PNG") and len(drawn) < 150_000
