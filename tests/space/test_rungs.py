"""Every rung under ZeroGPU: placed without a GPU, packed to the disk, and run in a worker, as it runs anywhere else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from router_backend.checkpoints import footprint
from router_backend.checkpoints.ladder import Candidate, Rung
from router_backend.service.loader import Loader
from router_backend.settings import load_settings
from tests.fakes import tiny
from tests.fakes.space_requests import REQUEST, RUNGS
from tests.fakes.zerogpu import fake_zerogpu

pytestmark = pytest.mark.torch
SCRIPT = Path(__file__).parents[1] / "fakes" / "space_rungs.py"


@pytest.mark.timeout(400)  # a process with torch and Gradio in it; 25 s on a machine that is free
def test_says_the_same_as_without_zerogpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tiny.save("llama31", tmp_path / "router"))
    there = _said_by_workers(folder, tmp_path)
    monkeypatch.setattr(footprint, "cpu_dtype", lambda machine: ("bfloat16", "as on a card"))
    settings = load_settings(model_device="cpu", spaces_zero_gpu=True, context_length=1024)
    for strategy in RUNGS:
        model = Loader(settings).model(Rung(Candidate(folder, "folder"), strategy))
        here = "".join(chunk.text for chunk in model.generate(REQUEST, lambda: False))
        assert there[strategy] == here and here.strip(), strategy
    assert len(set(there.values())) > 1, "they are different precisions"


def _said_by_workers(folder: str, home: Path) -> dict[str, str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with fake_zerogpu() as api:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "HF_HUB_OFFLINE": "1",
            "SPACES_ZERO_GPU": "true",
            "SPACES_ZERO_DEVICE_API_URL": api.url,
            "THREADS": "1",
            "CONTEXT_LENGTH": "1024",
        }
        popen = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(SCRIPT), folder, str(port)],
            env=environment,
            cwd=home,
            text=True,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, _ = popen.communicate(timeout=300)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()
        assert len(api.of("/startup-report")) == 1 and len(api.of("/allow")) == len(RUNGS)
        said: dict[str, str] = json.loads(out.splitlines()[-1])
        return said
