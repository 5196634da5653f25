"""Mutants: for each row of the fault table its fix is taken out of a copy of the code, and its tests must fail.

    python -m tests.mutants [ROW ...]     # of these rows alone

Exits 1 where the tests still pass without a fix: `make mutants`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECONDS = 300  # for the tests of one mutant, some of which wait in vain
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info")
_FAILED = re.compile(r"^(?:FAILED|ERROR) tests/[\w/]+\.py::(\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fix that is taken out: `old`, which stands once in `file`, becomes `new`. `tests` are pytest's names."""

    row: int
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def path(self) -> str:
        return f"router_backend/{self.file}"


def _mutant(row: int, what: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(row, what, file, old, new, tuple(f"tests/{test}" for test in tests))


MUTANTS = (
    _mutant(
        *(1, "what the parser says becomes an answer", "server/body.py"),
        *("raise _explain(error) from None", "raise"),
        "server/test_hostile.py::test_row_01_empty_or_broken_json",
    ),
    _mutant(
        *(2, "the content type is looked at", "server/body.py"),
        *('raise UnsupportedMediaType("send JSON with Content-Type: application/json")', "pass"),
        "server/test_hostile.py::test_row_02_wrong_content_type",
    ),
    _mutant(
        *(3, "the declared length is enough", "server/body.py"),
        *("if declared.isdecimal() and int(declared) > limit:", "if False:"),
        "server/test_hostile.py::test_row_03_the_declared_length_is_enough",
    ),
    _mutant(
        *(3, "reading ends at the limit", "server/body.py"),
        "        raw += piece\n        if len(raw) > limit:\n            raise too_large\n",
        "        raw += piece\n    if len(raw) > limit:\n        raise too_large\n",
        "server/test_hostile.py::test_row_03_chunked_without_a_length",
    ),
    _mutant(
        *(4, "a parser whose depth is bounded", "server/body.py"),
        *("model.model_validate_json(bytes(raw))", 'model.model_validate(__import__("json").loads(raw))'),
        "server/test_hostile.py::test_row_04_deep_nesting",
    ),
    _mutant(
        *(5, "numbers are bounded, and so finite", "server/native.py"),
        *("temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]", "temperature: float"),
        "server/test_hostile.py::test_row_05_numbers_that_are_none",
    ),
    _mutant(
        *(6, "no NUL in a text", "server/body.py"),
        *('if "\\x00" in text:', "if False:"),
        "server/test_hostile.py::test_row_06_surrogates_nul_and_bytes_that_are_no_text",
        "server/test_hostile.py::test_row_06_nul_in_a_plans_parts",
    ),
    _mutant(
        *(7, "at most eight choices", "server/openai/bodies.py"),
        *("MOST_CHOICES = 8", "MOST_CHOICES = 10**6"),
        "server/test_hostile_openai.py::test_row_07_n_is_bounded_before_anything_is_multiplied",
        "server/test_hostile_openai.py::test_row_07_prompts_times_n",
    ),
    _mutant(
        *(8, "a budget's bounds", "server/native.py"),
        *("max_new_tokens: Annotated[int, Field(ge=1, le=LARGEST_BUDGET)]", "max_new_tokens: int"),
        "server/test_hostile.py::test_row_08_budgets_that_are_none",
    ),
    _mutant(
        *(8, "no conversion between types", "server/body.py"),
        *('extra="forbid", strict=True, ', 'extra="forbid", '),
        "server/test_hostile.py::test_row_08_budgets_that_are_none",
        "server/test_hostile.py::test_row_08_the_other_fields_too",
    ),
    _mutant(
        *(9, "prompt and budget are added up before a plan", "plan/write.py"),
        *("if prompt_tokens + limit > context:", "if False:"),
        "server/test_hostile.py::test_row_09_prompt_longer_than_the_context",
    ),
    _mutant(
        *(9, "and before the transformers engine decodes", "engines/transformers/model.py"),
        *("if len(prompt) + sampling.max_new_tokens > self.info.context_length:", "if False:"),
        "engines/test_transformers.py::test_row_09_context_overflow_names_both_counts",
    ),
    _mutant(
        *(10, "unknown fields are refused", "server/body.py"),
        *('extra="forbid"', 'extra="ignore"'),
        "server/test_hostile.py::test_row_10_unknown_fields",
        "server/test_hostile_openai.py::test_row_10_unknown_fields_are_named",
    ),
    _mutant(
        *(11, "the number of enum values is bounded", "schema/read.py"),
        *("if self._options > MOST_OPTIONS:", "if False:"),
        "schema/test_read.py::test_row_11_size_is_bounded",
    ),
    _mutant(
        *(11, "recursion must be able to end", "schema/read.py"),
        *("if any(node not in sizes for node in walk(root)):", "if False:"),
        "schema/test_read.py::test_row_11_recursion_that_never_ends",
    ),
    _mutant(
        *(11, "the length of a pattern is bounded", "schema/grammar.py"),
        *("LONGEST_PATTERN, LONGEST_MATCH = 256, 256", "LONGEST_PATTERN, LONGEST_MATCH = 10**6, 256"),
        "schema/test_read.py::test_row_11_patterns_that_cannot_be_kept",
    ),
    _mutant(
        *(12, "grammars are compiled before llama.cpp sees them", "engines/llamacpp.py"),
        *("            check_grammar(request.grammar)\n", ""),
        "engines/test_llamacpp.py::test_row_12_grammar_that_does_not_compile_is_refused",
    ),
    _mutant(
        *(12, "what the compiler says is heard", "engines/transformers/guide.py"),
        *("        if matcher.is_error():\n            problem", "        if False:\n            problem"),
        "engines/transformers/test_guide.py::test_row_12_grammar_that_does_not_compile_is_refused_in_the_compilers_words",
    ),
    _mutant(
        *(13, "texts are tokenised as texts (llama.cpp)", "engines/llamacpp.py"),
        *("(*self._tokenize(text), *after)", "(*self._tokenize(text, parse_special=True), *after)"),
        "engines/test_llamacpp.py::test_row_13_special_tokens_in_the_users_text_are_text",
    ),
    _mutant(
        *(13, "texts are tokenised as texts (transformers)", "engines/transformers/tokens.py"),
        *("self._plain.encode_special_tokens = True", "self._plain.encode_special_tokens = False"),
        "engines/test_conversation.py::test_row_13_no_role_can_be_forged_in_any_message",
        "engines/transformers/test_tokens.py::test_row_13_no_role_can_be_forged",
    ),
    _mutant(
        *(14, "a budget that is too small is refused", "plan/write.py"),
        *('if request.output == "plan" and limit < self.smallest_budget:', "if False:"),
        "server/test_hostile.py::test_row_14_every_budget_gives_a_whole_plan_or_a_400",
        "plan/test_write.py::test_row_14_budget_below_the_smallest_is_refused_by_name",
    ),
    _mutant(
        *(14, "a text gets no more than the rest leaves it", "plan/script.py"),
        *("return budget.allot(self._left() - budget.JOIN, text, later, few, self.costs.closing)", "return 10_000"),
        "plan/test_write.py::test_row_14_the_longest_path_fits_every_budget",
    ),
    _mutant(
        *(15, "thoughts are cut out", "writing/clip.py"),
        *('    text = _THINKING.sub("", text)\n', ""),
        "server/test_hostile.py::test_row_15_a_checkpoint_that_thinks_aloud_gives_the_plan_alone",
    ),
    _mutant(
        *(15, "a checkpoint is told not to think", "engines/transformers/tokens.py"),
        *("enable_thinking=False", "enable_thinking=True"),
        "engines/transformers/test_tokens.py::test_row_15_qwen_is_told_not_to_think",
    ),
    _mutant(
        *(16, "public paths are compared whole", "server/middleware/guard.py"),
        *("path_of(scope) not in self._public:", 'not path_of(scope).startswith(tuple(self._public - {"/"})):'),
        "server/test_hostile.py::test_row_16_no_path_goes_round_the_key",
        "server/test_guard.py::test_row_16_every_other_path_needs_a_key",
    ),
    _mutant(
        *(16, "keys are compared in constant time", "server/middleware/guard.py"),
        *("hmac.compare_digest(sent, known)", "sent == known"),
        "server/test_guard.py::test_row_16_every_key_is_compared",
    ),
    _mutant(
        *(16, "a browser's key is not for pages of elsewhere", "server/middleware/guard.py"),
        *("if not same and origin not in self._friends:", "if False:"),
        "server/test_door.py::test_a_page_of_elsewhere_cannot_use_the_browsers_key",
    ),
    _mutant(
        *(16, "names from elsewhere are refused", "server/middleware/guard.py"),
        *('if not self._is_ours(_text(headers, b"host")):', "if False:"),
        "server/test_door.py::test_row_16_a_name_from_elsewhere_does_not_lead_here",
    ),
    _mutant(
        *(17, "the queue is bounded", "service/admission.py"),
        *(
            "if self.running + self.waiting >= self._slots + self.queue_limit and not self._make_room(key):",
            "if False:",
        ),
        "server/test_hostile.py::test_row_17_a_burst_over_the_queue_limit",
        "service/test_service.py::test_row_17_the_queue_is_bounded",
    ),
    _mutant(
        *(17, "a refusal says when to come back", "server/errors.py"),
        *("if error.retry_after is not None:", "if False:"),
        "server/test_hostile.py::test_row_17_a_burst_over_the_queue_limit",
    ),
    _mutant(
        *(17, "the model works in threads of its own", "engines/threaded.py"),
        "future = loop.run_in_executor(self._threads, contextvars.copy_context().run, run)\n",
        "run()\n        future = asyncio.ensure_future(asyncio.sleep(0))\n",
        "server/test_hostile.py::test_row_17_livez_answers_however_long_the_model_takes",
    ),
    _mutant(
        *(18, "the service watches for clients that leave", "server/disconnect.py"),
        *("await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)", "await asyncio.wait({task})"),
        "server/test_hostile.py::test_row_18_a_client_that_leaves_while_it_is_served",
        "server/test_hostile.py::test_row_18_a_client_that_leaves_while_it_waits",
    ),
    _mutant(
        *(18, "the engine is told of a cancel", "engines/threaded.py"),
        *("            cancelled.set()\n", "            pass\n"),
        "server/test_hostile.py::test_row_18_a_client_that_leaves_while_it_is_served",
        "engines/test_threaded.py::test_row_18_an_abandoned_generator_cancels",
    ),
    _mutant(
        *(18, "llama.cpp looks up between two batches of a prompt", "engines/llamacpp.py"),
        *('"return_progress": True', '"return_progress": False'),
        "engines/test_llamacpp.py::test_row_18_cancel_ends_the_work_at_the_next_batch_of_a_prompt",
    ),
    _mutant(
        *(19, "a head must come in time", "server/middleware/connection.py"),
        "self._head = self._head or self.loop.call_later(limits.header_seconds, self.transport.abort)",
        "pass",
        "server/test_door.py::test_row_19_a_head_that_does_not_come",
        "server/test_door.py::test_row_19_dripping_does_not_help",
    ),
    _mutant(
        *(19, "a body must come in time", "server/middleware/door.py"),
        *("receive = in_time(receive, self._limits.body_seconds)", "pass"),
        "server/test_door.py::test_row_19_a_body_that_does_not_come",
    ),
    _mutant(
        *(19, "a reader must read", "server/middleware/connection.py"),
        "self._read = self._read or self.loop.call_later(limits.write_seconds, self.transport.abort)",
        "pass",
        "server/test_door.py::test_row_19_a_reader_that_does_not_read",
    ),
    _mutant(
        *(20, "a rung that fails leads to the next", "checkpoints/ladder.py"),
        *("if isinstance(error, CandidateError):", "if True:"),
        "checkpoints/test_ladder.py::test_row_20_a_rung_error_moves_on_to_the_next_rung",
        "engines/test_transformers.py::test_row_20_no_memory_in_one_precision_leads_to_the_next",
    ),
    _mutant(
        *(20, "weights that lack a part are found out", "engines/transformers/load.py"),
        *("    if wrong:\n", "    if False:\n"),
        "engines/test_transformers.py::test_row_20_a_broken_checkpoint_leads_to_the_next",
    ),
    _mutant(
        *(20, "a file that is cut short is found out", "checkpoints/description.py"),
        *("if size < 8 + length + end:", "if False:"),
        "checkpoints/test_hub.py::test_row_25_a_folder_that_was_half_copied",
        "engines/test_transformers.py::test_row_20_broken_checkpoint_is_the_candidates_fault",
    ),
    _mutant(
        *(20, "/readyz is no 200 meanwhile", "server/operations.py"),
        'return JSONResponse(_probe(now), 200 if now.status in ("ok", "idle") else 503)',
        "return JSONResponse(_probe(now), 200)",
        "server/test_http.py::test_row_20_health_loading_and_failed",
    ),
    _mutant(
        *(21, "what nobody else caught is answered", "server/middleware/access_log.py"),
        *("await JSONResponse(describe(error), 500)(scope, receive, send_with_id)", "raise"),
        "server/test_http.py::test_row_21_an_unexpected_exception_is_a_500_without_its_text",
    ),
    _mutant(
        *(21, "half a pass is forgotten", "engines/transformers/model.py"),
        *("self._runner.forget()  # what it keeps may be half of a pass", "pass"),
        "engines/test_transformers.py::test_row_21_pass_that_breaks_leaves_nothing_half_done",
        "engines/test_transformers.py::test_row_21_out_of_memory_drops_one_request_and_frees_its_memory",
    ),
    _mutant(
        *(21, "a slot is free again however its request ended", "service/service.py"),
        *(
            "self.admission.leave(ticket, finished=finished)",
            "finished and self.admission.leave(ticket, finished=True)",
        ),
        "service/test_service.py::test_row_21_an_engines_error_ends_that_request_alone",
    ),
    _mutant(
        *(21, "an engine that works is not restarted", "service/service.py"),
        'if cause == "dead" and serving is not None and await self._answers(serving.engine):',
        "if False:",
        "service/test_watchdog.py::test_row_21_requests_that_fail_do_not_restart_an_engine_that_works",
    ),
    _mutant(
        *(22, "an engine that hangs is noticed", "service/watchdog.py"),
        *("if self.timeout and engine.stalled_seconds > self.timeout:", "if False:"),
        "service/test_watchdog.py::test_row_22_a_hung_engine_is_replaced",
    ),
    _mutant(
        *(22, "an engine that died is noticed", "service/watchdog.py"),
        *('return "dead" if self.failures >= _FAILURES else None', "return None"),
        "service/test_watchdog.py::test_row_22_a_dead_engine_is_replaced",
    ),
    _mutant(
        *(22, "/livez fails where only a new process helps", "server/operations.py"),
        *("return JSONResponse(_probe(now), 200 if now.alive else 503)", "return JSONResponse(_probe(now))"),
        "service/test_watchdog.py::test_row_22_livez_says_so_to_who_restarts_processes",
    ),
    _mutant(
        *(23, "what is new is refused while it drains", "server/middleware/door.py"),
        *("if self._service.is_stopping:", "if False:"),
        "server/test_door.py::test_row_23_while_it_drains",
    ),
    _mutant(
        *(23, "the end waits for what runs", "server/serve.py"),
        *("await self._service.drain()", "pass"),
        "server/test_serve.py::test_row_23_sigterm_under_load",
    ),
    _mutant(
        *(23, "a second signal ends it at once", "server/serve.py"),
        *("os._exit(128 + number)", "return"),
        "server/test_serve.py::test_row_23_a_second_sigterm_ends_it_at_once",
    ),
    _mutant(
        *(24, "nothing is kept of a key that has nothing running", "service/admission.py"),
        *("                del self._running_of[ticket.key]\n", "                pass\n"),
        "server/test_soak.py::test_row_24_threads_handles_and_slots_stay_as_they_are",
    ),
    _mutant(
        *(24, "few compiled grammars are kept", "engines/transformers/guide.py"),
        *("lru_cache(maxsize=_COMPILED)", "lru_cache(maxsize=None)"),
        "engines/transformers/test_guide.py::test_row_24_few_compiled_grammars_are_kept",
    ),
    _mutant(
        *(24, "the prefix cache is bounded", "engines/transformers/runner.py"),
        *("room = self._kept_tokens - len(whole)", "room = 10**9"),
        "engines/transformers/test_runner.py::test_row_24_what_is_kept_is_bounded",
    ),
    _mutant(
        *(24, "labels are few whatever is asked for", "server/middleware/access_log.py"),
        *('getattr(scope.get("route"), "path", "other")', 'scope["path"]'),
        "service/test_metrics.py::test_row_24_no_label_has_what_a_client_wrote",
    ),
    _mutant(
        *(25, "the disk's room is looked at first", "checkpoints/hub/transfer.py"),
        *("if needed > free:", "if False:"),
        "checkpoints/test_hub.py::test_row_25_no_room_on_the_disk",
        "checkpoints/test_file_systems.py::test_row_25_a_disk_that_is_too_small_is_told_before_anything_is_fetched",
    ),
    _mutant(
        *(25, "a disk that takes nothing is told in words", "checkpoints/hub/transfer.py"),
        *("except OSError as error:", "except ZeroDivisionError as error:"),
        "checkpoints/test_hub.py::test_row_25_a_cache_that_cannot_be_written",
        "checkpoints/test_file_systems.py::test_row_25_a_disk_that_becomes_full_leaves_nothing_that_is_used",
        "checkpoints/test_file_systems.py::test_row_25_a_read_only_cache_that_lacks_something",
    ),
    _mutant(
        *(25, "a whole cache is not written to", "checkpoints/hub/cache.py"),
        *("and self.latest(revision) != commit:", "or True:"),
        "checkpoints/test_hub.py::test_row_25_a_whole_cache_is_not_written",
        "checkpoints/test_file_systems.py::test_row_25_a_read_only_cache_that_is_whole",
    ),
    _mutant(
        *(25, "what is on its way has another name", "checkpoints/hub/cache.py"),
        *('f"{etag}.part"', "etag"),
        "checkpoints/test_hub.py::test_row_25_a_killed_process_leaves_nothing_that_is_loaded",
        "checkpoints/test_hub.py::test_row_25_the_next_process_goes_on_too",
    ),
    _mutant(
        *(25, "what came is compared with its hash", "checkpoints/hub/transfer.py"),
        *("                _check(file, part)\n", ""),
        "checkpoints/test_hub.py::test_row_25_a_damaged_file_is_dropped",
    ),
    _mutant(
        *(25, "offline, nothing is asked", "checkpoints/hub/__init__.py"),
        *("self._unreachable = self._api.offline", "self._unreachable = None"),
        "checkpoints/test_hub.py::test_row_25_offline_the_cache_is_used_and_nothing_is_asked",
    ),
    _mutant(
        *(25, "where no hub answers, the cache is taken", "checkpoints/hub/__init__.py"),
        "            except Unreachable as error:\n                self._unreachable = error.message\n",
        "            except ZeroDivisionError:\n                pass\n",
        "checkpoints/test_hub.py::test_row_25_an_unreachable_hub_leaves_what_is_cached",
        "checkpoints/test_hub.py::test_row_25_nobody_listens",
    ),
    _mutant(
        *(26, "pickles are no weights", "checkpoints/description.py"),
        *("raise CandidateError(_no_weights(sizes))", "return ()"),
        "checkpoints/test_hub.py::test_row_26_pickles_and_code",
        "engines/test_transformers.py::test_row_26_pickled_weights_are_never_opened",
    ),
    _mutant(
        *(26, "code of a checkpoint is refused", "checkpoints/description.py"),
        *('if "auto_map" in config and not trust_remote_code:', "if False:"),
        "checkpoints/test_hub.py::test_row_26_pickles_and_code",
        "engines/test_transformers.py::test_row_26_code_of_a_checkpoint_runs_only_where_it_is_trusted",
    ),
    _mutant(
        *(26, "code of a checkpoint is not even fetched", "checkpoints/hub/__init__.py"),
        *('(*_BESIDE_WEIGHTS, ".py") if settings.trust_remote_code else _BESIDE_WEIGHTS', '(*_BESIDE_WEIGHTS, ".py")'),
        "checkpoints/test_hub.py::test_row_26_only_what_is_needed_is_fetched_and_it_is_whole",
    ),
    _mutant(
        *(27, "the log is blacked out", "logs.py"),
        *('text = text.replace(secret, "***")', "pass"),
        "test_logs.py::test_row_27_secrets_are_blacked_out_everywhere",
    ),
    _mutant(
        *(27, "exceptions of others are named by their class", "server/errors.py"),
        *('error_body("internal error",', "error_body(str(error),"),
        "server/test_http.py::test_row_27_a_foreign_error_in_midstream_keeps_its_text",
        "server/test_http.py::test_row_21_an_unexpected_exception_is_a_500_without_its_text",
    ),
    _mutant(
        *(27, "a key is known by its name", "server/middleware/guard.py"),
        *(
            "return next((name for name in found if claimed in (None, name.encode())), None)",
            "return key.decode() if found else None",
        ),
        "service/test_metrics.py::test_row_27_a_key_is_needed_and_is_shown_by_its_name",
    ),
    _mutant(
        *(27, "a wrong setting that is secret is not shown", "settings.py"),
        *('"(hidden)" if name in _SECRET else repr(error.get("input"))', 'repr(error.get("input"))'),
        "test_settings.py::test_row_27_wrong_keys_are_refused_and_not_shown",
        "test_settings.py::test_row_27_no_error_shows_a_secret",
    ),
)


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the tree, without what was built in it."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        yield Path(shutil.copytree(ROOT, Path(folder) / "tree", ignore=_LEFT_OUT))


@contextmanager
def applied(mutant: Mutant, tree: Path) -> Iterator[None]:
    path = tree / mutant.path
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise SystemExit(f"row {mutant.row}: {mutant.path} has {text.count(mutant.old)} times {mutant.old!r}")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def failures(tests: Iterable[str], tree: Path, seconds: float = SECONDS) -> list[str]:
    """The names of those that fail on that tree."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "--timeout=60", "-p", "no:cacheprovider", *tests]
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
