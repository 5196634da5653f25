"""A hub on loopback: what `huggingface_hub` and `checkpoints.hub` ask one, and what can go wrong with it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import re
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".gguf", ".bin")  # kept by hash on another host, as a hub does
SIGNATURE = "SIGNED-NEVER-SHOWN"


@dataclass
class Repo:
    """A repository and its troubles.

    Attributes:
        token: whoever does not send it is told that there is no such repository.
        gated: even with the token, access is refused.
        status: of the first `times` answers, with `headers`.
        hangs: what is asked for is never answered: "" for everything, or a part of the path.
        cut_at: a large file's transfer to the end breaks off at this byte, `times` times.
        short_by: large files end so many bytes early, as if that were all.
        damaged: large files have a wrong byte.
        ranges: whether parts of files can be asked for.
    """

    folder: Path
    token: str | None = None
    gated: bool = False
    status: int | None = None
    times: int = 1_000_000
    headers: dict[str, str] = field(default_factory=dict)
    hangs: str | None = None
    cut_at: int | None = None
    short_by: int = 0
    damaged: bool = False
    ranges: bool = True

    @property
    def commit(self) -> str:
        return hashlib.sha1(str(self.folder).encode()).hexdigest()

    @cached_property
    def files(self) -> list[dict[str, Any]]:
        """As the tree of a hub lists them."""
        return list(self._files())

    def _files(self) -> Iterator[dict[str, Any]]:
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            data = path.read_bytes()
            oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            name = path.relative_to(self.folder).as_posix()
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": oid}
            if name.endswith(LARGE):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}
            yield entry

    def listing(self, name: str) -> dict[str, Any]:
        siblings = []
        for entry in self.files:
            sibling = {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"]}
            if lfs := entry.get("lfs"):
                sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": 1}
            siblings.append(sibling)
        return {"id": name, "sha": self.commit, "private": bool(self.token), "gated": False, "siblings": siblings}


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    range: str | None
    token: str | None
    host: str  # "hub", or "store" for the other one


class FakeHub:
    """`url` is what HF_ENDPOINT should name; `asked` everything that came, over so many `connections`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[Asked] = []
        self.connections = 0
        self.closing = threading.Event()
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, host)) for host in ("hub", "store")]
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self.url, self.store = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def add(self, name: str, folder: Path, **troubles: Any) -> Repo:  # noqa: ANN401
        self.repos[name] = Repo(folder, **troubles)
        return self.repos[name]

    def paths(self, suffix: str) -> list[Asked]:
        """What was asked of files with this end."""
        return [each for each in self.asked if urlsplit(each.path).path.endswith(suffix)]

    def close(self) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    try:
        yield hub
    finally:
        hub.close()


def _handler(hub: FakeHub, host: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            hub.connections += 1

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            if hub.closing.is_set():  # a connection that was kept open outlives its server
                self.close_connection = True
                return
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            hub.asked.append(Asked(self.command, self.path, self.headers.get("Range"), token, host))
            path = unquote(urlsplit(self.path).path)
            found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)(?:/(.*))?", path)
            name, rest = (found[1], found[2] or "") if found else ("", "")
            repo = hub.repos.get(name)
            if host == "store":
                assert repo is not None
                assert token is None, "the token went to another host"
                self._file(repo, rest)
                return
            if repo is None or (repo.token not in (None, token) and token is None):
                status = 401 if token is None else 404
                self._say(status, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            elif repo.token not in (None, token):
                said = "Invalid credentials in Authorization header"
                self._say(401, {"error": said}, {"X-Error-Message": said})
            elif repo.hangs is not None and repo.hangs in path:
                hub.closing.wait(60)
                self.close_connection = True
            elif repo.status is not None and repo.times > 0:
                repo.times -= 1
                self._say(repo.status, {"error": f"no, {self.path}"}, repo.headers)
            elif path.startswith("/api/models/"):
                self._api(repo, name, rest)
            elif repo.gated:
                self._say(403, {"error": "Access is restricted"}, {"X-Error-Code": "GatedRepo"})
            else:
                self._resolve(repo, name, rest)

        def _api(self, repo: Repo, name: str, rest: str) -> None:
            what, _, revision = rest.partition("/")
            if revision and revision not in ("main", "v1", repo.commit):
                self._say(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            else:
                self._say(200, repo.files if what == "tree" else repo.listing(name))

        def _resolve(self, repo: Repo, name: str, rest: str) -> None:
            file = rest.partition("/")[2].partition("/")[2]
            entry = next((each for each in repo.files if each["path"] == file), None)
            if entry is None:
                self._say(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            elif lfs := entry.get("lfs"):
                linked = {"X-Linked-Etag": f'"{lfs["oid"]}"', "X-Linked-Size": str(lfs["size"])}
                there = f"{hub.store}/{name}/{file}?signature={SIGNATURE}"
                self._say(302, {}, {"Location": there, "X-Repo-Commit": repo.commit, **linked})
            else:
                self._file(repo, file, {"ETag": f'"{entry["oid"]}"', "X-Repo-Commit": repo.commit})

        def _file(self, repo: Repo, name: str, headers: dict[str, str] | None = None) -> None:
            with (repo.folder / name).open("rb") as file:
                # Large files are sent from the disk's cache, unless they are to be changed.
                large = repo.folder.joinpath(name).stat().st_size > 1 << 24 and not (repo.damaged or repo.short_by)
                data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if large else bytearray(file.read())
            if name.endswith(LARGE):
                if repo.damaged:
                    data[-1] ^= 1
                if repo.short_by:
                    del data[-repo.short_by :]
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "") if repo.ranges else None
            start = int(wanted[1]) if wanted else 0
            end = min(int(wanted[2]), len(data) - 1) if wanted and wanted[2] else len(data) - 1
            if wanted and start >= len(data):
                self._say(416, {}, {"Content-Range": f"bytes */{len(data)}"})
                return
            span = {"Content-Range": f"bytes {start}-{end}/{len(data)}"} if wanted else {}
            stop = None if wanted and wanted[2] else self._breaks_off(repo, name, start, end)
            self._send(206 if wanted else 200, memoryview(data)[start : end + 1], {**(headers or {}), **span}, stop)

        def _breaks_off(self, repo: Repo, name: str, start: int, end: int) -> int | None:
            cut = repo.cut_at
            if cut is None or repo.times <= 0 or not name.endswith(LARGE) or not start <= cut <= end:
                return None
            repo.times -= 1
            return cut - start

        def _say(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
            said = {"Content-Type": "application/json", **(headers or {})}
            self._send(status, json.dumps(body).encode(), said)

        def _send(
            self, status: int, body: bytes | memoryview, headers: dict[str, str], stop: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                with contextlib.suppress(OSError):  # whoever asked has had enough
                    self.wfile.write(body[:stop])
            if stop is not None:
                self.close_connection = True

    return Handler


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]], packed: str = "BF16") -> None:
    """Tensors of bfloat16, packed ones of that type, in the format as it is written down: length, JSON, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        dtype = packed if name.endswith(("qweight", "weight_packed")) else "BF16"
        size = 4 if dtype == "I32" else 2
        for each in shape:
            size *= each
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    words = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(words)) + words + (bytes(range(251)) * (end // 251 + 1))[:end])


def write_checkpoint(folder: Path, *, shards: int = 1, vocabulary: int = 64, **config: Any) -> Path:  # noqa: ANN401
    """The files of a tiny Llama, and some that nobody should fetch."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = (vocabulary, 8)
    shapes = {"model.embed_tokens.weight": rows, "model.norm.weight": (8,), "lm_head.weight": rows}
    for layer in range(2):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.self_attn.{each}_proj.weight": (8, 8) for each in "qkvo"}
        shapes |= {f"{block}.mlp.{each}_proj.weight": (16, 8) for each in ("gate", "up")}
        shapes |= {f"{block}.mlp.down_proj.weight": (8, 16), f"{block}.input_layernorm.weight": (8,)}
    plain = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    plain |= {
        "num_key_value_heads": 2,
        "intermediate_size": 16,
        "vocab_size": vocabulary,
        "max_position_embeddings": 128,
    }
    (folder / "config.json").write_text(json.dumps({**plain, **config}))
    names = list(shapes)
    files = (
        ["model.safetensors"]
        if shards == 1
        else [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    )
    weight_map: dict[str, str] = {}
    for index, file in enumerate(files):
        part = names[index::shards]
        write_safetensors(folder / file, {name: shapes[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("read me")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04 a pickle")
    (folder / "modeling.py").write_text("raise SystemExit('ran')")
    (folder / "onnx").mkdir(exist_ok=True)
    (folder / "onnx" / "model.onnx").write_bytes(b"onnx")
    return folder
