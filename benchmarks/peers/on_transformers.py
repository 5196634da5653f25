"""transformers' generate(), bare or with xgrammar: `python -m peers.on_transformers FOLDER PORT THREADS SLOTS`.

What waits goes into one batch, as generate() takes several prompts at once; its seed is that of the first.
"""

from __future__ import annotations

import json
import sys
import threading
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any

import torch
import xgrammar
from tokenizers.decoders import DecodeStream
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria
from xgrammar.contrib.hf import LogitsProcessor

from peers.endpoint import Job, server

_GATHERED = 0.1  # seconds in which requests count as simultaneous


class Told(StoppingCriteria):  # type: ignore[misc]
    """Passes on each token of each row as it comes."""

    def __init__(self, tokenizer: Any, jobs: list[Job], end: set[int]) -> None:  # noqa: ANN401 - untyped
        self._inner, self._jobs, self._end = tokenizer.backend_tokenizer, jobs, end
        self._streams = [DecodeStream(skip_special_tokens=True) for _ in jobs]
        self._done = [False] * len(jobs)

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ANN401
        for row, (job, token) in enumerate(zip(self._jobs, input_ids[:, -1].tolist(), strict=True)):
            if self._done[row]:
                continue
            job.tokens += 1
            if text := self._streams[row].step(self._inner, token):
                job.pieces.put(text)
            if token in self._end or job.tokens >= job.max_tokens:
                self._done[row] = True
                job.pieces.put(None)
        return torch.tensor(self._done)


def main(folder: str, port: str, threads: str, slots: str) -> None:
    torch.set_num_threads(int(threads))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16").eval()
    known = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=model.config.vocab_size)
    compiler = xgrammar.GrammarCompiler(known)

    @cache
    def compiled(schema: str) -> Any:  # noqa: ANN401
        # The checkpoints' own form; with any whitespace a small one fills its limit with blanks.
        return compiler.compile_json_schema(schema, any_whitespace=False)

    def answer(jobs: list[Job]) -> None:
        first = jobs[0]
        texts = [
            tokenizer.apply_chat_template(job.messages, add_generation_prompt=True, tokenize=False) for job in jobs
        ]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        for job, mask in zip(jobs, batch["attention_mask"], strict=True):
            job.prompt_tokens = int(mask.sum())
        grammar = [LogitsProcessor(compiled(json.dumps(first.schema)))] if first.schema else []
        torch.manual_seed(first.seed)
        with torch.inference_mode():
            model.generate(
                **batch,
                do_sample=True,
                temperature=first.temperature,
                top_p=first.top_p,
                top_k=0,
                max_new_tokens=first.max_tokens,
                logits_processor=grammar,
                stopping_criteria=[Told(tokenizer, jobs, {tokenizer.eos_token_id})],
            )

    waiting: SimpleQueue[Job] = SimpleQueue()

    def work() -> None:
        held: Job | None = None
        while True:
            jobs, held = [held or waiting.get()], None
            try:
                while len(jobs) < int(slots):
                    another = waiting.get(timeout=_GATHERED)
                    if (another.max_tokens, another.schema) != (jobs[0].max_tokens, jobs[0].schema):
                        held = another
                        break
                    jobs.append(another)
            except Empty:
                pass
            try:
                answer(jobs)
            except Exception as error:
                for job in jobs:
                    job.pieces.put(error)

    threading.Thread(target=work, daemon=True).start()
    server(int(port), waiting.put).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
