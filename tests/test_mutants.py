"""The mutants are those of the code as it is; `make mutants` runs them."""

from __future__ import annotations

import re

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant

every = pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.row}-{mutant.what}")


def test_every_row_of_the_fault_table_has_one() -> None:
    assert sorted({mutant.row for mutant in MUTANTS}) == list(range(1, 33))


@every
def test_what_is_taken_out_is_there_once(mutant: Mutant) -> None:
    assert len(mutant.places()) == 1
    assert mutant.old != mutant.new


@every
def test_its_tests_are_there(mutant: Mutant) -> None:
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), test


def test_the_table_of_rows_names_the_files_of_their_tests() -> None:
    told: dict[int, set[str]] = {}
    for line in (ROOT / "docs/reliability.md").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"\| ([\d, –]+) \|.*\|(.*)\|$", line):
            files = set(re.findall(r"`([\w/]*test_\w+\.py)`", found[2]))
            told |= dict.fromkeys(numbers(found[1]), files) if files else {}
    there: dict[int, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name in re.findall(r"^def test_row_(\d\d(?:_\d\d)*)_", path.read_text(encoding="utf-8"), re.MULTILINE):
            for row in name.split("_"):
                there.setdefault(int(row), set()).add(path.relative_to(ROOT / "tests").as_posix())
    assert told == there


def numbers(text: str) -> list[int]:
    """Those of "1–3, 5"."""
    ranges = [[int(end) for end in part.split("–")] for part in text.split(",")]
    return [number for ends in ranges for number in range(ends[0], ends[-1] + 1)]
