"""JSON Lines end at a line feed alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router_backend.errors import InvalidRequest
from router_backend.jsonl import read_lines, read_values

ROWS = [{"text": "a"}, {"text": "é 漢字 😀"}]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\u001f", "\u000b"])
@pytest.mark.parametrize("escape", [True, False])
def test_other_separators_are_no_ends_of_lines(tmp_path: Path, separator: str, escape: bool) -> None:
    source = tmp_path / "rows.jsonl"
    rows = [{"text": f"a{separator}b"}, *ROWS]
    source.write_bytes("\n".join(json.dumps(row, ensure_ascii=escape or separator < " ") for row in rows).encode())
    assert [value for _, value in read_values(source)] == rows


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", " \n"])
@pytest.mark.parametrize("last", ["", "\n", "\r\n\r\n"])
def test_ends_of_lines(tmp_path: Path, end: str, last: str) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(end.join(map(json.dumps, ROWS)).encode() + last.encode())
    assert [value for _, value in read_values(source)] == ROWS


def test_a_byte_order_mark_is_skipped_before_the_first_line_alone(tmp_path: Path) -> None:
    source, mark = tmp_path / "rows.jsonl", b"\xef\xbb\xbf"
    source.write_bytes(mark + b"1\n2")
    assert list(read_values(source)) == [(1, 1), (2, 2)]
    source.write_bytes(b"1\n" + mark + b"2")
    with pytest.raises(InvalidRequest, match="line 2: not valid JSON"):
        list(read_values(source))
    source.write_bytes(mark + b"\n \n")
    assert list(read_lines(source)) == []
