"""The figures of the house: `python -m tests.structure` prints lines, files and circles of imports, room by room."""

from __future__ import annotations

import ast
import re
from importlib.metadata import distributions
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("router_backend", "router_tools")
SMALL = 40  # lines: below it, a file has to earn its own name


def files() -> dict[str, Path]:
    """Each module's dotted name and its file."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def packages() -> dict[str, set[str]]:
    """The installed distributions by the modules that they bring. (Python 3.10's own function knows few.)"""
    found: dict[str, set[str]] = {}
    for each in distributions():
        lines = (each.read_text("RECORD") or "").splitlines()  # `files` would look at every file
        for name in {re.split(r"[/,]", line, maxsplit=1)[0].removesuffix(".py") for line in lines}:
            found.setdefault(name, set()).add(canonicalize_name(each.name))
    return found


def imports() -> dict[str, set[str]]:
    """Which of our modules each of our modules imports, at its head, in a function or for type checkers."""
    modules = files()
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom):
                named = [f"{node.module}.{each.name}" for each in node.names]
            else:
                continue
            for each in named:
                found = each if each in modules else each.rpartition(".")[0]
                if found in modules and found != name:
                    graph[name].add(found)
    return graph


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import each other, directly or through others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        left = list(graph[start])
        while left:
            name = left.pop()
            if name not in seen:
                seen.add(name)
                left += graph[name]
        return seen

    reach = {name: reached(name) for name in graph}
    groups = [{other for other in reach[name] if name in reach[other]} for name in graph]
    return [group for index, group in enumerate(groups) if group and group not in groups[:index]]


def main() -> None:
    lines = {name: path.read_text(encoding="utf-8").count("\n") for name, path in files().items()}
    print(f"{sum(lines.values())} lines of product in {len(lines)} files")
    small = [name for name, each in lines.items() if each < SMALL and files()[name].name != "__init__.py"]
    print(f"{len(small)} files under {SMALL} lines: {', '.join(small)}")
    for package in PACKAGES:
        rooms = [
            ROOT / package,
            *sorted(each for each in (ROOT / package).iterdir() if (each / "__init__.py").exists()),
        ]
        for room in rooms:
            flat = [path for path in room.glob("*.py") if path.name != "__init__.py"]
            inside = sum(path.read_text(encoding="utf-8").count("\n") for path in room.rglob("*.py"))
            print(f"  {room.relative_to(ROOT)}/: {len(flat)} flat files, {inside} lines in all")
    found = circles(imports())
    print(f"{len(found)} circles of imports" + "".join(f"\n  {' <-> '.join(sorted(each))}" for each in found))


if __name__ == "__main__":
    main()
