"""What this machine has: processor, memory, accelerators. Read without importing anything heavy."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Accelerator:
    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """`features` are the processor's, as Linux names them; empty where the system does not tell."""

    processor: str
    cores: int
    total_bytes: int
    free_bytes: int
    accelerators: tuple[Accelerator, ...] = ()
    features: frozenset[str] = frozenset()


def cores() -> int:
    """Cores that this process may use, which is fewer than the machine's in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def inspect(visible_cards: str | None = None) -> Machine:
    """`visible_cards`: as CUDA_VISIBLE_DEVICES has them, where not all may be used."""
    memory = psutil.virtual_memory()
    limit, left = container_memory()
    return Machine(
        processor=platform.machine(),
        cores=cores(),
        total_bytes=min(memory.total, limit),
        free_bytes=min(memory.available, left),
        accelerators=_nvidia(visible_cards),
        features=processor_features(),
    )


def container_memory(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """The memory limit of the container in bytes, and what is left below it; `sys.maxsize` where there is none.

    Beyond it the kernel ends the process, whatever the machine has. Cached pages of files count as used there
    (inactive_file) and are given back on demand, so they are left.
    """
    for folder, limit, used in (
        (root, "memory.max", "memory.current"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most, now = int((folder / limit).read_text()), int((folder / used).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such file, or the limit is the word max
            continue
        cached = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
        return most, max(0, most - now + cached)
    return sys.maxsize, sys.maxsize


def processor_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """As Linux lists them; the same for all cores."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    named = (line.partition(":") for line in lines)
    return frozenset(next((words.split() for name, _, words in named if name.strip() in ("flags", "Features")), ()))


def _nvidia(visible: str | None) -> tuple[Accelerator, ...]:
    """NVIDIA cards as the driver's own tool lists them; none where there is no such tool or it fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    if visible is not None and not visible.startswith("MIG"):  # the tool takes numbers and ids, but no parts of cards
        query.append(f"--id={visible}")
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()  # noqa: S603
        rows = [line.rsplit(",", 2) for line in lines if line.strip()]
        return tuple(Accelerator(name.strip(), int(total) << 20, int(free) << 20) for name, total, free in rows)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()
