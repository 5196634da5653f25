import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from router_backend.errors import SettingsError
from router_backend.settings import (
    ALIASES,
    REPLACED,
    STRATEGIES,
    Settings,
    load_settings,
    looks_like_path,
    outdated,
    parse_strategy,
    split_list,
)
from router_tools.settings_page import GROUPS, example, page

VARIABLES = {name.upper() for name in Settings.model_fields}
SECRET = "hf_NEVER-SHOWN"
KEYS = "alice:NEVER-SHOWN-1,bob:NEVER-SHOWN-2"


@pytest.fixture(autouse=True)
def odd_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are read without case, and a Space has a variable of its own: none of a developer's reaches a test."""
    for name in list(os.environ):
        if name.upper() in {*VARIABLES, *REPLACED, "SPACE_ID"}:
            monkeypatch.delenv(name)


def error_of(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value) == caught.value.message
    return caught.value.message


# Defaults, and every variable by its name


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("model_repo", None),
        ("model_fallbacks", None),
        ("model_owner", "Alovestocode"),
        ("hf_token", None),
        ("model_load_strategy", None),
        ("load_in_8bit", None),
        ("load_in_4bit", None),
        ("model_load_strategies", ""),
        ("model_device", "auto"),
        ("skip_warm_start", False),
        ("allow_warm_start_failure", False),
        ("max_new_tokens", 600),
        ("default_temperature", 0.2),
        ("default_top_p", 0.9),
        ("host", "127.0.0.1"),
        ("port", 7860),
        ("router_tools", "/general-search,/math,/code"),
        ("tools", ("/general-search", "/math", "/code")),
        ("router_api_keys", None),
        ("api_keys", {}),
        ("prompt_format", "auto"),
        ("log_format", "auto"),
        ("trust_remote_code", False),
        ("engine", None),
        ("public_paths", ""),
        ("log_prompts", False),
    ],
)
def test_defaults(name: str, default: object) -> None:
    value = getattr(load_settings(), name)
    assert value == default
    assert type(value) is type(default)


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("MODEL_REPO", "me/pinned", "model_repo", "me/pinned"),
        ("MODEL_FALLBACKS", "a/one, two", "model_fallbacks", "a/one, two"),
        ("MODEL_OWNER", "acme", "model_owner", "acme"),
        ("MODEL_LOAD_STRATEGY", "cpu", "model_load_strategy", "cpu"),
        ("LOAD_IN_8BIT", "1", "load_in_8bit", True),
        ("LOAD_IN_4BIT", "0", "load_in_4bit", False),
        ("MODEL_LOAD_STRATEGIES", "8bit,4bit,cpu", "model_load_strategies", "8bit,4bit,cpu"),
        ("MODEL_LOAD_STRATEGIES", " NF4 , half,,full", "model_load_strategies", "4bit,fp16,cpu"),
        ("MODEL_DEVICE", "cuda", "model_device", "cuda"),
        ("MODEL_DEVICE", "cpu", "model_device", "cpu"),
        ("SKIP_WARM_START", "1", "skip_warm_start", True),
        ("ALLOW_WARM_START_FAILURE", "1", "allow_warm_start_failure", True),
        ("MAX_NEW_TOKENS", "900", "max_new_tokens", 900),
        ("DEFAULT_TEMPERATURE", "0", "default_temperature", 0.0),
        ("DEFAULT_TEMPERATURE", "0.7", "default_temperature", 0.7),
        ("DEFAULT_TOP_P", "1", "default_top_p", 1.0),
        ("HOST", "0.0.0.0", "host", "0.0.0.0"),
        ("PORT", "0", "port", 0),
        ("PORT", "65535", "port", 65535),
        ("ROUTER_TOOLS", "/a, /b-2", "tools", ("/a", "/b-2")),
        ("ROUTER_API_KEYS", "a:k-1234567, b:x:y-123456", "api_keys", {"a": "k-1234567", "b": "x:y-123456"}),
        ("PROMPT_FORMAT", "raw", "prompt_format", "raw"),
        ("LOG_FORMAT", "json", "log_format", "json"),
        ("HUB_TIMEOUT", "2.5", "hub_timeout", 2.5),
        ("DRAIN_TIMEOUT", "0", "drain_timeout", 0.0),
        ("TRUST_REMOTE_CODE", "1", "trust_remote_code", True),
    ],
)
def test_every_variable_is_read(
    variable: str, text: str, name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    found = getattr(load_settings(), name)
    assert found == value
    assert type(found) is type(value)


def test_the_token_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    token = load_settings().hf_token
    assert token is not None
    assert token.get_secret_value() == SECRET


def test_a_space_listens_on_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "me/router")
    assert load_settings().host == "0.0.0.0"
    assert load_settings().port == 7860
    assert load_settings(host="127.0.0.1").host == "127.0.0.1"
    monkeypatch.setenv("HOST", "127.0.0.2")
    assert load_settings().host == "127.0.0.2"


# Described once

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("path", "made"), [("docs/settings.md", page), (".env.example", example)])
def test_the_pages_of_the_settings_are_current(path: str, made: Callable[[], str]) -> None:
    text = (ROOT / path).read_text("utf-8")
    assert text == made(), "run: python -m router_tools.settings_page"


def test_every_setting_is_described_and_in_a_group() -> None:
    names = list(Settings.model_fields)
    assert names[0] == next(iter(GROUPS)) and set(GROUPS) <= set(names)
    for name, field in Settings.model_fields.items():
        assert field.description and field.description.endswith("."), name
        assert f"| `{name.upper()}` |" in page() and f"\n#{name.upper()}=" in example(), name


def test_every_line_of_the_example_is_a_setting(tmp_path: Path) -> None:
    lines = [line[1:] for line in example().splitlines() if re.match(r"#[A-Z0-9_]+=", line)]
    assert len(lines) == len(VARIABLES)
    (tmp_path / ".env").write_text("\n".join(lines), "utf-8")
    settings = load_settings()
    assert settings.model_fields_set >= set(Settings.model_fields) - {"hf_token", "space_hf_token"}
    assert (settings.frame_ancestors, settings.root_path, settings.engine) == ("'self'", "/router", "echo")


def test_old_names_are_told_and_are_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert outdated() == []
    assert not REPLACED.keys() & VARIABLES
    (tmp_path / ".env").write_text("WRITE_TIMEOUT=1\nprefix_cache=0\n", "utf-8")
    monkeypatch.setenv("Prompt_Lookup", "0")
    load_settings()
    told = outdated()
    assert [line.partition(" ")[0] for line in told] == ["PROMPT_LOOKUP", "PREFIX_CACHE", "WRITE_TIMEOUT"]
    assert "REPEATABLE=1" in told[0] and "\n" not in "".join(told)


# Load strategies

ALIAS_TABLE = {
    "8bit": ("8bit", "8", "int8", "bnb8", "llm.int8"),
    "4bit": ("4bit", "4", "int4", "bnb4", "nf4"),
    "bf16": ("bf16", "bfloat16"),
    "fp16": ("fp16", "float16", "half"),
    "cpu": ("cpu", "fp32", "full"),
}


@pytest.mark.parametrize(("alias", "strategy"), [(alias, name) for name in ALIAS_TABLE for alias in ALIAS_TABLE[name]])
def test_every_alias_of_a_strategy(alias: str, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (alias, alias.upper(), alias.title(), f"  {alias}\t"):
        assert parse_strategy(text) == strategy
        monkeypatch.setenv("MODEL_LOAD_STRATEGY", text)
        assert load_settings().model_load_strategy == strategy
        monkeypatch.setenv("MODEL_LOAD_STRATEGIES", f"bf16,{text}")
        assert load_settings().model_load_strategies == f"bf16,{strategy}"


def test_there_are_no_other_aliases() -> None:
    assert {alias: name for name, aliases in ALIAS_TABLE.items() for alias in aliases} == ALIASES


@pytest.mark.parametrize("variable", ["MODEL_LOAD_STRATEGY", "MODEL_LOAD_STRATEGIES"])
@pytest.mark.parametrize("wrong", ["turbo", "8 bit", "16", "gguf", "native"])
def test_an_unknown_strategy_names_variable_value_and_choices(
    variable: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = error_of(variable, wrong, monkeypatch)
    assert f"{variable}={wrong!r}" in message
    for known in (*STRATEGIES, *ALIASES):
        assert known in message
    assert "Value error" not in message


def test_one_wrong_strategy_of_a_list_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "8bit,turbo" in error_of("MODEL_LOAD_STRATEGIES", "8bit,turbo", monkeypatch)


# Booleans

BOOLEANS = (
    "LOAD_IN_8BIT",
    "LOAD_IN_4BIT",
    "SKIP_WARM_START",
    "ALLOW_WARM_START_FAILURE",
    "TRUST_REMOTE_CODE",
    "LOG_PROMPTS",
)


@pytest.mark.parametrize("variable", BOOLEANS)
@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("true", "false"), ("yes", "no"), ("on", "off")])
def test_booleans_and_their_opposites(variable: str, yes: str, no: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for write in (str.lower, str.upper, str.title):
        for text, expected in ((write(yes), True), (write(no), False)):
            monkeypatch.setenv(variable, text)
            assert getattr(load_settings(), variable.lower()) is expected


@pytest.mark.parametrize("variable", BOOLEANS)
@pytest.mark.parametrize("wrong", ["maybe", "2", "-1", "truthy"])
def test_anything_else_is_no_boolean(variable: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{variable}={wrong!r}" in error_of(variable, wrong, monkeypatch)


# Empty values


@pytest.mark.parametrize("variable", sorted(VARIABLES))
@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_is_an_unset_one(variable: str, empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unset = load_settings()
    monkeypatch.setenv(variable, empty)
    settings = load_settings()
    assert settings.model_copy(update={"router_api_keys": None, "hf_token": None}) == unset
    assert settings.api_keys == {}
    assert settings.hf_token is None or not settings.hf_token.get_secret_value().strip()


def test_an_empty_variable_hides_the_one_in_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MODEL_REPO=me/from-file\n")
    assert load_settings().model_repo == "me/from-file"
    monkeypatch.setenv("MODEL_REPO", "")
    assert load_settings().model_repo is None


# .env and the order of precedence


def test_environment_above_file_above_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=1111\nMODEL_OWNER=file\n# a comment\nSOMETHING_ELSE=1\n", "utf-8")
    settings = load_settings()
    assert (settings.port, settings.model_owner, settings.host) == (1111, "file", "127.0.0.1")
    monkeypatch.setenv("PORT", "2222")
    settings = load_settings()
    assert (settings.port, settings.model_owner) == (2222, "file")
    settings = load_settings(port=3333, model_owner=None)
    assert (settings.port, settings.model_owner) == (3333, "file")


def test_the_file_is_utf_8_and_checked_like_the_environment(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("ROUTER_API_KEYS='zoë:schlüssel'\n".encode())
    assert load_settings().api_keys == {"zoë": "schlüssel"}
    (tmp_path / ".env").write_text("MODEL_LOAD_STRATEGY=turbo\n")
    with pytest.raises(SettingsError, match="MODEL_LOAD_STRATEGY='turbo'"):
        load_settings()


def test_the_file_is_that_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("PORT=1111\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_settings().port == 7860


def test_overrides_are_checked_too() -> None:
    with pytest.raises(SettingsError, match="PORT=70000"):
        load_settings(port=70_000)


def test_an_unknown_override_is_not_dropped_in_silence() -> None:
    with pytest.raises((SettingsError, TypeError), match="prot"):
        load_settings(prot=1234)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(load_settings(), "port", 1)  # noqa: B010 - the type checker forbids it already


# Numbers and choices


@pytest.mark.parametrize(
    ("variable", "wrong"),
    [
        *(("MAX_NEW_TOKENS", text) for text in ("0", "-1", "131073", "many", "true", "1.5", "nan", "1e999")),
        *(("DEFAULT_TEMPERATURE", text) for text in ("-0.1", "2.1", "nan", "inf", "warm", "1e999")),
        *(("DEFAULT_TOP_P", text) for text in ("-0.5", "1.01", "nan", "-inf")),
        *(("PORT", text) for text in ("-1", "65536", "http", "80.5")),
        *(("HUB_TIMEOUT", text) for text in ("0", "-1", "nan", "inf")),
        *(("DRAIN_TIMEOUT", text) for text in ("-1", "nan", "inf")),
        *(("REQUEST_TIMEOUT", text) for text in ("0", "-5", "nan", "inf")),
        *(("SLOTS", text) for text in ("0", "-1", "257")),
        *(("QUEUE_LIMIT", text) for text in ("-1", "100001")),
        *(("CONTEXT_LENGTH", text) for text in ("0", "-4096", "255")),
        *(("THREADS", text) for text in ("-1", "1025")),
        *(("MAX_BODY_BYTES", text) for text in ("0", "-1", "1023")),
        *(("MODEL_DEVICE", text) for text in ("gpu", "cuda:0", "tpu")),
        *(("PROMPT_FORMAT", text) for text in ("markdown", "chatml")),
        *(("LOG_FORMAT", text) for text in ("xml", "text")),
    ],
)
def test_a_wrong_value_names_variable_and_value(variable: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert error_of(variable, wrong, monkeypatch).startswith(f"{variable}={wrong!r} is wrong: ")


def test_a_wrong_choice_lists_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    message = error_of("MODEL_DEVICE", "gpu", monkeypatch)
    assert all(choice in message for choice in ("auto", "cuda", "cpu"))


def test_all_wrong_variables_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "-1")
    monkeypatch.setenv("MODEL_DEVICE", "gpu")
    message = error_of("MODEL_LOAD_STRATEGY", "turbo", monkeypatch)
    for variable in ("PORT='-1'", "MODEL_DEVICE='gpu'", "MODEL_LOAD_STRATEGY='turbo'"):
        assert variable in message


# Tools


@pytest.mark.parametrize("tools", ["/a", "/code,/code-review", ",".join(f"/tool-{n}" for n in range(64)), "/a2,"])
def test_good_tools(tools: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_TOOLS", tools)
    assert load_settings().tools == tuple(tools.strip(",").split(","))


@pytest.mark.parametrize(
    "wrong",
    [
        "math",
        "/Math",
        "/math,/math",
        "/2d",
        "/-x",
        "/ma th",
        "//math",
        "/math/code",
        "/math()",
        "/mäth",
        "/math\n/code",
        '/math"',
        "/",
        ",",
        ",".join(f"/tool-{n}" for n in range(65)),
    ],
)
def test_wrong_tools(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = error_of("ROUTER_TOOLS", wrong, monkeypatch)
    assert message.startswith(f"ROUTER_TOOLS={wrong!r}")
    assert "/math,/code" in message


# API keys and other secrets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alice:one-12345", {"alice": "one-12345"}),
        (" alice:one-12345 , bob:two-12345,", {"alice": "one-12345", "bob": "two-12345"}),
        ("alice: one-12345", {"alice": "one-12345"}),
        ("alice:o:n:e-12345=", {"alice": "o:n:e-12345="}),
    ],
)
def test_the_shape_of_keys(text: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_API_KEYS", text)
    assert load_settings().api_keys == expected


@pytest.mark.parametrize(
    "wrong", ["NEVER-SHOWN", "alice:NEVER-SHOWN,SHOWN-NEVER", ":NEVER-SHOWN", "alice:", "alice: ", "a:1,,b:"]
)
def test_row_27_wrong_keys_are_refused_and_not_shown(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = error_of("ROUTER_API_KEYS", wrong, monkeypatch)
    assert "ROUTER_API_KEYS" in message
    assert "name:key,name:key" in message
    assert wrong not in message
    assert "NEVER" not in message


def test_keys_that_hold_no_key_do_not_open_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sets the variable wants a guard: an empty list is a mistake, not a wish for none."""
    error_of("ROUTER_API_KEYS", ",", monkeypatch)


def test_two_keys_of_one_name_are_not_dropped_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    error_of("ROUTER_API_KEYS", "alice:one-12345,alice:two-12345", monkeypatch)


def test_row_27_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("ROUTER_API_KEYS", KEYS)
    settings = load_settings()
    for text in (repr(settings), str(settings), settings.model_dump_json(), repr(settings.model_dump())):
        assert "NEVER-SHOWN" not in text


@pytest.mark.parametrize(
    "wrong", [("PORT", "-1"), ("MODEL_LOAD_STRATEGY", "turbo"), ("ROUTER_API_KEYS", "NEVER-SHOWN")]
)
def test_row_27_no_error_shows_a_secret(wrong: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("ROUTER_API_KEYS", KEYS)
    monkeypatch.setenv(*wrong)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    shown = [str(caught.value), repr(caught.value), repr(caught.value.args), *traceback.format_exception(caught.value)]
    assert "NEVER-SHOWN" not in "".join(shown)


# Candidates that mean a place on this machine


@pytest.mark.parametrize("variable", ["MODEL_REPO", "MODEL_FALLBACKS"])
@pytest.mark.parametrize("typo", ["./tinny.gguf", "tinny.gguf", "../router/tinny.gguf", "{folder}/tinny.gguf"])
def test_a_typo_of_a_file_shows_what_is_there(
    variable: str, typo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "router"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "tiny.gguf").write_bytes(b"GGUF")
    (folder / "notes.txt").write_text("private")
    monkeypatch.chdir(folder)
    typo = typo.format(folder=folder)
    message = error_of(variable, typo, monkeypatch)
    assert message.startswith(f"{variable}={typo!r} is wrong: no such file or folder")
    assert "tiny.gguf" in message.partition("there is:")[2]
    assert "checkpoint" in message.partition("there is:")[2]
    assert "notes.txt" not in message
    assert "embedded" in message


def test_a_missing_folder_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    message = error_of("MODEL_REPO", "./no/such/folder", monkeypatch)
    assert "no such file or folder" in message
    assert "nothing that fits" in message


def test_one_typo_among_fallbacks_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    message = error_of("MODEL_FALLBACKS", "a/one, ./nope ,embedded", monkeypatch)
    assert "MODEL_FALLBACKS='./nope'" in message


def test_places_that_exist_and_names_of_repos_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("tiny.gguf", "./tiny.gguf", "~/tiny.gguf", str(tmp_path), "me/repo", "repo", "me/repo:a.gguf"):
        assert load_settings(model_repo=name).model_repo == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/models/x", True),
        ("./x", True),
        ("../x", True),
        ("~/x", True),
        ("x.gguf", True),
        ("models/deep/x.gguf", True),
        ("owner/repo", False),
        ("repo", False),
        ("embedded", False),
        ("owner/repo:x.gguf", False),
        ("owner/repo:deep/x.gguf", False),
    ],
)
def test_looks_like_path(name: str, expected: bool) -> None:
    assert looks_like_path(name) is expected


def test_split_list() -> None:
    assert split_list(" a, ,b,, c d ,") == ("a", "b", "c d")
    assert split_list("") == ()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Embedded", "embedded"),
        ("embeded", "embedded"),
        ("https://huggingface.co/acme/one", "acme/one"),
        ("https://huggingface.co/acme/one/tree/v1/default", "acme/one@v1"),
        ("hf.co/acme/one/", "acme/one"),
    ],
)
def test_a_name_that_is_misspelt(name: str, meant: str) -> None:
    for variable in ("MODEL_REPO", "MODEL_FALLBACKS"):
        with pytest.raises(SettingsError) as caught:
            load_settings(**{variable.lower(): name})
        assert caught.value.message == f"{variable}={name!r} is wrong: write {variable}={meant}"


@pytest.mark.parametrize("name", ["embedded", "embedder", "acme/Embedded", "router-embedded"])
def test_names_that_are_their_own(name: str) -> None:
    assert load_settings(model_repo=name).model_repo == name


# Names of an older Space


OLDER = {
    "GRADIO_SERVER_NAME": ("HOST", "0.0.0.0", "10.0.0.7"),
    "GRADIO_SERVER_PORT": ("PORT", "7861", "7862"),
    "LOAD_STRATEGY": ("MODEL_LOAD_STRATEGY", "nf4", "half"),
    "DEFAULT_ROUTER_MODEL": ("MODEL_REPO", "owner/name", "other/name"),
}


@pytest.mark.parametrize("older", OLDER)
def test_an_older_name_means_the_same(older: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name, value, other = OLDER[older]
    monkeypatch.setenv(older, value)
    by_older = getattr(load_settings(), name.lower())
    monkeypatch.setenv(name, other)
    newer = getattr(load_settings(), name.lower())
    monkeypatch.delenv(older)
    assert newer == getattr(load_settings(), name.lower()) != by_older, "the name of today wins"
    monkeypatch.setenv(name, value)
    assert getattr(load_settings(), name.lower()) == by_older
    monkeypatch.delenv(name)
    (tmp_path / ".env").write_text(f"{older}={value}\n")
    assert getattr(load_settings(), name.lower()) == by_older
    assert load_settings(port=1, host="::1").port == 1, "the command line wins"


def test_an_older_name_with_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_SERVER_PORT", "many")
    with pytest.raises(SettingsError, match="PORT='many' is wrong"):
        load_settings()
