"""Settings: the only reader of the environment (and of a `.env` file, below it)."""

import os
import re
from difflib import SequenceMatcher
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, SettingsConfigDict

from router_backend.errors import SettingsError

STRATEGIES = ("8bit", "4bit", "bf16", "fp16", "cpu")
ALIASES = {
    **{name: name for name in STRATEGIES},
    **dict.fromkeys(("8", "int8", "bnb8", "llm.int8"), "8bit"),
    **dict.fromkeys(("4", "int4", "bnb4", "nf4"), "4bit"),
    "bfloat16": "bf16",
    **dict.fromkeys(("float16", "half"), "fp16"),
    **dict.fromkeys(("fp32", "full"), "cpu"),
}
DEFAULT_FALLBACKS = (
    "Alovestocode/router-gemma3-merged,Alovestocode/router-llama31-merged,Alovestocode/router-qwen3-32b-merged"
)
_HUB_URL = re.compile(
    r"(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)(?P<kind>spaces/|datasets/)?"
    r"(?P<repo>[^/?#@]+/[^/?#@]+?)(?:\.git)?"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[^/?#]+)(?:/(?P<file>[^?#]+\.gguf))?)?(?:[/?#].*)?"
)
# Settings that are gone, and what is to be done about each.
_ALWAYS = "set REPEATABLE=1 for answers that repeat; otherwise drafts and the prefix cache are always on"
_FIXED = "it is fixed now; set such limits in the proxy in front"
REPLACED = {
    **dict.fromkeys(("PROMPT_LOOKUP", "FORCED_TOKENS", "PREFIX_CACHE", "DRAFT_HISTORY_BITS"), _ALWAYS),
    **dict.fromkeys(("HEADER_TIMEOUT", "BODY_TIMEOUT", "WRITE_TIMEOUT", "MAX_URL_BYTES", "MAX_HEADER_BYTES"), _FIXED),
}
_WEAK = "a key must have at least 8 characters, 5 of them different; make one with `openssl rand -hex 16`"
_TOOL = re.compile(r"/[a-z][a-z0-9-]*")
# The first parts of this server's own paths, which ROOT_PATH must not be taken for.
_OWN_PATHS = re.compile(
    r"/(v1|mcp|health|livez|readyz|startupz|metrics|admin|gradio|gradio_api|config|console|docs|openapi\.json)(/|$)"
)


def parse_strategy(name: str) -> str:
    """The canonical name of a load strategy. Raises ValueError, listing the known ones."""
    try:
        return ALIASES[name.strip().lower()]
    except KeyError:
        raise ValueError(f"choose from {', '.join(STRATEGIES)} (aliases: {', '.join(sorted(ALIASES))})") from None


def split_list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _pairs(keys: SecretStr | None) -> list[tuple[str, str]]:
    parts = [pair.partition(":") for pair in split_list(keys.get_secret_value())] if keys else []
    return [(name.strip(), key.strip()) for name, _, key in parts]


def _is_weak(key: str) -> bool:
    """Whether a key can be guessed: it is short, or of few different characters."""
    return len(key.encode()) < 8 or len(set(key.encode())) < 5


class Settings(BaseSettings):
    """Every variable that the backend reads, by its name in the environment (upper case).

    `docs/settings.md` and `.env.example` are made of these fields: `python -m router_tools.settings_page`.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True, allow_inf_nan=False
    )

    model_repo: str | None = Field(
        None,
        description="The checkpoint: a hub repo (`owner/name`, `owner/name@commit`), a folder, a `.gguf` file, "
        "`repo:file.gguf`, `embedded`, or the URL of a server that decodes (`http://host:8000/v1`, `…/v1#model`; "
        "several with commas). Without `MODEL_FALLBACKS` it is the only candidate. "
        "Older name: `DEFAULT_ROUTER_MODEL`.",
        validation_alias=AliasChoices("model_repo", "default_router_model"),
        examples=["embedded"],
    )
    model_fallbacks: str | None = Field(
        None,
        description="Candidates in order of preference, comma-separated. Default: three checkpoints of `MODEL_OWNER`.",
        examples=["router-gemma3-merged,router-llama31-merged,router-qwen3-32b-merged"],
    )
    model_owner: str = Field("Alovestocode", description="The owner of names without one.")
    embedded_fallback: bool | None = Field(
        default_factory=lambda: True if os.environ.get("SPACE_ID") else None,
        description="Serve the embedded model where no other checkpoint loads. Default: `1` on a Space, and where "
        "neither `MODEL_REPO` nor `MODEL_FALLBACKS` is set; else `0`.",
        examples=["0"],
    )
    model_device: Literal["auto", "cuda", "cpu"] = Field("auto", description="Where the model runs.")
    skip_warm_start: bool = Field(False, description="Load the model with the first request instead of at the start.")
    allow_warm_start_failure: bool = Field(
        False, description="Stay up when nothing loads, and try again: after 2, 4, 8 … 60 seconds."
    )
    engine: Literal["echo"] | None = Field(
        None,
        description="`echo` repeats the prompt without weights, for tests and demos. It is never chosen by itself.",
        examples=["echo"],
    )

    upstream_api_key: SecretStr | None = Field(
        None,
        description="The key that servers named by a URL in `MODEL_REPO` want. It is never logged.",
        examples=["change-me-four"],
    )
    upstream_timeout: float = Field(
        60, gt=0, description="Seconds that such a server may say nothing in the midst of a call."
    )
    upstream_budget_line: bool = Field(
        False,
        description="The checkpoint of such a server was trained to read its budget in the prompt, as the embedded one "
        "was. A server does not say so.",
    )

    max_new_tokens: int = Field(
        600, ge=1, le=131_072, description="The token budget of a request that does not name one."
    )
    default_temperature: float = Field(
        0.2, ge=0, le=2, description="The temperature of a request that does not name one."
    )
    default_top_p: float = Field(0.9, ge=0, le=1, description="`top_p` of a request that does not name one.")
    prompt_format: Literal["auto", "chat", "raw"] = Field(
        "auto",
        description="`chat` uses the checkpoint's chat template, `raw` never does, `auto` uses it where there is one.",
    )
    router_tools: str = Field(
        "/general-search,/math,/code", description="The specialists that a plan may name, 1 to 64."
    )

    host: str = Field(
        default_factory=lambda: "0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1",  # noqa: S104
        description="The address to listen on. Default: `127.0.0.1`, on a Space `0.0.0.0`. `serve --host` wins. "
        "Older name: `GRADIO_SERVER_NAME`.",
        validation_alias=AliasChoices("host", "gradio_server_name"),
        examples=["127.0.0.1"],
    )
    port: int = Field(
        7860,
        ge=0,
        le=65535,
        description="The port. 0 takes a free one. `serve --port` wins. Older name: `GRADIO_SERVER_PORT`.",
        validation_alias=AliasChoices("port", "gradio_server_port"),
    )
    root_path: str = Field(
        "",
        description="The path at which a proxy shows this server. Links and redirects then begin with it. "
        "See `docs/nginx.conf`.",
        examples=["/router"],
    )
    router_api_keys: SecretStr | None = Field(
        None,
        description="`name:key,name:key`. Every path but `/` and the health probes then needs a key: programs send "
        "`Authorization: Bearer KEY`, browsers ask for the name and the key.",
        examples=["alice:change-me,bob:change-me-too"],
    )
    public_paths: str = Field("", description="Further whole paths that need no key.", examples=["/console,/metrics"])
    admin_key: SecretStr | None = Field(
        None,
        description="The key of `POST /admin/reload`. Without it there is no such path.",
        examples=["change-me-three"],
    )
    key_requests_per_minute: float = Field(0, ge=0, description="The rate limit of each key. 0: none.")
    key_concurrency: int = Field(
        0, ge=0, description="Requests that each key may have at once, waiting ones included. 0: no limit."
    )
    allowed_hosts: str = Field(
        "",
        description="Names that the `Host` header may give; `*` allows any. Default: on the loopback without keys only "
        "`localhost`, `127.0.0.1` and `[::1]`, elsewhere any.",
        examples=["router.example"],
    )
    cors_origins: str = Field(
        "", description="Origins whose pages may call the API; `*` allows any.", examples=["https://app.example"]
    )
    frame_ancestors: str = Field(
        default_factory=lambda: (
            "'self' https://huggingface.co https://*.hf.space" if os.environ.get("SPACE_ID") else "'self'"
        ),
        description="Who may show the pages in a frame, as in Content-Security-Policy. "
        "Default: `'self'`, on a Space the hub as well.",
        examples=["\"'self'\""],  # two pairs of quotes, of which .env takes one away
    )
    max_body_bytes: int = Field(1_048_576, ge=1024, description="The size of a request body. A larger one is a 413.")
    log_format: Literal["auto", "human", "json"] = Field(
        "auto", description="`auto` writes for people on a terminal, else JSON."
    )
    log_prompts: bool = Field(False, description="Write each request's prompt into its log line.")

    slots: int = Field(4, ge=1, le=256, description="Requests that are decoded at once.")
    context_length: int = Field(
        4096,
        ge=256,
        le=1_048_576,
        description="Tokens for the prompt and the answer of one request, never more than the checkpoint allows.",
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="Threads that decode on the processor. 0: one fewer than there are cores, at least one; where that "
        "is one, llama.cpp's prefill and several streams at once have all cores.",
    )
    queue_limit: int = Field(64, ge=0, le=100_000, description="Requests that may wait for a slot. More are a 429.")
    request_timeout: float = Field(300, gt=0, description="Seconds for a request, waiting included. Then it is a 504.")
    drain_timeout: float = Field(30, ge=0, description="Seconds that running requests get when the server stops.")
    watchdog_timeout: float = Field(
        120, ge=0, description="Seconds without a sign of life after which the engine is started again. 0: never."
    )
    otel_exporter_otlp_endpoint: str | None = Field(
        None, description="Where traces are sent (extra `otel`).", examples=["http://127.0.0.1:4318"]
    )
    otel_service_name: str = Field("router-backend", description="The name of this service in traces.")

    model_load_strategy: Annotated[str, AfterValidator(parse_strategy)] | None = Field(
        None,
        description=f"The precision to try first: {', '.join(f'`{name}`' for name in STRATEGIES)}, or an alias "
        "(`int8`, `nf4`, `half` …). Default: `8bit`. A quantised checkpoint is loaded as it is. "
        "Older name: `LOAD_STRATEGY`.",
        validation_alias=AliasChoices("model_load_strategy", "load_strategy"),
        examples=["8bit"],
    )
    model_load_strategies: str = Field(
        "", description="The precisions to try next, comma-separated. The others come last.", examples=["4bit,cpu"]
    )
    load_in_8bit: bool | None = Field(None, description="An older way to ask for `8bit`.", examples=["1"])
    load_in_4bit: bool | None = Field(None, description="An older way to ask for `4bit`.", examples=["0"])
    hf_token: SecretStr | None = Field(
        None,
        description="The token that reads private checkpoints; `deploy` and `merge --push` need one that may write. "
        "It is never logged.",
    )
    space_hf_token: SecretStr | None = Field(
        None, description="The token that `deploy` gives the Space as its `HF_TOKEN`; one that may only read will do."
    )
    hf_endpoint: str | None = Field(None, description="The address of another hub.", examples=["https://hub.example"])
    hf_hub_offline: bool = Field(False, description="Ask no hub; use what is there.")
    hub_timeout: float = Field(30, gt=0, description="Seconds without a byte after which a download is given up.")
    trust_remote_code: bool = Field(False, description="Run the code that a checkpoint brings.")
    cuda_visible_devices: str | None = Field(None, description="The GPUs that may be used.", examples=["0"])
    repeatable: bool = Field(
        False,
        description="The same seed gives the same answer, whatever was asked before: transformers without drafts and "
        "prefix cache, llama.cpp (on a CPU) with prompts in pieces of 63 tokens. Answers take longer.",
    )
    draft_tokens: int = Field(
        16, ge=0, le=64, description="Tokens at most that are guessed ahead and checked in one forward pass. 0: none."
    )
    drafter: Path | None = Field(
        None,
        description="A file of earlier plans that drafts are made of; `router-backend drafter build` writes one.",
        examples=["drafter.jsonl"],
    )

    zerogpu_size: Literal["large", "xlarge"] = Field(
        "large", description="The slice of a GPU that a request gets: `large` has 48 GB, `xlarge` 96 GB."
    )
    zerogpu_memory: float | None = Field(
        None, gt=0, description="The slice's memory in GB, where it is another.", examples=["48"]
    )
    spaces_zero_gpu: bool = Field(False, description="Set by the hub on a ZeroGPU Space.")

    @model_validator(mode="before")
    @classmethod
    def _blank_is_unset(cls, values: dict[str, Any]) -> dict[str, Any]:
        stripped = {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}
        return {name: value for name, value in stripped.items() if value != ""}

    @field_validator("model_load_strategies")
    @classmethod
    def _strategies_are_known(cls, value: str) -> str:
        return ",".join(parse_strategy(part) for part in split_list(value))

    @field_validator("hf_endpoint")
    @classmethod
    def _endpoint_is_a_url(cls, value: str | None) -> str | None:
        if value and not re.match(r"https?://[^/\s]", value):
            raise ValueError("give the address of a hub, like https://hub.example")
        return value

    @field_validator("root_path")
    @classmethod
    def _root_is_a_path(cls, value: str) -> str:
        path = value.rstrip("/")
        if path and not re.fullmatch(r"(/(?!\.)[\w.~-]+)+", path, re.ASCII):
            raise ValueError("give a path like /router")
        if _OWN_PATHS.match(path):
            raise ValueError("this server has paths of its own that begin like that; choose another")
        return path

    @field_validator("router_tools")
    @classmethod
    def _tools_are_names(cls, value: str) -> str:
        tools = split_list(value)
        wrong = [tool for tool in tools if not _TOOL.fullmatch(tool)]
        if wrong or not tools or len(set(tools)) < len(tools) or len(tools) > 64:
            raise ValueError("give 1 to 64 different names like /math,/code (a slash, then a-z, 0-9, -)")
        return ",".join(tools)

    @field_validator("router_api_keys")
    @classmethod
    def _keys_are_pairs(cls, value: SecretStr | None) -> SecretStr | None:
        pairs = _pairs(value)
        if value and (not pairs or len(dict(pairs)) < len(pairs) or not all(name and key for name, key in pairs)):
            raise ValueError("give name:key,name:key, each name once")
        keys = [key for _, key in pairs]
        if len(set(keys)) < len(keys):
            raise ValueError("two names have the same key; give each one of its own")
        if any(map(_is_weak, keys)):
            raise ValueError(_WEAK)
        return value

    @field_validator("admin_key")
    @classmethod
    def _admin_key_is_strong(cls, value: SecretStr | None) -> SecretStr | None:
        if value and _is_weak(value.get_secret_value()):
            raise ValueError(_WEAK)
        return value

    @model_validator(mode="after")
    def _admin_key_is_its_own(self) -> "Settings":
        if self.admin_key and self.admin_key.get_secret_value() in self.api_keys.values():
            raise ValueError("ADMIN_KEY must not be one of ROUTER_API_KEYS")
        return self

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_origins(cls, value: str) -> str:
        wrong = [each for each in split_list(value) if each != "*" and not re.fullmatch(r"https?://[^/\s*]+", each)]
        if wrong:
            raise ValueError("give origins like https://app.example, without a path, or * alone")
        return value.lower()  # as browsers send them

    @field_validator("frame_ancestors")
    @classmethod
    def _ancestors_are_one_directive(cls, value: str) -> str:
        if re.search(r"[;,\r\n]", value):
            raise ValueError("give the sources of one directive, with blanks between them")
        return value

    @property
    def tools(self) -> tuple[str, ...]:
        return split_list(self.router_tools)

    @cached_property
    def api_keys(self) -> dict[str, str]:
        """Key name → key. Empty where no key is needed."""
        return dict(_pairs(self.router_api_keys))

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that must stand in no log: of each secret setting, and each key of `ROUTER_API_KEYS` by itself."""
        values = [getattr(self, name) for name in _SECRET]
        return (*self.api_keys.values(), *(value.get_secret_value() for value in values if value))


_SECRET = {name for name, field in Settings.model_fields.items() if SecretStr in get_args(field.annotation)}


def load_settings(**overrides: object) -> Settings:
    """Settings out of the environment, `.env` and the overrides that are not None.

    Raises:
        SettingsError: one message for all wrong variables: name, value and choices.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if unknown := given.keys() - Settings.model_fields.keys():
        raise TypeError(f"no such settings: {', '.join(sorted(unknown))}")
    try:
        settings = Settings(**given)  # type: ignore[arg-type] # pydantic checks the values
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(dict(item)) for item in error.errors())) from None
    except UnicodeDecodeError:
        raise SettingsError(f"{Path('.env').resolve()} is not valid UTF-8: save it as UTF-8") from None
    for variable in ("MODEL_REPO", "MODEL_FALLBACKS"):
        for name in split_list(getattr(settings, variable.lower()) or ""):
            check_name(variable, name)
    return settings


def outdated() -> list[str]:
    """One line for each name in the environment or `.env` that is no setting any more, saying what to do instead."""
    given = {name.upper() for name in (*os.environ, *DotEnvSettingsSource(Settings).env_vars)}
    return [f"{name} is not a setting any more: {instead}" for name, instead in REPLACED.items() if name in given]


def _explain(error: dict[str, Any]) -> str:
    reason = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:  # of several variables at once, whose values it does not show
        return reason
    name = str(error["loc"][0])
    value = "(hidden)" if name in _SECRET else repr(error.get("input"))
    return f"{name.upper()}={value} is wrong: {reason}"


def is_url(name: str) -> bool:
    """Whether a candidate's name is the URL of a server that decodes, not of a hub."""
    return name.startswith(("http://", "https://"))


def looks_like_path(name: str) -> bool:
    """Whether a candidate's name can only mean a place on this machine."""
    return name.startswith(("/", "./", "../", "~")) or (
        name.endswith(".gguf") and not is_url(name) and ":" not in name and name.count("/") != 1
    )


def check_name(variable: str, name: str) -> None:
    """Raises SettingsError, with what to write, for a candidate's name that is meant well and names nothing."""
    _check_path(variable, name)
    if is_url(name) and "@" in name.split("/")[2]:
        raise SettingsError(f"{variable} is wrong: a URL there must hold no password. Set UPSTREAM_API_KEY instead")
    if name.strip("\"'") != name and not Path(name).exists():
        raise SettingsError(f"{variable}={name!r} is wrong: leave the quotes out")
    if found := _HUB_URL.fullmatch(name):
        if found["kind"]:
            raise SettingsError(f"{variable}={name!r} is wrong: that is a Space or a data set, not a checkpoint")
        told = (("@", found["revision"]), (":", found["file"]))
        meant = found["repo"] + "".join(mark + part for mark, part in told if part)
    elif "/" not in name and SequenceMatcher(None, name.lower(), "embedded").ratio() > 0.9 and name != "embedded":
        meant = "embedded"
    else:
        return
    if not Path(name).exists():
        raise SettingsError(f"{variable}={name!r} is wrong: write {variable}={meant}")


def _check_path(variable: str, name: str) -> None:
    path = Path(name).expanduser()
    if path.exists() or not looks_like_path(name):
        return
    folder = path.parent if path.parent.is_dir() else Path()
    near = sorted(entry.name for entry in folder.iterdir() if entry.suffix == ".gguf" or entry.is_dir())[:8]
    raise SettingsError(
        f"{variable}={name!r} is wrong: no such file or folder. Choose a hub repo (owner/name), a local folder, "
        f"a .gguf file, repo:file.gguf, or embedded. In {os.fspath(folder.resolve())} there is: "
        f"{', '.join(near) or 'nothing that fits'}"
    )
