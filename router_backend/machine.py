"""What this machine has: processor, memory, accelerators. Read without importing anything heavy."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Accelerator:
    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    processor: str
    cores: int
    total_bytes: int
    free_bytes: int
    accelerators: tuple[Accelerator, ...] = ()


def cores() -> int:
    """Cores that this process may use, which is fewer than the machine's in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def inspect() -> Machine:
    memory = psutil.virtual_memory()
    return Machine(
        processor=platform.machine(),
        cores=cores(),
        total_bytes=memory.total,
        free_bytes=memory.available,
        accelerators=_nvidia(),
    )


def _nvidia() -> tuple[Accelerator, ...]:
    """NVIDIA cards as the driver's own tool lists them; none where there is no such tool or it fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()  # noqa: S603
        rows = [line.rsplit(",", 2) for line in lines if line.strip()]
        return tuple(Accelerator(name.strip(), int(total) << 20, int(free) << 20) for name, total, free in rows)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()
