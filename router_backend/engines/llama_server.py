"""The process in which llama.cpp runs: it serves on a unix socket, and ends with the process that began it.

It knows xllamacpp and nothing of ours. Its argument is JSON, the `orders` of `engines/llamacpp.py`. On its standard
output it tells in lines of JSON how the load goes: what the file's head says, the bytes read so far, and at last
`true`, or the reason why it does not load.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import signal
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_LONGEST_HEAD = 64 << 20
_PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
_TEMPLATE_KEY = b"tokenizer.chat_template"
_TEMPLATE = struct.pack("<Q", len(_TEMPLATE_KEY)) + _TEMPLATE_KEY + struct.pack("<I", 8)  # 8: a text


def main() -> None:
    orders = json.loads(sys.argv[1])
    _stay_beside(orders["parent"])
    # Whatever a library prints goes elsewhere.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    del sys.path[0]  # this folder, which holds modules of other packages' names
    path = Path(orders["path"])
    template, budget_line = read_head(path, orders["budget_key"])
    _tell(out, {"template": template, "budget_line": budget_line})
    _read_ahead(path, out)
    import xllamacpp

    on_gpu = orders["device"] != "cpu" and any("GPU" in str(each["type"]) for each in xllamacpp.get_device_info())
    if orders["device"] == "cuda" and not on_gpu:
        _tell(out, "MODEL_DEVICE=cuda, and llama.cpp sees no GPU here")
        return
    if not on_gpu:  # a driver reserves more than there is
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]  # which cannot be raised
        most = orders["memory"] if hard == resource.RLIM_INFINITY else min(hard, orders["memory"])
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        server = xllamacpp.Server(_params(xllamacpp, orders, on_gpu, plain=orders["plain"] or not template))
    except RuntimeError:
        _tell(out, "damaged, unsupported or out of memory")
        return
    _tell(out, True)
    while os.getppid() == orders["parent"]:
        time.sleep(1)
    del server


def _stay_beside(parent: int) -> None:
    """Ends with its parent, and before it where memory is short; nobody else's signals and no core file."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("500")
    if os.getppid() != parent:
        os._exit(1)
    # A terminal and a supervisor send these to both; the parent first lets it finish what it writes.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def read_head(path: Path, budget_key: str) -> tuple[bool, bool]:
    """Whether the file has a chat template, and whether it was trained with a budget line, out of its metadata."""
    # As it stands there: the key with its length before it, the type (7: a truth value), the value.
    budget_line = struct.pack("<Q", len(budget_key)) + budget_key.encode() + struct.pack("<IB", 7, 1)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        template, start = b"", content.find(_TEMPLATE, 0, _LONGEST_HEAD)
        if start >= 0:
            begin = start + len(_TEMPLATE) + 8
            (length,) = struct.unpack_from("<Q", content, begin - 8)
            template = content[begin : begin + length]
        return bool(template.strip()), content.find(budget_line, 0, _LONGEST_HEAD) >= 0


def _read_ahead(path: Path, out: TextIO) -> None:
    """Reads the file once: a disk's pace then shows as signs of life, and no load waits for it without one."""
    buffer, done = bytearray(1 << 24), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            done += count
            _tell(out, done)


def _params(xllamacpp: Any, orders: dict[str, Any], on_gpu: bool, *, plain: bool) -> Any:  # noqa: ANN401 - untyped
    params = xllamacpp.CommonParams()
    params.hostnames = [orders["socket"]]
    params.model.path = orders["path"]
    params.model_alias = {orders["name"]}
    params.n_ctx = orders["context"] * orders["slots"]
    params.n_parallel = orders["slots"]
    params.n_threads_http = orders["slots"] + 4
    # A prompt is prefilled in pieces of this many tokens, and cancelled between two of them.
    # From 64 rows on, attention on a CPU rounds differently: what comes of a prompt then hangs on how much was cached.
    params.n_batch = params.n_ubatch = 512 if on_gpu else 63 if orders["repeatable"] else 128
    params.n_gpu_layers = 999 if on_gpu else 0
    params.cpuparams.n_threads, params.cpuparams_batch.n_threads = orders["threads"]
    params.cache_ram_mib = 0
    params.n_ctx_checkpoints = 0
    params.ui = params.endpoint_slots = params.endpoint_props = False
    params.verbosity = -1
    params.warmup = False  # the trial does it
    if plain:  # it renders an example as it starts, and does not start where that fails
        params.chat_template = _PLAIN
    return params


def _tell(out: TextIO, what: object) -> None:
    out.write(json.dumps(what) + "\n")


if __name__ == "__main__":
    main()
