"""llama.cpp's own server, bare: `python -m peers.on_llamacpp GGUF PORT THREADS SLOTS`."""

from __future__ import annotations

import sys
import time

import xllamacpp


def main(gguf: str, port: str, threads: str, slots: str) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.hostnames, params.port = ["127.0.0.1"], int(port)
    params.n_ctx, params.n_parallel = 4096 * int(slots), int(slots)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.ui = False
    server = xllamacpp.Server(params)
    while server:
        time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
