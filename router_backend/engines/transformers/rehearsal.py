"""A rehearsal: a checkpoint's configuration, tokenizer and chat template are tried in a process that may come to harm.

A template is a program, and a tokenizer what a library makes of a file. One that loops, takes all memory or ends its
process does so here. This module is that process too; its arguments are the folder, PROMPT_FORMAT, and whether the
checkpoint's code is run.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from router_backend.checkpoints.description import tokenizer_folder
from router_backend.errors import CandidateError

_MOST_BYTES = 4 << 30  # of memory that is written to
_REFUSED = 3
_READ = (".json", ".jinja", ".model", ".txt", ".py")
_passed: set[str] = set()  # digests of what needs no second rehearsal


def rehearse(folder: Path, prompt_format: str, *, trusted: bool, patience: float) -> None:
    """Blocks until the process has ended; at most `patience` seconds, or for ever if that is 0.

    Raises:
        CandidateError: the checkpoint is refused, takes too long or too much memory, or ends the process.
    """
    seen = hashlib.sha256(repr((prompt_format, trusted)).encode())
    places = dict.fromkeys((folder, tokenizer_folder(folder)))
    for file in sorted(each for place in places for each in place.iterdir() if each.suffix in _READ and each.is_file()):
        seen.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    if seen.hexdigest() in _passed:
        return
    path = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-m", __name__, str(folder.absolute()), prompt_format, "trusted" if trusted else ""],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            timeout=patience or None,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CandidateError(
            f"its tokenizer or chat template does not come to an end: given up after {patience:g} seconds"
        ) from None
    if done.returncode == _REFUSED:
        raise CandidateError(json.loads(done.stdout.splitlines()[-1]))
    if done.returncode:
        last = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()][-1:]
        how = f"exit code {done.returncode}" + "".join(f": {line[:200]}" for line in last)
        raise CandidateError(f"its tokenizer or chat template ends the process that tries it ({how})")
    _passed.add(seen.hexdigest())


def main(folder: str, prompt_format: str, trusted: str) -> int:
    """The process."""
    with suppress(ImportError, ValueError, OSError):  # where no limit can be set, the deadline is left
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
    if not trusted:  # the libraries' own tokenizers need no torch, whose import takes as long as all of the rest
        sys.modules["torch"] = None  # type: ignore[assignment] # transformers then finds none
    from router_backend.engines.transformers.reading import read

    try:
        read(Path(folder), prompt_format, trusted=bool(trusted))
    except CandidateError as error:
        sys.stdout.write(json.dumps(error.message) + "\n")
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
