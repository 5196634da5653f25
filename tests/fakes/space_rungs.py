"""Places a checkpoint in every precision, launches, and says what each answers in its worker.

python tests/fakes/space_rungs.py FOLDER PORT
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fakes import cuda as fake_cuda

fake_cuda.install()

import gradio as gr  # noqa: E402

import router_backend.space  # noqa: E402, F401 - sets what must be set before transformers is imported
from router_backend.checkpoints.ladder import Candidate, Rung  # noqa: E402
from router_backend.plan.write import PlanWriter  # noqa: E402
from router_backend.service.loader import Loader  # noqa: E402
from router_backend.settings import load_settings  # noqa: E402
from router_backend.space.engine import SpaceEngine  # noqa: E402
from tests.fakes.space_requests import REQUEST, RUNGS  # noqa: E402


def main(folder: str, port: int) -> None:
    settings = load_settings()
    placed = {}
    for strategy in RUNGS:
        model = Loader(settings).model(Rung(Candidate(folder, "folder"), strategy))
        placed[strategy] = SpaceEngine(model, PlanWriter(model, settings.tools), settings, weights=0)
    with gr.Blocks() as page:
        pass
    page.launch(prevent_thread_lock=True, quiet=True, server_port=port, ssr_mode=False)
    said = {strategy: asyncio.run(answer(engine)) for strategy, engine in placed.items()}
    print(json.dumps(said), flush=True)
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(0)


async def answer(engine: SpaceEngine) -> str:
    return "".join([chunk.text async for chunk in engine.generate(REQUEST)])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
