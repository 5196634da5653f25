"""Fuzzing: `make fuzz`.

    python -m tests.fuzz [REQUESTS]     # what schemathesis makes of our own OpenAPI, in rounds with a seed each
    python -m tests.fuzz sweep [CASES]  # so many schemas and so many chat bodies, to the embedded model

The first goes to a server with the echo engine, and exits 0 where no answer was a 5xx and every one kept the
description; the second where every answer was valid, or a 400 with a place.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

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


def main(requests: int) -> int:
    sent = seed = worst = 0
    while sent < requests and not worst:
        seed += 1
        worst, said, total = fuzz(800, seed)
        sent += total
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
