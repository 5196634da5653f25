"""Our server beside others that hold the same checkpoints: `make peers`, or

    PYTHONPATH=.:benchmarks python -m peers [--second ADAPTER] [--quick] [--docs]

Each server is a process of its own in an environment of its own, and all of them stay while one checkpoint is measured.
A cell is a peer, a budget and a number of clients. The cells take turns, round after round: in a round each client of
a cell sends one request. What does not fit into `--minutes`, the slowest first, is left out and named; where time is
left, further rounds follow. Each round is kept in `rounds.jsonl`, so that a run that was interrupted goes on; another
commit, machine, checkpoint or package begins it anew. Of that file the report is made: `peers.json`, `peers.md`, and
two plots.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peers import report
from peers.asking import SAMPLING, Outcome, ask
from peers.checkpoints import Checkpoint, made
from peers.processes import PEERS, ROOT, SERVERS, Peer, Running, Unavailable, installed_bytes, machine, version
from router_backend.jsonl import read_values

# Of the first plan's time, until a cell was measured: what a request takes at another budget, and beside others.
_LONGER, _BESIDE = 1.5, 0.5


@dataclass(frozen=True)
class Cell:
    budget: int
    clients: int
    peer: str


class Run:
    """One checkpoint with its servers."""

    def __init__(self, options: argparse.Namespace, checkpoint: Checkpoint, kept: report.Kept) -> None:
        self._options, self._checkpoint, self._kept = options, checkpoint, kept
        self._prompts = [row["prompt"] for _, row in read_values(options.data)]
        self._servers: dict[str, Running] = {}
        self._first: dict[str, float] = {}
        self._done = kept.walls(checkpoint.name)
        self._walls = {Cell(key[2], key[3], key[1]): wall for key, wall in self._done.items()}

    def __call__(self, seconds: float) -> None:
        """Measures for about so many seconds, starts among them; what was kept earlier is counted in."""
        end = time.monotonic() + seconds - sum(self._done.values())
        with self._started() as peers:
            for number in range(self._options.rounds):
                groups = [(clients, budget) for clients in self._options.clients for budget in self._options.budgets]
                cells = [Cell(budget, clients, peer) for clients, budget in groups for peer in peers]
                waiting = [cell for cell in cells if (*self._key(cell), number) not in self._done]
                self._tell(number, waiting, end)
                for clients, budget in groups:
                    waiting = self._fitting(waiting, end - time.monotonic(), number)
                    group = [cell for cell in waiting if (cell.clients, cell.budget) == (clients, budget)]
                    waiting = [cell for cell in waiting if cell not in group]
                    turn = number % max(1, len(group))
                    for cell in group[turn:] + group[:turn]:  # another peer begins each round
                        self._measure(cell, number)

    def _tell(self, number: int, waiting: list[Cell], end: float) -> None:
        needed, left = sum(map(self._expected, waiting)) / 60, (end - time.monotonic()) / 60
        print(f"  round {number + 1}: {len(waiting)} cells, about {needed:.0f} min; {max(0, left):.0f} min are left")

    def _fitting(self, waiting: list[Cell], left: float, number: int) -> list[Cell]:
        """Without the slowest, until the others fit into the seconds that are left."""
        waiting = list(waiting)
        while waiting and sum(map(self._expected, waiting)) > left:
            slowest = max(waiting, key=self._expected)
            waiting.remove(slowest)
            if not number:
                self._kept.left_out(*self._key(slowest), "it did not fit into the time")
                print(f"  left out, it does not fit into the time: {slowest}")
        return waiting

    def _key(self, cell: Cell) -> tuple[str, str, int, int]:
        return self._checkpoint.name, cell.peer, cell.budget, cell.clients

    def _expected(self, cell: Cell) -> float:
        """Seconds of a round: as the last one, as the same at a smaller budget, or out of the first plan."""
        known = self._walls.get(cell)
        if known is None:
            smaller = [each for each in self._options.budgets if each < cell.budget]
            if smaller:
                return _LONGER * self._expected(replace(cell, budget=smaller[-1]))
            known = self._first[cell.peer] * (1 if cell.clients == 1 else cell.clients * _BESIDE)
        return known

    @contextlib.contextmanager
    def _started(self) -> Iterator[list[str]]:
        """The peers whose servers run. Each server answers one request, the first plan from its start on."""
        options, able = self._options, []
        sizes = {"threads": str(options.threads), "slots": str(max(options.clients))}
        try:
            for name in options.peers:
                peer = PEERS[name]
                try:
                    fresh = self._serve(peer.server, sizes)
                    outcome = self._ask(peer, len(self._prompts) - 1, options.budgets[0])
                    if outcome.error:
                        raise Unavailable(f"its first answer fails: {outcome.error}")
                except Unavailable as reason:
                    print(f"  {peer.title}: cannot take part: {reason}")
                    self._kept.unavailable(self._checkpoint.name, name, str(reason))
                    continue
                able.append(name)
                self._first[name] = outcome.seconds
                if fresh:
                    self._kept.cold(self._checkpoint.name, peer.server, fresh.ready_in_all + outcome.seconds)
                print(f"  {peer.title}: {outcome.seconds:.1f} s, {outcome.tokens} tokens, {outcome.prompt_tokens} read")
            yield able
        finally:
            for server in self._servers.values():
                server.close()

    def _serve(self, name: str, sizes: dict[str, str]) -> Running | None:
        """None where it runs already."""
        if name in self._servers:
            return None
        above = SERVERS[name].upstream
        if above:
            self._serve(above, sizes)
        self._servers[name] = running = Running(name, self._checkpoint, sizes, self._servers[above] if above else None)
        return running

    def _ask(self, peer: Peer, number: int, budget: int) -> Outcome:
        prompt = self._prompts[number % len(self._prompts)]
        prompt = prompt if peer.ours else self._checkpoint.prompt(prompt, budget)
        extras = dict(SERVERS[peer.server].extras)
        return ask(self._servers[peer.server].url, prompt, budget, number, schema=peer.schema, extras=extras)

    def _measure(self, cell: Cell, number: int) -> None:
        """A round of a cell: its clients send a request each, at once."""
        peer, server = PEERS[cell.peer], self._servers[PEERS[cell.peer].server]
        others = [
            each for name, each in self._servers.items() if name not in (peer.server, SERVERS[peer.server].upstream)
        ]
        idle = sum(each.processor_seconds() for each in others)
        began = time.monotonic()
        with ThreadPoolExecutor(cell.clients) as pool:
            numbers = range(number * cell.clients, (number + 1) * cell.clients)
            outcomes = list(pool.map(lambda each: self._ask(peer, each, cell.budget), numbers))
        wall = self._walls[cell] = time.monotonic() - began
        idle = sum(each.processor_seconds() for each in others) - idle
        sums = {"wall": wall, "peak_bytes": server.peak_bytes(), "others_busy": idle}
        self._kept.round(self._key(cell), number, [asdict(each) for each in outcomes], **sums)
        valid = sum(each.rules and each.error is None for each in outcomes)
        print(
            f"  round {number + 1}: {peer.title}, {cell.budget} tokens, {cell.clients} at once: "
            f"{valid} valid, {wall:.0f} s"
        )


def about(options: argparse.Namespace, checkpoints: list[Checkpoint]) -> dict[str, Any]:
    """What a run is of. Where it is another, the run begins anew."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    versions, disk = {}, {}
    for name in dict.fromkeys(PEERS[each].server for each in options.peers):
        with contextlib.suppress(Unavailable):
            server = SERVERS[name]
            versions[name] = f"{server.package} {version(server)}"
            disk[name] = installed_bytes(server)
    return {
        "machine": machine(),
        "commit": commit.stdout.strip(),
        "threads": options.threads,
        "sampling": SAMPLING,
        "requests": options.data.name,
        "versions": versions,
        "installed_bytes": disk,
        "checkpoints": {
            each.name: {
                "adapter": each.adapter,
                "budget_line": each.budget_line,
                "gguf_bytes": each.gguf.stat().st_size,
                "folder_bytes": (each.folder / "model.safetensors").stat().st_size,
            }
            for each in checkpoints
        },
    }


def chosen() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return sorted(map(int, text.split(",")))

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--second", type=Path, help="the adapter of a second checkpoint, on SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, default=ROOT / "router_tools" / "evaluate" / "gold.jsonl")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(PEERS), help=", ".join(PEERS))
    parser.add_argument("--budgets", type=numbers, default=[600, 1400])
    parser.add_argument("--clients", type=numbers, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3, help="at most")
    parser.add_argument("--minutes", type=float, default=48, help="for all starts and rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".venv" / "peers", help="checkpoints, rounds, logs, report"
    )
    parser.add_argument("--quick", action="store_true", help="one request a peer at 600 tokens: does it run?")
    parser.add_argument("--anew", action="store_true", help="forget the rounds that are kept")
    parser.add_argument("--docs", action="store_true", help="put the tables and plots into README.md and docs/")
    parser.add_argument("--report", action="store_true", help="only make the report of what is kept")
    options = parser.parse_args()
    if unknown := [each for each in options.peers if each not in PEERS]:
        parser.error(f"there is no {unknown[0]}: choose among {', '.join(PEERS)}")
    if options.quick:
        options.budgets, options.clients, options.rounds = [600], [1], 1
    return options


def main() -> None:
    options = chosen()
    rounds = options.folder / ("quick.jsonl" if options.quick else "rounds.jsonl")
    began = time.monotonic()
    if not options.report:
        options.folder.mkdir(parents=True, exist_ok=True)
        checkpoints = made(options.folder, options.second)
        kept = report.Kept(rounds, about(options, checkpoints), anew=options.anew or options.quick)
        most = options.minutes * 60 / len(checkpoints)
        print(f"{len(options.peers)} peers, {len(checkpoints)} checkpoints, at most {options.minutes:.0f} min")
        for checkpoint in checkpoints:
            print(f"{checkpoint.name} ({checkpoint.adapter})", flush=True)
            Run(options, checkpoint, kept)(most)
        print(f"{(time.monotonic() - began) / 60:.0f} min in all")
    report.write(rounds, options.folder, docs=ROOT if options.docs and not options.quick else None)


if __name__ == "__main__":
    for ending in (signal.SIGINT, signal.SIGTERM):  # the servers end with it
        signal.signal(ending, lambda *_: sys.exit("interrupted: the same command goes on"))
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    main()
