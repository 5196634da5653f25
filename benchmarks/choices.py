"""Whether the kind of a value is the model's own choice: the constrained first choice beside the unconstrained one.

    python benchmarks/choices.py [--gguf FILE] [--cases N]

Cases are made here: forty names of fields, each in a question that shows an answer of one of six kinds. The free model
begins a value; then it begins one under a schema that allows this kind and others. Both are greedy, go on after the
same text and are left as soon as their kind shows.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain, product

from router_backend.checkpoints.ladder import Candidate, Rung
from router_backend.schema.write import SchemaWriter
from router_backend.service.loader import Loader
from router_backend.settings import load_settings
from router_backend.types import Chunk, GenerateRequest, SamplingParams

TEXTS = ("name", "title", "city", "country", "colour", "author", "language", "street", "answer", "reason")
NUMBERS = ("age", "price", "year", "count", "weight", "height", "distance", "score", "minutes", "quantity")
FLAGS = ("active", "enabled", "is_prime", "has_children", "verified", "paid", "open", "public", "valid", "done")
HOLDERS = ("tags", "steps", "address", "metrics", "items", "options", "authors", "scores", "location", "details")
FIELDS = tuple(chain.from_iterable(zip(TEXTS, NUMBERS, FLAGS, HOLDERS, strict=True)))
EXAMPLES = ('"blue"', "12", "true", '["a", "b"]', '{"first": 1}', "null")
KINDS = (
    ("string", "number"),
    ("string", "array"),
    ("string", "number", "boolean"),
    ("string", "number", "null"),
    ("array", "object", "number", "boolean"),
    ("object", "null", "string"),
    ("string", "number", "boolean", "null", "array", "object"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", help="a checkpoint of your own in place of the embedded one")
    parser.add_argument("--cases", type=int, default=200)
    options = parser.parse_args()
    candidate = Candidate(options.gguf, "gguf") if options.gguf else Candidate("embedded", "embedded")
    model = Loader(load_settings(slots=1, threads=1)).model(Rung(candidate, "gguf"))
    found = Counter[tuple[str, str]]()
    try:
        for field, example in product(FIELDS, EXAMPLES):
            prompt = f'Answer in JSON, like {{"sort": {example}}}. What is the "{field}" of your favourite example?'
            prefix = f'{{"{field}":'
            free = begun(model.generate(GenerateRequest("", prompt, SamplingParams(6, 0.0), prefix=prefix), stays))
            allowed = [kinds for kinds in KINDS if free in kinds]
            if not allowed:
                continue
            schema = json.dumps(of_kinds(field, allowed[found.total() % len(allowed)]))
            asked = GenerateRequest("", prompt, SamplingParams(200, 0.0), "json", schema=schema)
            found[free, begun(SchemaWriter(model).write(asked, stays), prefix)] += 1
            if found.total() % 20 == 0:
                print(f"{alike(found)} of {found.total()}", flush=True)
            if found.total() == options.cases:
                break
    finally:
        model.close()
    for (free, kept), count in found.most_common():
        print(f"  {free} → {kept}: {count}")


def alike(found: Counter[tuple[str, str]]) -> int:
    return sum(count for (free, kept), count in found.items() if free == kept)


def of_kinds(field: str, kinds: tuple[str, ...]) -> object:
    """A schema of an object with that field, whose value may be of these kinds."""
    properties = {field: {"type": kinds}}
    return {"type": "object", "properties": properties, "required": [field], "additionalProperties": False}


def begun(chunks: Iterator[Chunk], prefix: str = "") -> str:
    """The JSON type that the value after the prefix begins as."""
    known = {'"': "string", "[": "array", "{": "object", "t": "boolean", "f": "boolean", "n": "null", "-": "number"}
    text = ""
    for chunk in chunks:
        text += chunk.text
        if first := text[len(prefix) :].lstrip()[:1]:
            return "number" if first.isdigit() else known.get(first, "none")
    return "none"


def stays() -> bool:
    """Asked whether the client has left."""
    return False


if __name__ == "__main__":
    main()
