"""One merge: from base and adapter to the folders, the file and the card, each whole or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig
from transformers.utils.logging import disable_progress_bar

from router_backend import __version__
from router_backend.checkpoints import adapter, gguf_merge
from router_backend.checkpoints.description import Checkpoint, Folder, describe, is_tokenizer, tokenizer_folder
from router_backend.checkpoints.footprint import disk_shortfall, estimate
from router_backend.checkpoints.hub.write import hub_access, refusals
from router_backend.errors import CandidateError, InvalidRequest, explained
from router_backend.plan.prompt import BUDGET_KEY
from router_tools import base
from router_tools.merge import quantized, shards, verify

if TYPE_CHECKING:
    from router_backend.checkpoints.ladder import Candidate
    from router_backend.settings import Settings

_CARD = Path(__file__).with_name("card.md")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class MergeOptions:
    """What is merged, and what is made of it, as the help of the command has it.

    Attributes:
        dtype: of the weights; None: as in the base, and bf16 where that is a GGUF.
        copies: quantised ones, in folders beside `out`, and pushed to repositories with `-4bit` or `-8bit` in the name.
        memory: bytes that weights may take at once.
        check: whether logits are compared.
    """

    base: str
    adapter: Path
    out: Path
    dtype: str | None = None
    copies: tuple[str, ...] = ()
    gguf: str | None = None
    memory: int = 4 << 30
    check: bool = True
    push: str | None = None
    private: bool = False


def merge(options: MergeOptions, settings: Settings, say: Callable[[str], object] = print) -> int:
    """Does it all, and says what it does.

    Returns:
        The exit code: 0, or 1 where logits differ by more than rounding explains; nothing is pushed then.

    Raises:
        InvalidRequest: the options contradict each other, or `out` is there already.
        CandidateError: base or adapter cannot be read, do not fit together, or cannot be written as asked.
    """
    disable_progress_bar()
    candidate = base.named("BASE", options.base, settings)
    _refuse_contradictions(options, candidate)
    work = _Merge(options, settings, candidate, say)
    base.writable(options.out.parent)
    try:
        if options.out.suffix == ".gguf":
            work.gguf(options.gguf or "Q8_0", options.out)
        else:
            with _being_made(options.out) as new:
                work.folder(new)
    except (OSError, SafetensorError) as error:
        raise CandidateError(f"the merge into {options.out} failed: {error}") from error
    if options.push and not work.differs:
        work.push(options.push)
    return int(work.differs)


def _refuse_contradictions(options: MergeOptions, candidate: Candidate) -> None:
    """All that can be known to be wrong before the work begins."""
    out_of_gguf = candidate.kind in ("gguf", "hub-gguf", "embedded")
    if options.dtype not in (None, *DTYPES):
        raise InvalidRequest(f"{options.dtype} is no dtype to merge to: choose from {', '.join(DTYPES)}")
    if wrong := set(options.copies) - set(quantized.PRECISIONS):
        raise InvalidRequest(f"no copy can be made in {min(wrong)}: choose from {', '.join(quantized.PRECISIONS)}")
    if options.gguf:
        gguf_merge.check_kind(options.gguf)
    if (options.gguf or options.out.suffix == ".gguf") and not out_of_gguf:
        raise InvalidRequest(
            "a GGUF is made out of a GGUF base only. Convert the base with llama.cpp's own converter "
            "(python convert_hf_to_gguf.py FOLDER --outtype bf16 --outfile base.gguf), and merge into base.gguf"
        )
    if options.out.suffix == ".gguf" and (options.dtype or options.copies or options.push):
        raise InvalidRequest("with a .gguf file as OUT there is no --dtype, --copy or --push: name a folder for these")
    for place in (options.out, *(_beside(options.out, precision) for precision in options.copies)):
        if place.exists() and not (place.is_dir() and not any(place.iterdir())):
            raise InvalidRequest(f"{place} is there already: name another, or remove it")
    if options.copies:
        import_module("bitsandbytes")  # told before the work where it is missing


def _beside(out: Path, precision: str) -> Path:
    return out.with_name(f"{out.name}-{precision}")


@contextlib.contextmanager
def _being_made(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when the block ends well, and else is gone."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as place:
        yield (new := Path(place))
        if out.is_dir():
            out.rmdir()
        new.chmod(0o755)
        new.replace(out)


class _Merge:
    """The steps of one merge, in order. `differs`: whether logits did, by more than rounding explains."""

    def __init__(
        self, options: MergeOptions, settings: Settings, candidate: Candidate, say: Callable[[str], object]
    ) -> None:
        self._options, self._settings, self._candidate, self._say = options, settings, candidate, say
        self._adapter = adapter.read(options.adapter)
        self._figures: list[tuple[str, str]] = []
        self.differs = False
        self._merged: torch.Tensor | None = None
        self._plain = candidate.kind in ("folder", "hub")
        self._dtype = DTYPES[options.dtype] if options.dtype else None if self._plain else torch.bfloat16

    def folder(self, out: Path) -> None:
        """A folder of safetensors, what belongs to it, and its copies."""
        with self._base(out.parent) as folder:
            known = describe(Folder(folder))
            if known.quantized:
                raise CandidateError(f"the base is quantised ({known.quantized}): merge into it as it was before")
            self._refuse_base(folder)
            self._refuse_full_disk(known)
            self._weights(folder, out)
            if self._options.check:
                self._verify(folder, out)
        if self._options.gguf:
            self.gguf(self._options.gguf, out / f"{self._options.out.name}-{self._options.gguf}.gguf")
        for precision in self._options.copies:
            self._copy(out, precision)
        self._write_card(out, self._options.out.name, self._options.push)
        self._say(f"{self._options.out}: {'merged, but see above' if self.differs else 'merged'}")

    def gguf(self, kind: str, out: Path) -> None:
        """A GGUF out of the GGUF base, with its metadata; it is read back and compared."""
        source = base.files(self._candidate, self._settings)
        digest = gguf_merge.merge(source, self._options.adapter, out, kind=kind)
        self._figure("GGUF", f"`{out.name}`, {out.stat().st_size / 1e6:,.0f} MB, SHA-256 {digest}")
        if self._options.check:
            with explained(f"{out} cannot be compared with base and adapter"):
                ids = verify.prompt_ids(out)
                wanted = verify.gguf_logits(source, ids, self._adapter, rounded_as=out)
                found = verify.agreement(verify.of(base.load_model(out), ids), wanted)
            self._say(f"{out.name}, beside base and adapter rounded alike: {found}")
            self._judge(found, verify.SAME_ROUNDING)

    def push(self, repo: str) -> None:
        """Uploads the folder and its copies, each to a repository of its own. What is there is not sent again."""
        api, options = hub_access(self._settings), self._options
        made = {repo: options.out} | {f"{repo}-{each}": _beside(options.out, each) for each in options.copies}
        for name, folder in made.items():
            with refusals(f"{name} could not be pushed"):
                api.create_repo(name, private=options.private, exist_ok=True)
                done = api.upload_folder(repo_id=name, folder_path=folder, commit_message="A merged router checkpoint")
            self._say(f"{name}: pushed, commit {done.oid[:12]}")

    def _refuse_base(self, folder: Path) -> None:
        """Refuses a base that could not be read back, or that shares the head which the adapter changes.

        PEFT changes such a head beside the embeddings; merged, they are one tensor, which cannot hold both.
        """
        with explained("transformers does not read the base's config.json"):
            config = AutoConfig.from_pretrained(folder)
        if self._options.check:
            verify.prompt_ids(folder)
        head = next((module for module in self._adapter.layers if module.endswith("lm_head")), None)
        if head and config.get_text_config().tie_word_embeddings:
            raise CandidateError(
                f"the adapter cannot be merged: it changes {head}, which this base shares with its embeddings "
                "(tie_word_embeddings)"
            )

    def _refuse_full_disk(self, known: Checkpoint) -> None:
        stored = known.stored_bytes
        if self._dtype is not None:
            stored = (known.linear + known.other) * self._dtype.itemsize
        needed = stored + sum(estimate(known, precision, 1, 1).weights for precision in self._options.copies)
        if short := disk_shortfall(needed, self._options.out.parent):
            raise CandidateError(f"{self._options.out.name} {short}: make room there, or name another place")

    @contextlib.contextmanager
    def _base(self, beside: Path) -> Iterator[Path]:
        """A folder of safetensors. A GGUF becomes one for a while, in fp32: as a whole, so it has to fit in memory."""
        path = base.files(self._candidate, self._settings)
        if path.is_dir():
            yield path
            return
        with tempfile.TemporaryDirectory(dir=beside) as folder:
            with explained(f"{path.name} does not load as a base"):
                model, tokenizer = base.load_model(path), base.load_tokenizer(path)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            yield Path(folder)

    def _weights(self, base: Path, out: Path) -> None:
        options, dtype = self._options, self._dtype
        shards.write(base, out, self._adapter.layers, dtype=dtype, memory=options.memory, note=self._say)
        above = (path for path in tokenizer_folder(base).iterdir() if is_tokenizer(path.name) and path.is_file())
        for path in (*quantized.beside_weights(base), *above):
            shutil.copyfile(path, out / path.name)
        changes: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch.")} if dtype else {}
        if self._adapter.knows_budgets:
            changes[BUDGET_KEY] = True
        config = json.loads((base / "config.json").read_text("utf-8"))
        if dtype:
            config.pop("torch_dtype", None)
        (out / "config.json").write_text(json.dumps(config | changes, indent=2) + "\n", "utf-8")
        rank = max(lora.lower.shape[0] for lora in self._adapter.layers.values())
        kept = options.dtype or ("as in the base" if self._plain else "bf16")
        self._figure("weights", f"{kept}; {len(self._adapter.layers)} layers, rank {rank}")

    def _verify(self, folder: Path, out: Path) -> None:
        memory, ids = self._options.memory, verify.prompt_ids(out)
        with explained("base and adapter do not load together"):
            together = verify.logits(folder, ids, memory=memory, adapter=self._adapter)
            self._merged = verify.logits(out, ids, memory=memory)
        found = verify.agreement(self._merged, together)
        with shards.opened(out) as weights:
            kinds = {shards.DTYPES.get(each.get_dtype(), torch.float32) for each in weights.values()}
        allowed = max(verify.TOLERANCE[kind] for kind in kinds & verify.TOLERANCE.keys())
        self._figure("merged, beside base and adapter", str(found))
        self._judge(found, allowed)

    def _copy(self, merged: Path, precision: str) -> None:
        place = _beside(self._options.out, precision)
        with _being_made(place) as new:
            written = quantized.write(merged, new, precision, shard_bytes=max(self._options.memory // 2, 1 << 20))
            figures = [("quantised", f"{precision}, bitsandbytes")]
            if self._merged is not None:
                ids = verify.prompt_ids(new)
                with explained("the quantised copy does not load again"):
                    again = verify.of(base.load_model(new, dtype=written.dtype), ids)
                figures.append(("the copy, beside what was merged", str(verify.agreement(again, self._merged))))
                self._judge(verify.agreement(again, verify.of(written, ids)), verify.SAME)
            push = f"{self._options.push}-{precision}" if self._options.push else None
            self._write_card(new, place.name, push, *figures)
        self._say(f"{place}: " + ", ".join(value for _, value in figures))

    def _write_card(self, folder: Path, title: str, push: str | None, *more: tuple[str, str]) -> None:
        """A README that says what it is, how it was made and measured, and how to serve it; hubs read its front."""
        digest = hashlib.sha256((self._options.adapter / adapter.ADAPTER).read_bytes()).hexdigest()
        local = self._candidate.kind in ("folder", "gguf", "embedded")  # no hub could find it
        base = Path(self._candidate.name).name if local else self._candidate.name
        text = Template(_CARD.read_text("utf-8")).substitute(
            front="" if local else f"base_model: {base}\nbase_model_relation: finetune\n",
            title=title,
            base=base,
            adapter=f"`{self._options.adapter.name}` (SHA-256 {digest[:12]}…)",
            rows="\n".join(f"| {name} | {value} |" for name, value in [*self._figures, *more]),
            serve=push or f"/path/to/{title}",
            version=__version__,
        )
        (folder / "README.md").write_text(text, "utf-8")

    def _figure(self, name: str, value: str) -> None:
        self._figures.append((name, value))
        self._say(f"{name}: {value}")

    def _judge(self, found: verify.Agreement, allowed: float) -> None:
        """Notes where they differ by more than is allowed; what is not a number differs."""
        if not found.difference <= allowed:
            self._say(f"that is more than rounding explains ({allowed:.1%})")
            self.differs = True
