"""OpenVINO GenAI, bare or with a schema: `python -m peers.on_openvino GGUF PORT THREADS SLOTS`."""

from __future__ import annotations

import json
import sys
import threading
from queue import SimpleQueue
from typing import Any

import openvino_genai

from peers.endpoint import Job, server


def main(gguf: str, port: str, threads: str, slots: str) -> None:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_seqs, scheduler.enable_prefix_caching = 2, int(slots), True
    pipe = openvino_genai.ContinuousBatchingPipeline(gguf, scheduler, "CPU", {"INFERENCE_NUM_THREADS": int(threads)})
    tokenizer = pipe.get_tokenizer()
    waiting: SimpleQueue[Job] = SimpleQueue()
    running: dict[int, tuple[Job, Any, list[int], int]] = {}  # a job, its handle, its tokens, characters sent

    def begin(number: int, job: Job) -> None:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.do_sample = job.max_tokens, True
        config.temperature, config.top_p, config.rng_seed = job.temperature, job.top_p, job.seed
        config.set_eos_token_id(tokenizer.get_eos_token_id())
        if job.schema:
            schema = openvino_genai.StructuredOutputConfig(json_schema=json.dumps(job.schema))
            config.structured_output_config = schema
        text = tokenizer.apply_chat_template(job.messages, True)
        ids = tokenizer.encode(text, add_special_tokens=False).input_ids
        job.prompt_tokens = ids.shape[1]
        running[number] = (job, pipe.add_request(number, ids, config), [], 0)

    def forward(number: int) -> None:
        job, handle, ids, sent = running[number]
        ended = False
        while handle.can_read():
            for output in handle.read().values():
                ids += output.generated_ids
                ended = ended or output.finish_reason != openvino_genai.GenerationFinishReason.NONE
        job.tokens = len(ids)
        text = str(tokenizer.decode(ids)) if ids else ""
        if len(text) > sent and (ended or not text.endswith("\ufffd")):
            job.pieces.put(text[sent:])
            sent = len(text)
        running[number] = (job, handle, ids, sent)
        if ended or handle.get_status() != openvino_genai.GenerationStatus.RUNNING:
            job.pieces.put(None)
            del running[number]

    def work() -> None:
        number = 0
        while True:
            while not running or not waiting.empty():
                job = waiting.get()
                number += 1
                try:
                    begin(number, job)
                except Exception as error:
                    job.pieces.put(error)
            pipe.step()
            for each in list(running):
                forward(each)

    threading.Thread(target=work, daemon=True).start()
    server(int(port), waiting.put).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
