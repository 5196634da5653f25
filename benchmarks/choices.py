"""Whether the kind of a value is the model's own choice: the constrained first choice beside the unconstrained one.

    python benchmarks/choices.py [--gguf FILE]

200 cases made here: forty names of fields, each after a question about it, under five schemas whose values may be
of several kinds. Both are greedy and go on after the same text. A case counts where the schema allows what the free
model begins.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter

from router_backend.checkpoints.ladder import Candidate, Rung
from router_backend.engines.base import LocalModel
from router_backend.schema.write import SchemaWriter
from router_backend.service.loader import Loader
from router_backend.settings import load_settings
from router_backend.types import GenerateRequest, SamplingParams

TEXTS = ("name", "title", "city", "country", "colour", "author", "language", "street", "answer", "reason")
NUMBERS = ("age", "price", "year", "count", "weight", "height", "distance", "score", "minutes", "quantity")
FLAGS = ("active", "enabled", "is_prime", "has_children", "verified", "paid", "open", "public", "valid", "done")
HOLDERS = ("tags", "steps", "address", "metrics", "items", "options", "authors", "scores", "location", "details")
KINDS = {
    "text or number": ["string", "number"],
    "text or list": ["string", "array"],
    "text, number or truth value": ["string", "number", "boolean"],
    "text, number or nothing": ["string", "number", "null"],
    "anything": ["string", "number", "boolean", "null", "array", "object"],
}


def kind(text: str) -> str:
    """The JSON type that a value of this beginning has."""
    first = text.lstrip()[:1]
    known = {'"': "string", "[": "array", "{": "object", "t": "boolean", "f": "boolean", "n": "null"}
    return "number" if first.isdigit() or first == "-" else known.get(first, "none")


def said(model: LocalModel, prompt: str, field: str, kinds: list[str]) -> tuple[str, str]:
    """The kind that the free model begins, and the one that is written."""
    prefix = f'{{"{field}":'
    free = GenerateRequest("free", prompt, SamplingParams(6, 0.0), prefix=prefix)
    begun = "".join(chunk.text for chunk in model.generate(free, lambda: False))
    properties = {field: {"type": kinds}}
    schema = {"type": "object", "properties": properties, "required": [field], "additionalProperties": False}
    asked = GenerateRequest("kept", prompt, SamplingParams(80, 0.0), "json", schema=json.dumps(schema))
    text = "".join(chunk.text for chunk in SchemaWriter(model).write(asked, lambda: False))
    return kind(begun), kind(text.removeprefix(prefix))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", help="a checkpoint of your own in place of the embedded one")
    path = parser.parse_args().gguf
    candidate = Candidate(path, "gguf") if path else Candidate("embedded", "embedded")
    model = Loader(load_settings(slots=1)).model(Rung(candidate, "gguf"))
    try:
        found = Counter[tuple[str, str]]()
        for name, kinds in KINDS.items():
            alike = cases = 0
            for field in (*TEXTS, *NUMBERS, *FLAGS, *HOLDERS):
                prompt = f'Answer in JSON with the one key "{field}". What is the {field} of your favourite example?'
                free, kept = said(model, prompt, field, kinds)
                if free in kinds:
                    cases += 1
                    alike += free == kept
                    found[free, kept] += 1
            print(f"{name}: {alike} of {cases}", flush=True)
        right = sum(count for (free, kept), count in found.items() if free == kept)
        print(f"altogether: {right} of {sum(found.values())}")
        for (free, kept), count in found.most_common():
            print(f"  {free} → {kept}: {count}")
    finally:
        model.close()


if __name__ == "__main__":
    main()
