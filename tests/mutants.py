"""Mutants: for each row of the fault table its fix is taken out of a copy of the code, and its tests must fail.

    python -m tests.mutants [ROW ...]     # of these rows alone

Exits 1 where the tests still pass without a fix: `make mutants`.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("router_backend", "router_tools")
SECONDS = 1200  # for the tests of one mutant, some of which wait in vain
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info")
_FAILED = re.compile(r"^(?:FAILED|ERROR) tests/[\w/]+\.py::(\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fix that is taken out: `old`, which stands once in the source of `where`, becomes `new`.

    `where` names a function, a class or a constant, wherever it lies: `read_body`, `Guard.__call__`; where several
    have the name, the end of the module's stands before it: `door:Door.__call__`. `tests` are pytest's names.
    """

    row: int
    what: str
    where: str
    old: str
    new: str
    tests: tuple[str, ...]

    def places(self, root: Path = ROOT) -> list[tuple[Path, int, int]]:
        """Where it is taken out: each file, relative to `root`, and the bounds in its text. One, or it is wrong."""
        return [
            (path, at.start(), at.end())
            for path, start, end in _defined(self.where, root)
            for at in re.finditer(re.escape(self.old), (root / path).read_text("utf-8"))
            if start <= at.start() and at.end() <= end
        ]


def _mutant(row: int, what: str, where: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(row, what, where, old, new, tuple(f"tests/{test}" for test in tests))


def _defined(where: str, root: Path) -> list[tuple[Path, int, int]]:
    """The definitions with that name: file, start and end in its text."""
    module, _, name = where.rpartition(":")
    return [
        (path, start, end)
        for path, found, start, end in _definitions(root)
        if found == name and f".{_module(path)}".endswith(f".{module}" if module else "")
    ]


def _module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@cache
def _definitions(root: Path) -> list[tuple[Path, str, int, int]]:
    """All functions, classes and constants of the code: file, qualified name, start and end in its text."""
    return [
        (path.relative_to(root), *each)
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
        for each in _definitions_in(path.read_text("utf-8"))
    ]


def _definitions_in(text: str) -> Iterator[tuple[str, int, int]]:
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def visit(body: Iterable[ast.stmt], outer: str) -> Iterator[tuple[str, int, int]]:
        for node in body:
            end = starts[node.end_lineno or node.lineno]
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                yield f"{outer}{node.name}", starts[first - 1], end
                yield from visit(node.body, f"{outer}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign) and not outer:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for name in (each for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)):
                    yield name.id, starts[node.lineno - 1], end

    return visit(ast.parse(text).body, "")


MUTANTS = (
    _mutant(
        *(1, "what the parser says becomes an answer", "read_body"),
        *("raise _explain(error) from None", "raise"),
        "server/test_hostile.py::test_row_01_empty_or_broken_json",
    ),
    _mutant(
        *(2, "the content type is looked at", "read_json"),
        *('raise UnsupportedMediaType("send JSON with Content-Type: application/json")', "pass"),
        "server/test_hostile.py::test_row_02_wrong_content_type",
    ),
    _mutant(
        *(3, "the declared length is enough", "read_json"),
        *("if declared.isdecimal() and int(declared) > limit:", "if False:"),
        "server/test_hostile.py::test_row_03_the_declared_length_is_enough",
    ),
    _mutant(
        *(3, "reading ends at the limit", "read_json"),
        "        raw += piece\n        if len(raw) > limit:\n            raise too_large\n",
        "        raw += piece\n    if len(raw) > limit:\n        raise too_large\n",
        "server/test_hostile.py::test_row_03_chunked_without_a_length",
    ),
    _mutant(
        *(4, "a parser whose depth is bounded", "read_body"),
        "model.model_validate_json(await read_json(request, limit))",
        'model.model_validate(__import__("json").loads(await read_json(request, limit)))',
        "server/test_hostile.py::test_row_04_deep_nesting",
    ),
    _mutant(
        *(5, "numbers are bounded, and so finite", "Sampling"),
        "temperature: Annotated[float, Field(ge=0, le=2)]",
        "temperature: Annotated[float, Field(allow_inf_nan=True)]",
        "server/test_hostile.py::test_row_05_numbers_that_are_none",
    ),
    _mutant(
        *(6, "no NUL in a text", "_NO_NUL"),
        *('"\\x00" in text', "False"),
        "server/test_hostile.py::test_row_06_surrogates_nul_and_bytes_that_are_no_text",
        "server/test_hostile.py::test_row_06_nul_in_a_plans_parts",
    ),
    _mutant(
        *(7, "at most eight choices", "MOST_CHOICES"),
        *("MOST_CHOICES = 8", "MOST_CHOICES = 10**6"),
        "server/test_hostile_openai.py::test_row_07_n_is_bounded_before_anything_is_multiplied",
        "server/test_hostile_openai.py::test_row_07_prompts_times_n",
    ),
    _mutant(
        *(8, "a budget's bounds", "Budget"),
        *("Annotated[int, Field(ge=1, le=LARGEST_BUDGET)]", "int"),
        "server/test_hostile.py::test_row_08_budgets_that_are_none",
    ),
    _mutant(
        *(8, "no conversion between types", "Body"),
        *('extra="forbid", strict=True, ', 'extra="forbid", '),
        "server/test_hostile.py::test_row_08_budgets_that_are_none",
        "server/test_hostile.py::test_row_08_the_other_fields_too",
    ),
    _mutant(
        *(9, "prompt and budget are added up before a plan", "Writer.admit"),
        *("self._model.info.check_room(prompt_tokens, limit)", "pass"),
        "server/test_hostile.py::test_row_09_prompt_longer_than_the_context",
    ),
    _mutant(
        *(9, "and before the transformers engine decodes", "DecodedModel._prompt"),
        *("self.info.check_room(len(prompt), room)", "pass"),
        "engines/test_transformers.py::test_row_09_context_overflow_names_both_counts",
    ),
    _mutant(
        *(10, "unknown fields are refused", "Body"),
        *('extra="forbid"', 'extra="ignore"'),
        "server/test_hostile.py::test_row_10_unknown_fields",
        "server/test_hostile_openai.py::test_row_10_unknown_fields_are_named",
    ),
    _mutant(
        *(11, "the number of enum values is bounded", "_Reader._enum"),
        *("if self._options > MOST_OPTIONS:", "if False:"),
        "schema/test_read.py::test_row_11_size_is_bounded",
    ),
    _mutant(
        *(11, "recursion must be able to end", "read:_read"),
        *("if any(node not in sizes for node in walk(root)):", "if False:"),
        "schema/test_read.py::test_row_11_recursion_that_never_ends",
    ),
    _mutant(
        *(11, "the length of a pattern is bounded", "LONGEST_MATCH"),
        *("LONGEST_PATTERN, LONGEST_MATCH = 256, 256", "LONGEST_PATTERN, LONGEST_MATCH = 10**6, 256"),
        "schema/test_read.py::test_row_11_patterns_that_cannot_be_kept",
    ),
    _mutant(
        *(12, "grammars are compiled before llama.cpp sees them", "ServedModel.generate"),
        *("if request.grammar is not None and (problem", "if False and (problem"),
        "engines/test_llamacpp.py::test_row_12_grammar_that_does_not_compile_is_refused",
    ),
    _mutant(
        *(12, "what the compiler says is heard", "Guides._compile"),
        *("        if matcher.is_error():\n            problem", "        if False:\n            problem"),
        "engines/transformers/test_guide.py::test_row_12_grammar_that_does_not_compile_is_refused_in_the_compilers_words",
    ),
    _mutant(
        *(13, "texts are tokenised as texts (llama.cpp)", "ServedModel._tokenize"),
        *("self._remembered(owner, part, False, False)", "self._remembered(owner, part, False, True)"),
        "engines/test_llamacpp.py::test_row_13_special_tokens_in_the_users_text_are_text",
    ),
    _mutant(
        *(13, "texts are tokenised as texts (transformers)", "Tokens.__init__"),
        *("self._plain.encode_special_tokens = True", "self._plain.encode_special_tokens = False"),
        "engines/test_conversation.py::test_row_13_no_role_can_be_forged_in_any_message",
        "engines/transformers/test_tokens.py::test_row_13_no_role_can_be_forged",
    ),
    _mutant(
        *(14, "a budget that is too small is refused", "Writer.admit"),
        *("if limit < smallest:", "if False:"),
        "server/test_hostile.py::test_row_14_every_budget_gives_a_whole_plan_or_a_400",
        "plan/test_write.py::test_row_14_budget_below_the_smallest_is_refused_by_name",
    ),
    _mutant(
        *(14, "a text gets no more than the rest leaves it", "PlanScript._allot"),
        *("return budget.allot(self._left() - JOIN, text, later, few, self.costs.closing)", "return 10_000"),
        "plan/test_write.py::test_row_14_the_longest_path_fits_every_budget",
    ),
    _mutant(
        *(15, "thoughts are cut out", "clean"),
        *('    text = _THINKING.sub("", text)\n', ""),
        "server/test_hostile.py::test_row_15_a_checkpoint_that_thinks_aloud_gives_the_plan_alone",
    ),
    _mutant(
        *(15, "a checkpoint is told not to think", "Tokens._render"),
        *("enable_thinking=False", "enable_thinking=True"),
        "engines/transformers/test_tokens.py::test_row_15_qwen_is_told_not_to_think",
    ),
    _mutant(
        *(16, "public paths are compared whole", "Guard._check"),
        *("path not in self._public", 'not path.startswith(tuple(self._public - {"/"}))'),
        "server/test_hostile.py::test_row_16_no_path_goes_round_the_key",
        "server/test_guard.py::test_row_16_every_other_path_needs_a_key",
    ),
    _mutant(
        *(16, "keys are compared in constant time", "Guard._name_of"),
        *("hmac.compare_digest(sent, known)", "sent == known"),
        "server/test_guard.py::test_row_16_every_key_is_compared",
    ),
    _mutant(
        *(16, "a browser's key is not for pages of elsewhere", "Guard._check_origin"),
        *("if not same and origin not in self._friends:", "if False:"),
        "server/test_door.py::test_a_page_of_elsewhere_cannot_use_the_browsers_key",
    ),
    _mutant(
        *(16, "names from elsewhere are refused", "Heads._check"),
        *('if not self._is_ours(_text(headers, b"host")) or', "if"),
        "server/test_door.py::test_row_16_a_name_from_elsewhere_does_not_lead_here",
    ),
    _mutant(
        *(17, "the queue is bounded", "Admission.enter"),
        *(
            "if self.running + self.waiting >= self._slots + self.queue_limit and not self._make_room(key):",
            "if False:",
        ),
        "server/test_hostile.py::test_row_17_a_burst_over_the_queue_limit",
        "service/test_service.py::test_row_17_the_queue_is_bounded",
    ),
    _mutant(
        *(17, "a refusal says when to come back", "respond"),
        *("if error.retry_after is not None:", "if False:"),
        "server/test_hostile.py::test_row_17_a_burst_over_the_queue_limit",
    ),
    _mutant(
        *(17, "the model works in threads of its own", "ThreadedEngine.generate"),
        "future = loop.run_in_executor(self._threads, contextvars.copy_context().run, run)\n",
        "run()\n        future = asyncio.ensure_future(asyncio.sleep(0))\n",
        "server/test_hostile.py::test_row_17_livez_answers_however_long_the_model_takes",
    ),
    _mutant(
        *(18, "the service watches for clients that leave", "unless_gone"),
        *("await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)", "await asyncio.wait({task})"),
        "server/test_hostile.py::test_row_18_a_client_that_leaves_while_it_is_served",
        "server/test_hostile.py::test_row_18_a_client_that_leaves_while_it_waits",
    ),
    _mutant(
        *(18, "the engine is told of a cancel", "ThreadedEngine.generate"),
        *("            cancelled.set()\n", "            pass\n"),
        "server/test_hostile.py::test_row_18_a_client_that_leaves_while_it_is_served",
        "engines/test_threaded.py::test_row_18_an_abandoned_generator_cancels",
    ),
    _mutant(
        *(18, "llama.cpp looks up between two batches of a prompt", "_EXTRAS"),
        *('"return_progress": True', '"return_progress": False'),
        "engines/test_llamacpp.py::test_row_18_cancel_ends_the_work_at_the_next_batch_of_a_prompt",
    ),
    _mutant(
        *(19, "a head must come in time", "connections.Connection._await_head"),
        "self._head = self._head or self.loop.call_later(limits.header_seconds, self.transport.abort)",
        "pass",
        "server/test_door.py::test_row_19_a_head_that_does_not_come",
        "server/test_door.py::test_row_19_dripping_does_not_help",
    ),
    _mutant(
        *(19, "a body must come in time", "middleware.door:Door.__call__"),
        *("receive = in_time(receive, self._limits.body_seconds)", "pass"),
        "server/test_door.py::test_row_19_a_body_that_does_not_come",
    ),
    _mutant(
        *(19, "a reader must read", "connections.Connection.pause_writing"),
        "self._read = self._read or self.loop.call_later(limits.write_seconds, self.transport.abort)",
        "pass",
        "server/test_door.py::test_row_19_a_reader_that_does_not_read",
    ),
    _mutant(
        *(20, "a rung that fails leads to the next", "first_that_loads"),
        *("if isinstance(error, CandidateError):", "if True:"),
        "checkpoints/test_ladder.py::test_row_20_a_rung_error_moves_on_to_the_next_rung",
        "engines/test_transformers.py::test_row_20_no_memory_in_one_precision_leads_to_the_next",
    ),
    _mutant(
        *(20, "weights that lack a part are found out", "description:check_loaded"),
        *("    if wrong:\n", "    if False:\n"),
        "engines/test_transformers.py::test_row_20_a_broken_checkpoint_leads_to_the_next",
    ),
    _mutant(
        *(20, "a file that is cut short is found out", "_tensors"),
        *("if size < 8 + length + end:", "if False:"),
        "checkpoints/test_hub.py::test_row_25_a_folder_that_was_half_copied",
        "engines/test_transformers.py::test_row_20_broken_checkpoint_is_the_candidates_fault",
    ),
    _mutant(
        *(20, "a failed load is tried again by itself", "Host._fail"),
        "call_later(seconds, self.begin)",
        "call_later(seconds, str)",
        "service/test_service.py::test_row_20_a_failed_load_is_tried_again_without_a_request",
    ),
    _mutant(
        *(20, "/readyz is no 200 meanwhile", "health_router"),
        *('"Takes traffic now.", lambda now: now.status in ("ok", "idle")', '"Takes traffic now.", lambda now: True'),
        "server/test_http.py::test_row_20_health_loading_and_failed",
    ),
    _mutant(
        *(21, "what nobody else caught is answered", "AccessLog.__call__"),
        *("await JSONResponse(describe(error), 500)(scope, receive, send_with_id)", "raise"),
        "server/test_http.py::test_row_21_an_unexpected_exception_is_a_500_without_its_text",
    ),
    _mutant(
        *(21, "half a pass is forgotten", "DecodedModel._broke_off"),
        *("self._runner.forget()  # what it keeps may be half of a pass", "pass"),
        "engines/test_transformers.py::test_row_21_pass_that_breaks_leaves_nothing_half_done",
        "engines/test_transformers.py::test_row_21_out_of_memory_drops_one_request_and_frees_its_memory",
    ),
    _mutant(
        *(21, "a slot is free again however its request ended", "GenerationService.generate"),
        *(
            "self.admission.leave(ticket, finished=finished)",
            "finished and self.admission.leave(ticket, finished=True)",
        ),
        "service/test_service.py::test_row_21_an_engines_error_ends_that_request_alone",
    ),
    _mutant(
        *(21, "an engine that works is not restarted", "Host._watch"),
        'if cause == "dead" and serving is not None and await self._answers(serving.engine):',
        "if False:",
        "service/test_watchdog.py::test_row_21_requests_that_fail_do_not_restart_an_engine_that_works",
    ),
    _mutant(
        *(22, "an engine that hangs is noticed", "Host._verdict"),
        "if self._settings.watchdog_timeout and engine.stalled_seconds > self._settings.watchdog_timeout:",
        "if False:",
        "service/test_watchdog.py::test_row_22_a_hung_engine_is_replaced",
    ),
    _mutant(
        *(22, "an engine that died is noticed", "Host._verdict"),
        *('return "dead" if self.failures >= _FAILURES else None', "return None"),
        "service/test_watchdog.py::test_row_22_a_dead_engine_is_replaced",
    ),
    _mutant(
        *(22, "/livez fails where only a new process helps", "health_router"),
        *("lambda now: now.alive", "lambda now: True"),
        "service/test_watchdog.py::test_row_22_livez_says_so_to_who_restarts_processes",
    ),
    _mutant(
        *(23, "what is new is refused while it drains", "middleware.door:Door.__call__"),
        *("if self._service and self._service.is_stopping:", "if False:"),
        "server/test_door.py::test_row_23_while_it_drains",
    ),
    _mutant(
        *(23, "the end waits for what runs", "Server._drain"),
        *("await self._service.drain()", "pass"),
        "server/test_serve.py::test_row_23_sigterm_under_load",
    ),
    _mutant(
        *(23, "a second signal ends it at once", "Server.capture_signals.stop"),
        *("os._exit(128 + number)", "return"),
        "server/test_serve.py::test_row_23_a_second_sigterm_ends_it_at_once",
    ),
    _mutant(
        *(24, "nothing is kept of a key that has nothing running", "Admission.leave"),
        *("                del self._running_of[ticket.key]\n", "                pass\n"),
        "server/test_soak.py::test_row_24_threads_handles_and_slots_stay_as_they_are",
    ),
    _mutant(
        *(24, "few compiled grammars are kept", "Guides.__init__"),
        *("lru_cache(maxsize=_COMPILED)", "lru_cache(maxsize=None)"),
        "engines/transformers/test_guide.py::test_row_24_few_compiled_grammars_are_kept",
    ),
    _mutant(
        *(24, "the prefix cache is bounded", "TorchRunner._choose"),
        *("room = self._kept_tokens - len(whole)", "room = 10**9"),
        "engines/transformers/test_runner.py::test_row_24_what_is_kept_is_bounded",
    ),
    _mutant(
        *(24, "labels are few whatever is asked for", "AccessLog.__call__"),
        *('getattr(scope.get("route"), "path", "other")', 'scope["path"]'),
        "service/test_metrics.py::test_row_24_no_label_has_what_a_client_wrote",
    ),
    _mutant(
        *(25, "the disk's room is looked at first", "disk_shortfall"),
        *("return None if needed <= free else", "return None if True else"),
        "checkpoints/test_hub.py::test_row_25_no_room_on_the_disk",
        "checkpoints/test_file_systems.py::test_row_25_a_disk_that_is_too_small_is_told_before_anything_is_fetched",
    ),
    _mutant(
        *(25, "a disk that takes nothing is told in words", "Download.run"),
        *("except OSError as error:", "except ZeroDivisionError as error:"),
        "checkpoints/test_hub.py::test_row_25_a_cache_that_cannot_be_written",
        "checkpoints/test_file_systems.py::test_row_25_a_disk_that_becomes_full_leaves_nothing_that_is_used",
        "checkpoints/test_file_systems.py::test_row_25_a_read_only_cache_that_lacks_something",
    ),
    _mutant(
        *(25, "a whole cache is not written to", "Download._note"),
        *("if revision != self.commit and not (ref.is_file() and ref.read_text() == self.commit):", "if True:"),
        "checkpoints/test_hub.py::test_row_25_a_whole_cache_is_not_written",
        "checkpoints/test_file_systems.py::test_row_25_a_read_only_cache_that_is_whole",
    ),
    _mutant(
        *(25, "what a killed download left is taken away", "_fetch"),
        *("            left.unlink(missing_ok=True)\n", "            pass\n"),
        "checkpoints/test_hub.py::test_row_25_the_next_process_goes_on_too",
    ),
    _mutant(
        *(25, "what came is compared with its hash", "_fetch"),
        *("    if not _is_right(place, etag):\n", "    if False:\n"),
        "checkpoints/test_hub.py::test_row_25_a_damaged_file_is_dropped",
    ),
    _mutant(
        *(25, "silence ends a download", "_Watch._run"),
        *("while time.monotonic() - since < self._seconds:", "while True:"),
        "checkpoints/test_hub.py::test_row_25_a_download_that_hangs_is_ended",
    ),
    _mutant(
        *(25, "names that lead out of the cache are refused", "HubApi.listing.ask"),
        *("if leaves_its_folder(each.rfilename) or not _HASH.fullmatch(etag):", "if False:"),
        "checkpoints/test_hub.py::test_a_listing_that_leads_out_of_the_cache",
    ),
    _mutant(
        *(25, "no token goes over plain HTTP", "HubApi._token"),
        *("return token if may_have_token(self._endpoint) else None", "return token"),
        "checkpoints/test_hub.py::test_a_token_is_sent_in_plain_text_to_this_machine_alone",
    ),
    _mutant(
        *(25, "offline, nothing is asked", "Hub.__init__"),
        *("self._unreachable = self._api.offline", "self._unreachable = None"),
        "checkpoints/test_hub.py::test_row_25_offline_the_cache_is_used_and_nothing_is_asked",
    ),
    _mutant(
        *(25, "where no hub answers, the cache is taken", "Hub._found"),
        "            except Unreachable as error:\n                self._unreachable = error.message\n",
        "            except ZeroDivisionError:\n                pass\n",
        "checkpoints/test_hub.py::test_row_25_an_unreachable_hub_leaves_what_is_cached",
        "checkpoints/test_hub.py::test_row_25_nobody_listens",
    ),
    _mutant(
        *(26, "pickles are no weights", "weight_files"),
        *("raise CandidateError(_no_weights(sizes))", "return ()"),
        "checkpoints/test_hub.py::test_row_26_pickles_and_code",
        "engines/test_transformers.py::test_row_26_pickled_weights_are_never_opened",
    ),
    _mutant(
        *(26, "code of a checkpoint is refused", "read_config"),
        *('if "auto_map" in config and not trust_remote_code:', "if False:"),
        "checkpoints/test_hub.py::test_row_26_pickles_and_code",
        "engines/test_transformers.py::test_row_26_code_of_a_checkpoint_runs_only_where_it_is_trusted",
    ),
    _mutant(
        *(26, "code of a checkpoint is not even fetched", "_Repository.download"),
        *('(*BESIDE_WEIGHTS, ".py") if settings.trust_remote_code else BESIDE_WEIGHTS', '(*BESIDE_WEIGHTS, ".py")'),
        "checkpoints/test_hub.py::test_row_26_only_what_is_needed_is_fetched_and_it_is_whole",
    ),
    _mutant(
        *(27, "each secret setting is blacked out", "logs:configure"),
        *("secrets=settings.secrets", "secrets=(*settings.api_keys.values(),)"),
        "test_logs.py::test_row_27_each_secret_setting_is_blacked_out",
    ),
    _mutant(
        *(27, "an engine's process is told no secret", "Child.__init__"),
        *("if not _SECRET.search(name)", "if name"),
        "engines/test_child.py::test_row_27_a_child_is_told_no_secret",
    ),
    _mutant(
        *(27, "the log is blacked out", "LineFormatter.format"),
        *('text = text.replace(secret, "***")', "pass"),
        "test_logs.py::test_row_27_secrets_are_blacked_out_everywhere",
    ),
    _mutant(
        *(27, "exceptions of others are named by their class", "errors:describe"),
        *('error_body("internal error",', "error_body(str(error),"),
        "server/test_http.py::test_row_27_a_foreign_error_in_midstream_keeps_its_text",
        "server/test_http.py::test_row_21_an_unexpected_exception_is_a_500_without_its_text",
    ),
    _mutant(
        *(27, "a key is known by its name", "Guard._name_of"),
        *(
            "return next((name for name in found if claimed in (None, name.encode())), None)",
            "return key.decode() if found else None",
        ),
        "service/test_metrics.py::test_row_27_a_key_is_needed_and_is_shown_by_its_name",
    ),
    _mutant(
        *(27, "a wrong setting that is secret is not shown", "settings:_explain"),
        *('"(hidden)" if name in _SECRET else repr(error.get("input"))', 'repr(error.get("input"))'),
        "test_settings.py::test_row_27_wrong_keys_are_refused_and_not_shown",
        "test_settings.py::test_row_27_no_error_shows_a_secret",
    ),
    _mutant(
        *(28, "patterns are compiled one by one", "_told"),
        *('elif name not in ("pattern", _PATTERN):', "elif name != _PATTERN:"),
        "server/test_attacks.py::test_row_28_no_known_request_holds_the_loop",
    ),
    _mutant(
        *(28, "the first mistake in a list is enough", "ChatBody"),
        *(", fail_fast=True", ""),
        "server/test_attacks.py::test_row_28_a_list_of_messages_ends_at_its_first_mistake",
    ),
    _mutant(
        *(28, "the share is looked at first", "charged"),
        *("service.admission.check(key)", "pass"),
        "server/test_attacks.py::test_row_28_a_key_without_a_share_makes_no_work",
    ),
    _mutant(
        *(28, "what is refused counts", "charged"),
        *("service.admission.count(key)", "pass"),
        "server/test_attacks.py::test_row_28_a_key_without_a_share_makes_no_work",
    ),
    _mutant(
        *(28, "who waits gets what the first works out", "Remembered.__call__"),
        *("found = self._values.get(arguments)", "found = None"),
        "server/test_attacks.py::test_row_28_one_long_prompt_is_read_once_for_all_choices",
    ),
    _mutant(
        *(29, "a slot of another owner is brought back", "LlamaCppModel._answer"),
        *('if self._owners.get(slot, "") != request.owner:', "if False:"),
        "server/test_attacks.py::test_row_29_what_one_key_sent_speeds_up_no_other",
    ),
    _mutant(
        *(29, "a branch serves its owner", "TorchRunner._serves"),
        *("if branch.owner == self._owner:", "if True:"),
        "server/test_attacks.py::test_row_29_branches_and_drafts_are_each_owners_own",
    ),
    _mutant(
        *(29, "the last logits are the owner's", "TorchRunner.turn_to"),
        *("self._owner, self._rows = owner, None", "self._owner = owner"),
        "server/test_attacks.py::test_row_29_branches_and_drafts_are_each_owners_own",
    ),
    _mutant(
        *(29, "each in the slot that it used", "ThreadedEngine._slot_for"),
        *('if self._owners.get(each, "") == owner', "if True"),
        "server/test_attacks.py::test_row_29_slots_are_kept_for_those_who_used_them_last",
    ),
    _mutant(
        *(30, "an idle connection makes room", "connections"),
        *("victim.transport.abort()", "pass"),
        "server/test_attacks.py::test_row_30_with_256_descriptors",
    ),
    _mutant(
        *(30, "what is busy leaves room for probes", "connections"),
        *("self.app = probes_only(self.app)", "self.transport.abort()"),
        "server/test_attacks.py::test_row_30_busy_connections_leave_room_for_a_probe",
    ),
    _mutant(
        *(31, "one length of a body", "Heads._check"),
        *('if b"transfer-encoding" in headers and', "if False and"),
        "server/test_attacks.py::test_row_31_doubtful_framing_is_refused_in_our_shape",
    ),
    _mutant(
        *(31, "nothing follows a refused body", "Checks._refuse"),
        *('answer.headers["Connection"] = "close"', "pass"),
        "server/test_attacks.py::test_row_31_doubtful_framing_is_refused_in_our_shape",
    ),
    _mutant(
        *(31, "a parser's error is ours", "connections"),
        *("def send_400_response(", "def _send_400_response("),
        "server/test_attacks.py::test_row_31_doubtful_framing_is_refused_in_our_shape",
    ),
    _mutant(
        *(31, "the drain's cut is a 503", "AccessLog.__call__"),
        *(
            "if status:\n                raise\n            await respond(",
            "if True:\n                raise\n            await respond(",
        ),
        "server/test_attacks.py::test_row_31_what_the_drain_cuts_off_has_our_shape",
    ),
    _mutant(
        *(31, "an address that guesses is told nothing", "Guesses.check"),
        *("if wait and", "if False and"),
        "server/test_attacks.py::test_row_31_guesses_of_keys_are_throttled",
    ),
    _mutant(
        *(31, "keys are strong", "_is_weak"),
        *("return len(key.encode()) < 8", "return False and len(key.encode()) < 8"),
        "server/test_attacks.py::test_row_31_weak_or_repeated_keys_are_refused_at_the_start",
    ),
    _mutant(
        *(31, "a forwarded host is a host", "Heads._check"),
        *("or (told and not self._is_ours(told))", ""),
        "server/test_attacks.py::test_row_31_a_forwarded_host_is_a_host",
    ),
    _mutant(
        *(32, "a process that ended by itself has failed", "rehearse"),
        *("    if done.returncode:\n", "    if False:\n"),
        "engines/transformers/test_rehearsal.py::test_row_32_a_tokenizer_that_ends_its_process",
    ),
    _mutant(
        *(32, "memory is bounded", "rehearsal:main"),
        *("resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))", "pass"),
        "engines/transformers/test_rehearsal.py::test_row_32_a_template_that_takes_all_memory",
    ),
)


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the tree, without what was built in it."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        yield Path(shutil.copytree(ROOT, Path(folder) / "tree", ignore=_LEFT_OUT))


@contextmanager
def applied(mutant: Mutant, tree: Path) -> Iterator[None]:
    places = mutant.places(tree)
    if len(places) != 1:
        raise SystemExit(f"row {mutant.row}: {mutant.where} has {len(places)} times {mutant.old!r}")
    file, start, end = places[0]
    path = tree / file
    text = path.read_text(encoding="utf-8")
    path.write_text(text[:start] + mutant.new + text[end:], encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def failures(tests: Iterable[str], tree: Path, seconds: float = SECONDS) -> list[str]:
    """The names of those that fail on that tree."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "--timeout=120", "-p", "no:cacheprovider", *tests]
    # No bytecode: two versions of a file may have the same size and second.
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        said, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as late:  # a thread that hangs may outlive the last test
        said, code = (late.stdout or b"").decode(errors="replace"), 1
    failed = sorted(set(_FAILED.findall(said)))
    if code not in (0, 1) or bool(code) != bool(failed):
        raise SystemExit(f"pytest ended with {code}:\n{said[-4000:]}")
    return failed


def main(rows: Iterable[int] = ()) -> int:
    wanted = set(rows) or {mutant.row for mutant in MUTANTS}
    chosen = [mutant for mutant in MUTANTS if mutant.row in wanted]
    survived = 0
    with copied() as tree:
        if wrong := failures(dict.fromkeys(test for mutant in chosen for test in mutant.tests), tree, 10 * SECONDS):
            raise SystemExit(f"these fail as it is: {', '.join(wrong)}")
        print("| row | without | fails |\n|---|---|---|")
        for mutant in chosen:
            with applied(mutant, tree):
                failed = failures(mutant.tests, tree)
            survived += not failed
            print(f"| {mutant.row} | {mutant.what} | {', '.join(failed) or 'SURVIVED'} |", flush=True)
    print(f"{len(chosen)} fixes taken out of {len(wanted)} rows, {survived} survived")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main(map(int, sys.argv[1:])))
