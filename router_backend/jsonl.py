"""JSON Lines: one JSON value a line, a line ends at "\\n" alone. Blank lines and a byte order mark are skipped."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from router_backend.errors import InvalidRequest

_BOM = b"\xef\xbb\xbf"


def read_lines(path: Path, content: bytes | None = None) -> Iterator[tuple[int, bytes]]:
    """Line numbers, from 1, and lines, without the blank ones. What is there as `content` has the path as its name.

    Raises:
        InvalidRequest: the file cannot be read.
    """
    try:
        with path.open("rb") if content is None else io.BytesIO(content) as file:
            for number, line in enumerate(file, 1):
                text = line.removeprefix(_BOM) if number == 1 else line
                if text.strip():
                    yield number, text
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror or 'cannot be read'}") from None


def read_values(path: Path, content: bytes | None = None) -> Iterator[tuple[int, Any]]:
    """Line numbers and the values of the lines.

    Raises:
        InvalidRequest: the file cannot be read, or a line is not valid JSON in UTF-8; the message names both.
    """
    for number, line in read_lines(path, content):
        yield number, parse(line, f"{path}, line {number}")


def parse(text: bytes, where: str) -> Any:  # noqa: ANN401 - any JSON value
    """The value of a JSON text in UTF-8. Raises InvalidRequest that begins with `where`."""
    try:
        return json.loads(text.decode("utf-8"), parse_constant=refuse)
    except UnicodeDecodeError:
        raise InvalidRequest(f"{where}: not valid UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{where}: not valid JSON: {error}") from None


def value_of(text: str | bytes) -> Any:  # noqa: ANN401 - any JSON value
    """The value of a JSON text; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def refuse(constant: str) -> NoReturn:
    """For `parse_constant`: NaN and Infinity are Python's, not JSON's."""
    raise ValueError(f"{constant} is not JSON")
