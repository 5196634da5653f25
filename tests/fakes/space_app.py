"""Runs `app.py` as the hub does: with an echo for a model, with torch and a stand-in for its CUDA, or as it is.

python tests/fakes/space_app.py echo|torch|real [FOLDER WITH A SPACE'S FILES]
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SPACE = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT
sys.path[:0] = [str(SPACE), str(ROOT)]


def main() -> None:
    if sys.argv[1] == "torch":
        from tests.fakes import cuda as fake_cuda

        fake_cuda.install()
    elif sys.argv[1] == "echo":
        sys.modules["torch"] = None  # type: ignore[assignment] # `spaces` does without, and starts in a third of the time
        teach_the_echo()
    sys.argv = [str(SPACE / "app.py")]
    runpy.run_path(sys.argv[0], run_name="__main__")


def teach_the_echo() -> None:
    """It says plans, and does what a prompt tells it to: be slow, say where it runs, fail, die."""
    from router_backend.engines import echo
    from router_backend.types import Chunk, GenerateRequest, ModelInfo
    from tests.fakes.running import says_plans

    class Teachable(echo.EchoModel):
        def generate(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
            self.seconds_per_token = 0.05 if "slow" in request.prompt else 0
            if "die" in request.prompt:
                os.kill(os.getpid(), signal.SIGKILL)
            if "fail" in request.prompt:
                raise ValueError("a bug")
            return super().generate(request, cancelled, slot)

    def script(request: GenerateRequest) -> str:
        return str(os.getpid()) if "pid" in request.prompt else says_plans(request)

    def load(rung: Any, settings: Any, path: Any) -> echo.EchoModel:  # noqa: ANN401 - as the engine's own
        info = ModelInfo("echo", rung.strategy, "echo", settings.context_length, settings.slots)
        return Teachable(info, script=script)

    echo.load = load


if __name__ == "__main__":
    main()
