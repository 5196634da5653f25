"""Fuzzing: `make fuzz`.

    python -m tests.fuzz [REQUESTS]     # what schemathesis makes of our own OpenAPI, in rounds with a seed each
    python -m tests.fuzz sweep [CASES]  # so many schemas and so many chat bodies, to the embedded model

The first, with random calls of Gradio's routes between, goes to a server with the echo engine, which has keys with
quotas in every second round. It exits 0 where no answer was a 5xx, every one kept the description, and every request
counted for the key that sent it; the second where every answer was valid, or a 400 with a place.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx

from router_backend.types import Chunk, GenerateRequest
from tests.fakes.running import echo_model, process, says_plans, served
from tests.fakes.sweep import bodies, schemas, sent, wrong

# That positive data is accepted is not among them: whether a budget is too small depends on the checkpoint.
CHECKS = ",".join(
    [
        *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"),
        *("negative_data_rejection", "unsupported_method"),
    ]
)


def fuzz(examples: int, seed: int = 1) -> tuple[int, str, int]:
    """Random requests for each operation, besides the coverage phase.

    Returns the exit code, what schemathesis said, and how many requests were answered.
    """
    model = echo_model(slots=4, script=says_plans, context_length=8192)
    with served(model, queue_limit=64) as server:
        command = [
            *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.url}/openapi.json"),
            *("--phases", "examples,coverage,fuzzing", "--mode", "all", "--generation-allow-x00", "true"),
            *("--max-examples", str(examples), "--seed", str(seed), "--checks", CHECKS, "--no-color"),
            *("--generation-database", "none", "--continue-on-failure", "--suppress-health-check", "all"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        model.seen.clear()
        counts = server.service.metrics.http.collect()
        total = sum(sample.value for family in counts for sample in family.samples if sample.name.endswith("_total"))
        broken = sum(
            sample.value
            for family in counts
            for sample in family.samples
            if sample.name.endswith("_total") and sample.labels["status"].startswith(("5", "0"))
        )
        code = done.returncode or int(broken > 0)
        return code, f"{done.stdout}\n{done.stderr}\n5xx: {broken:g}", int(total)


KEYS = {"alice": "k-alice-1234", "bob": "k-bob-5678"}
_VALUES: tuple[object, ...] = (
    *("", " ", "hello", "a\nb", "\x00", "x" * 3000, "plan", "text", "advanced", "a, b"),
    *(None, True, 0, 1, 5, 600, 640.0, 131_073, -1, 10**30, 0.2, 0.9, 3.5, 1e308),
    *([], ["x"], {}, {"path": "/etc/passwd"}, float("nan")),
)
_DOORS = ("/gradio/gradio_api", "/gradio_api")
_CLOSED = (
    "upload",
    "dev/reload",
    "file=/etc/passwd",
    "proxy=http://h/",
    "component_server",
    "run/predict",
    "reset",
    "",
)


def fuzz_gradio(requests: int, seed: int = 1, *, keys: bool = True) -> list[str]:
    """Random calls, half of them well-formed, by alice, bob and nobody. Returns what is wrong, a line each."""
    chance = random.Random(seed)
    names = [*KEYS, "nobody"] if keys else [""]
    settings: dict[str, Any] = {}
    if keys:
        pairs = ",".join(f"{name}:{key}" for name, key in KEYS.items())
        settings = {"router_api_keys": pairs, "key_requests_per_minute": 40, "key_concurrency": 3}
    wrong: list[str] = []
    asked: Counter[str] = Counter()  # what came to the service while a name was asking, or was refused before
    with served(echo_model(), ui=True, **settings) as server, httpx.Client(timeout=60) as client:
        real = server.service.generate

        def recorded(request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
            asked[name] += 1
            return real(request)

        server.service.generate = recorded  # type: ignore[method-assign]
        for number in range(requests):
            name = chance.choice(names)
            client.headers = {"authorization": f"Bearer {KEYS[name]}"} if name in KEYS else {}
            api, before, good = server.url + chance.choice(_DOORS), asked[name], chance.random() < 0.5
            path, body = ("call/generate", {"data": [f"word {number}", "text", 20]}) if good else _odd(chance)
            json_type = {"content-type": "application/json"}
            answer = client.post(f"{api}/{path}", content=json.dumps(body), headers=json_type)
            said = answer.text
            if answer.status_code == 200 and (event := answer.json().get("event_id")):
                session = f"queue/data?session_hash={body['session_hash']}" if "join" in path else f"call/x/{event}"
                said = client.get(f"{api}/{session}").text
                read = "event: complete" in said or '"success":true' in said.replace(" ", "")
                asked[name] += not read and asked[name] == before
            elif ("join" in path or "call/" in path) and answer.status_code not in (401, 404):
                asked[name] += 1
            what = f"{name or 'anybody'}: {answer.status_code} to {path} {body}: {said[:200]}"
            if answer.status_code >= 500 or "internal error" in said or "Traceback" in said:
                wrong.append(f"broke {what}")
            elif name == "nobody":
                wrong += [f"let in {what}"] * (answer.status_code != 401)
            elif good and (asked[name] != before + 1 or not ("event: complete" in said or "this key may" in said)):
                wrong.append(f"a good call of {what}")
        counts = [sample for family in server.service.metrics.requests.collect() for sample in family.samples]
        for name in {*names, ""}:
            booked = sum(each.value for each in counts if each.name[-6:] == "_total" and each.labels["key"] == name)
            if booked != asked[name]:
                wrong.append(f"{name or 'nobody'} asked {asked[name]} times, and {booked:g} are in the books")
    return wrong


def _odd(chance: random.Random) -> tuple[str, Any]:
    """A path of Gradio's, there or not, and something that is mostly not a body for it."""
    data = [chance.choice(_VALUES) for _ in range(chance.randint(0, 11))]
    call = {
        "data": data,
        "fn_index": chance.choice([*range(-1, 11), "x"]),
        "session_hash": chance.choice(["s", "t", 1]),
    }
    path = chance.choice(["call/generate", "call/nothing", "call//clear_outputs", "queue/join", "cancel", *_CLOSED])
    return path, chance.choice([call, call, {"data": data}, data, {}, None])


def main(requests: int) -> int:
    sent = seed = worst = 0
    while sent < requests and not worst:
        seed += 1
        worst, said, total = fuzz(800, seed)
        if found := fuzz_gradio(500, seed, keys=seed % 2 == 0):
            worst, said = 1, "\n".join([said, *found])
        sent += total + 500
        print(said[-20_000:] if worst else f"seed {seed}: {total} requests", flush=True)
    print(f"{sent} requests, exit code {worst}")
    return worst


def sweep(count: int, seed: int = 1) -> int:
    """Schemas and chat bodies (`fakes/sweep.py`) at a server with the embedded model."""
    problems = answered = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        process("--port", "0", folder=Path(folder), MODEL_REPO="embedded") as server,
        httpx.Client(base_url=server.ready(), timeout=600) as client,
    ):
        for at, case in enumerate((*schemas(count, seed, budget=400), *bodies(count, seed)), 1):
            status, answer = sent(client, case)
            answered += status == 200
            if why := wrong(case, status, answer):
                problems += 1
                print(f"{case.made_by}: {why}\n  {case.body}"[:4000], flush=True)
            if at % 50 == 0:
                print(f"{at} cases: {answered} answered, {at - answered} refused, {problems} wrong", flush=True)
    return int(problems > 0)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        if sys.argv[1:2] == ["sweep"]:
            sys.exit(sweep(int(sys.argv[2]) if len(sys.argv) > 2 else 300))
        sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000))
