"""Three small specialists, for the tools that a router's plans name: a calculator, a runner of Python, a search.

Each takes what its step says and the whole task, and answers with a text. What they do, they do without a model.
"""

from __future__ import annotations

import ast
import contextlib
import math
import operator
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

Specialist = Callable[[str, str], str]

_SUMS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_EXPRESSION = re.compile(r"(?<![\w.])[-(\d][\d\s.+\-*/%()]*[\d)]")
_LARGEST_POWER = 1000
_CODE = re.compile(r"```(?:python|py)?\n(.*?)```", re.DOTALL)
_SECONDS, _PATIENCE = 2, 30  # of a processor, and by the clock
_MEGABYTES, _CHARACTERS = 512, 4000
# What runs before the code: it may use this much of the machine.
_LIMITS = f"""\
import resource, sys
for what, most in (("CPU", {_SECONDS}), ("AS", {_MEGABYTES} << 20), ("FSIZE", 1 << 20), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + what), (most, most))
exec(compile(sys.stdin.read(), "<step>", "exec"), {{"__name__": "__main__"}})
"""


def calculator(step: str, task: str) -> str:
    """Works out the sums in the step, or else those in the task: numbers, brackets and + - * / // % **."""
    for text in (step, task):
        found = [each.strip() for each in _EXPRESSION.findall(text) if re.search(r"\d\s*[-+*/%]", each)]
        if found:
            return "; ".join(f"{each} = {_worked_out(each)}" for each in found)
    return "there is nothing to calculate"


def _worked_out(expression: str) -> str:
    try:
        value = _value(ast.parse(expression, mode="eval").body)
        return f"{value:.12g}" if isinstance(value, float) else str(value)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError) as error:
        return f"not a sum ({error})"


def _value(node: ast.AST) -> float:
    """Of a tree of numbers and operators: nothing else is evaluated. Raises ValueError or ArithmeticError."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    if isinstance(node, ast.UnaryOp) and type(node.op) in _SUMS:
        return _SUMS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _SUMS:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and max(abs(left), abs(right)) > _LARGEST_POWER:
            raise ValueError("the power is too large")
        return _SUMS[type(node.op)](left, right)
    raise ValueError("only numbers and operators are")


def python(step: str, task: str) -> str:
    """Runs the Python blocks of the step, or else of the task, and says what they print.

    In a process of its own, in an empty folder, with limits of processor time, memory and output. That holds off
    accidents, not attacks: such a process reads files and reaches the network. Put it into a container for those.
    """
    code = "\n".join(_CODE.findall(step) or _CODE.findall(task))
    if not code:
        return "there is no code to run"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        running = subprocess.Popen(
            [sys.executable, "-I", "-c", _LIMITS],
            cwd=folder,
            env={},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            running.communicate(code.encode(), timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            return f"it did not end within {_PATIENCE} seconds"
        finally:
            _end(running)
        output.seek(0)
        text = output.read().decode(errors="replace").strip()[-_CHARACTERS:]
    return text if running.returncode == 0 else f"{text}\nit failed with code {running.returncode}".strip()


def _end(running: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def search(folder: Path, most: int = 3) -> Specialist:
    """A specialist that finds the paragraphs of a folder's texts (`.txt`, `.md`) that a step is about."""
    paragraphs = [
        (path.name, paragraph.strip())
        for path in sorted([*folder.rglob("*.txt"), *folder.rglob("*.md")])
        for paragraph in path.read_text(encoding="utf-8", errors="replace").split("\n\n")
        if paragraph.strip()
    ]
    counts = [Counter(_words(text)) for _, text in paragraphs]
    having = Counter(word for each in counts for word in each)

    def found(step: str, task: str) -> str:
        wanted = set(_words(f"{step} {task}"))
        scores = [
            sum(
                math.log(1 + count[word]) * math.log((1 + len(counts)) / having[word]) for word in wanted & count.keys()
            )
            for count in counts
        ]
        best = sorted(range(len(scores)), key=lambda at: -scores[at])[:most]
        lines = [f"{paragraphs[at][0]}: {paragraphs[at][1]}" for at in best if scores[at] > 0]
        return "\n".join(lines) or "none of the texts is about it"

    return found


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text.lower()) if len(word) > 2]
