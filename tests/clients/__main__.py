"""Clients that people use, unmodified, against `router-backend serve` with the embedded checkpoint: `make clients`.

python -m tests.clients [CASE …]     # a line for each case; without names every case
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from router_backend.plan.rules import validate
from router_backend.plan.schema import Plan
from router_backend.settings import load_settings
from tests.clients.ticket import Ticket
from tests.fakes.running import process

ROOT = Path(__file__).parents[2]
PYTHON = ("-W", "ignore", "-m", "tests.clients.python")
NODE = ("--input-type=module", "-")
KEY = "sk-clients-1"


class Case(NamedTuple):
    """`home` is the environment in `.venv` that has the client."""

    name: str
    home: str
    asks: str
    wants: type[BaseModel] = Ticket


CASES = (
    Case("openai_parse", "clients", "parse() with a class"),
    Case("openai_plan", "clients", "parse() with the plan's class", Plan),
    Case("langchain", "clients", "with_structured_output()"),
    Case("pydantic_ai_native", "clients", "NativeOutput"),
    Case("agents_output", "clients", "an agent with output_type"),
    Case("instructor_json_schema", "clients-older", "Mode.JSON_SCHEMA"),
    Case("llama_index_schema", "clients-older", "as_structured_llm()"),
    Case("openai_js_parse", "clients-node", "parse() with zodResponseFormat()"),
    Case("openai_js_plan", "clients-node", "create() without a format", Plan),
    Case("ai_sdk_object", "clients-node", "generateText() with Output.object()"),
    Case("ai_sdk_object_stream", "clients-node", "streamText() with Output.object()"),
    Case("ai_sdk_openai", "clients-node", "the same with createOpenAI().chat()"),
    Case("ai_sdk_plan", "clients-node", "generateText() without a format", Plan),
    Case("openai_tools", "clients", "parse() with a tool, required"),
    Case("openai_tools_stream", "clients", "stream() with a tool, required"),
    Case("langchain_tools", "clients", "with_structured_output(method='function_calling')"),
    Case("pydantic_ai_tool", "clients", "output_type"),
    Case("agents_handoff", "clients", "an agent that hands off"),
    Case("instructor_tools", "clients-older", "Mode.TOOLS"),
    Case("llama_index_tools", "clients-older", "as_structured_llm() with function calls"),
    Case("openai_js_tools", "clients-node", "parse() with zodFunction()"),
    Case("openai_js_tools_stream", "clients-node", "stream() with zodFunction()"),
    Case("ai_sdk_tools", "clients-node", "generateText() with a tool, required"),
    Case("pydantic_ai_prompted", "clients", "PromptedOutput"),
    Case("dspy_predict", "clients", "Predict()"),
    Case("instructor_json", "clients-older", "Mode.JSON"),
    Case("instructor_md_json", "clients-older", "Mode.MD_JSON"),
)


def main(names: list[str]) -> int:
    every = {case.name: case for case in CASES}
    if unknown := set(names) - set(every):
        sys.exit(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    cases = [every[name] for name in names] or CASES
    settings = {"MODEL_REPO": "embedded", "PORT": "0", "THREADS": "1", "ROUTER_API_KEYS": f"clients:{KEY}"}
    with tempfile.TemporaryDirectory() as folder, process(folder=Path(folder), **settings) as server:
        url = f"{server.ready()}/v1"
        wrong = 0
        for home in dict.fromkeys(case.home for case in cases):
            for case, said in answers(url, home, [case for case in cases if case.home == home], Path(folder)):
                fault = said.get("error") or unlike(case, said["object"])
                wrong += fault is not None
                shown = f"FAILED: {fault}" if fault else json.dumps(said["object"], ensure_ascii=False)
                line = f"{case.name:22} {case.asks:36} {said['seconds']:5.1f} s  {' '.join(shown.split())[:300]}"
                print(line, flush=True)
    print(f"{len(cases) - wrong} passed, {wrong} failed")
    return min(wrong, 1)


def answers(url: str, home: str, cases: list[Case], folder: Path) -> Iterator[tuple[Case, dict[str, Any]]]:
    """Runs the cases of one environment and yields what each said, as soon as it is said."""
    node = home == "clients-node"
    place = ROOT / ".venv" / home
    program = ["node", *NODE] if node else [str(place / "bin" / "python"), *PYTHON]
    # A home of their own: what they cache or note down there is gone with it.
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    errors = folder / "errors.txt"
    with (ROOT / "tests/clients/node.mjs").open() as script, errors.open("w") as stderr:
        running = subprocess.Popen(
            [*program, url, KEY, *(case.name for case in cases)],
            env=environment,
            cwd=place if node else folder,
            stdin=script if node else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        with running:
            assert running.stdout is not None
            lines = iter(running.stdout)
            for case in cases:
                line = next(lines, None)
                yield case, json.loads(line) if line else {"error": errors.read_text()[-1000:] or "ended", "seconds": 0}


def unlike(case: Case, found: object) -> str | None:
    """What is wrong with an object, None where it is what the case wants."""
    if case.wants is Plan:
        findings = validate(found, load_settings().tools)[1]
        return "; ".join(map(str, findings)) or None
    try:
        case.wants.model_validate(found)
    except ValueError as error:
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
