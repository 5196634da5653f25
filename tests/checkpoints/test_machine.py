import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from router_backend.checkpoints.machine import Accelerator, container_memory, cores, inspect, processor_features


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which tools are looked for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def install(folder: Path, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def say(folder: Path, text: str | bytes, code: int = 0) -> None:
    (folder / "answer").write_bytes(text if isinstance(text, bytes) else text.encode())
    install(folder, f"while IFS= read -r line; do printf '%s\\n' \"$line\"; done < {folder}/answer\nexit {code}")


def test_no_tool_no_accelerator(folder: Path) -> None:
    assert inspect().accelerators == ()


def test_a_card_as_the_driver_lists_it(folder: Path) -> None:
    say(folder, "NVIDIA H100 80GB HBM3, 81559, 80994\n")
    assert inspect().accelerators == (Accelerator("NVIDIA H100 80GB HBM3", 81559 * 2**20, 80994 * 2**20),)


def test_several_cards_blank_lines_and_names_with_commas(folder: Path) -> None:
    say(folder, "Card, with, commas, 100, 50\n\n  Other card ,200,150\n")
    assert inspect().accelerators == (
        Accelerator("Card, with, commas", 100 << 20, 50 << 20),
        Accelerator("Other card", 200 << 20, 150 << 20),
    )


def test_the_tool_is_asked_for_these_figures(folder: Path) -> None:
    install(folder, f'printf "%s\\n" "$@" > {folder}/asked\nprintf "Card, 2, 1\\n"')
    assert len(inspect().accelerators) == 1
    assert (folder / "asked").read_text().split("\n")[:-1] == [
        "--query-gpu=name,memory.total,memory.free",
        "--format=csv,noheader,nounits",
    ]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "\n\n",
        "No devices were found\n",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
        "name, memory.total [MiB], memory.free [MiB]\n",
        "Card, [N/A], [N/A]\n",
        "Card, 100\n",
        "Card, 100 MiB, 50 MiB\n",
        ", ,\n",
        b"\xff\xfe\x00garbage\n",
    ],
)
def test_garbage_is_no_accelerator(folder: Path, answer: str | bytes) -> None:
    say(folder, answer)
    assert inspect().accelerators == ()


def test_a_failing_tool_is_no_accelerator_whatever_it_says(folder: Path) -> None:
    say(folder, "Card, 100, 50\n", code=9)
    assert inspect().accelerators == ()


def test_a_tool_that_cannot_be_run_is_no_accelerator(folder: Path) -> None:
    install(folder, "")
    (folder / "nvidia-smi").write_text("#!/no/such/interpreter\n")
    assert inspect().accelerators == ()


def test_a_tool_that_hangs_is_no_accelerator(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[object] = []

    def hang(command: list[str], **options: object) -> None:
        limits.append(options.get("timeout"))
        raise subprocess.TimeoutExpired(command, 10)

    install(folder, "")
    monkeypatch.setattr(subprocess, "run", hang)
    assert inspect().accelerators == ()
    assert limits == [10]


@pytest.mark.parametrize(
    ("visible", "asked"), [("1", "--id=1"), ("0,2", "--id=0,2"), ("GPU-5f", "--id=GPU-5f"), (None, ""), ("MIG-5f", "")]
)
def test_only_the_cards_that_may_be_used(folder: Path, visible: str | None, asked: str) -> None:
    install(folder, f'printf "%s" "$3" > {folder}/asked\nprintf "Card, 2, 1\\n"')
    assert len(inspect(visible).accelerators) == 1
    assert (folder / "asked").read_text() == asked


def limits(root: Path, files: dict[str, str]) -> tuple[int, int]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return container_memory(root)


def test_the_limit_of_a_container(tmp_path: Path) -> None:
    stat = "anon 100\ninactive_file 30\nactive_file 5\n"
    files = {"memory.max": "1000\n", "memory.current": "400\n", "memory.stat": stat}
    assert limits(tmp_path / "v2", files) == (1000, 630)
    assert limits(tmp_path / "full", {**files, "memory.current": "1200"}) == (1000, 0)
    older = {"memory.limit_in_bytes": "2000", "memory.usage_in_bytes": "500", "memory.stat": "total_inactive_file 7"}
    assert limits(tmp_path / "v1", {f"memory/{name}": text for name, text in older.items()}) == (2000, 1507)


@pytest.mark.parametrize("limit", ["max\n", "", "garbage"])
def test_a_container_without_a_limit(tmp_path: Path, limit: str) -> None:
    files = {"memory.max": limit, "memory.current": "400\n", "memory.stat": "inactive_file 30\n"}
    assert limits(tmp_path, files) == (sys.maxsize, sys.maxsize)
    assert container_memory(tmp_path / "nothing") == (sys.maxsize, sys.maxsize)


def test_a_container_has_no_more_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router_backend.checkpoints.machine.container_memory", lambda: (2000, 500))
    assert (inspect().total_bytes, inspect().free_bytes) == (2000, 500)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\nprocessor : 1\nflags : other\n",
            {"fpu", "avx2", "avx512_bf16"},
        ),
        ("Features\t: fp asimd bf16\n", {"fp", "asimd", "bf16"}),
        ("nothing of the kind", set()),
    ],
)
def test_what_the_processor_can_do(tmp_path: Path, text: str, expected: set[str]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert processor_features(tmp_path / "cpuinfo") == expected
    assert processor_features(tmp_path / "none") == frozenset()


def test_processor_and_memory(folder: Path) -> None:
    machine = inspect()
    assert machine.processor
    assert 0 < machine.total_bytes <= psutil.virtual_memory().total
    assert 0 < machine.free_bytes <= machine.total_bytes
    assert machine.cores == cores()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_cores_are_those_this_process_may_use() -> None:
    code = "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]); "
    code += "from router_backend.checkpoints.machine import cores; print(cores())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "1"


def test_cores_where_there_is_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, router_backend.checkpoints.machine, router_backend.checkpoints.ladder, router_backend.engines; "
    code += "print([x for x in ('torch', 'transformers', 'xllamacpp', 'gradio', 'llguidance') if x in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
