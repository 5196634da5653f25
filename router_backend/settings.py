"""Settings: the only reader of the environment (and of a `.env` file, below it)."""

import os
import re
from difflib import SequenceMatcher
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

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
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repo>[^/?#@]+/[^/?#@]+)"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[^/?#]+))?(?:[/?#].*)?"
)
_TOOL = re.compile(r"/[a-z][a-z0-9-]*")


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


def _blank_is_none(value: Any) -> Any:  # noqa: ANN401 - pydantic hands over whatever the environment holds
    return None if isinstance(value, str) and not value.strip() else value


OptionalStr = Annotated[str | None, BeforeValidator(_blank_is_none)]
OptionalBool = Annotated[bool | None, BeforeValidator(_blank_is_none)]


class Settings(BaseSettings):
    """Every variable that the backend reads, by its name in the environment (upper case)."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True)

    model_repo: OptionalStr = None
    model_fallbacks: OptionalStr = None
    model_owner: str = "Alovestocode"
    hf_token: SecretStr | None = None
    space_hf_token: SecretStr | None = Field(None, description="what `deploy` gives the Space as its HF_TOKEN")
    hf_endpoint: OptionalStr = None
    hf_hub_offline: bool = False
    model_load_strategy: OptionalStr = None
    load_in_8bit: OptionalBool = None
    load_in_4bit: OptionalBool = None
    model_load_strategies: str = ""
    model_device: Literal["auto", "cuda", "cpu"] = "auto"
    cuda_visible_devices: OptionalStr = None
    skip_warm_start: bool = False
    allow_warm_start_failure: bool = False
    engine: Annotated[Literal["echo"] | None, BeforeValidator(_blank_is_none)] = Field(
        None, description="an engine for tests and demos, which is never chosen by itself"
    )

    max_new_tokens: int = Field(600, ge=1, le=131_072)
    default_temperature: float = Field(0.2, ge=0, le=2, allow_inf_nan=False)
    default_top_p: float = Field(0.9, gt=0, le=1, allow_inf_nan=False)
    prompt_format: Literal["auto", "chat", "raw"] = "auto"
    router_tools: str = "/general-search,/math,/code"

    host: str = Field(default_factory=lambda: "0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1")  # noqa: S104
    port: int = Field(7860, ge=0, le=65535)
    router_api_keys: SecretStr | None = None
    public_paths: str = ""
    admin_key: SecretStr | None = Field(None, description="the key of /admin/reload")
    key_requests_per_minute: float = Field(0, ge=0, allow_inf_nan=False, description="for each key; 0: no limit")
    key_concurrency: int = Field(0, ge=0, description="requests of one key at once, waiting ones too; 0: no limit")
    allowed_hosts: str = Field("", description="names that the Host header may give; *: any")
    cors_origins: str = Field("", description="origins whose pages may read answers; *: any")
    frame_ancestors: str = Field(
        default_factory=lambda: (
            "'self' https://huggingface.co https://*.hf.space" if os.environ.get("SPACE_ID") else "'self'"
        ),
        description="who may show the pages in a frame, as in Content-Security-Policy",
    )
    max_body_bytes: int = Field(1_048_576, ge=1024)
    max_url_bytes: int = Field(8192, ge=256)
    max_header_bytes: int = Field(32_768, ge=1024, le=65_536)
    header_timeout: float = Field(10, gt=0, allow_inf_nan=False, description="seconds for a request's head")
    body_timeout: float = Field(30, gt=0, allow_inf_nan=False, description="seconds for a request's body")
    write_timeout: float = Field(30, gt=0, allow_inf_nan=False, description="seconds that a slow reader may block")
    log_format: Literal["auto", "human", "json"] = "auto"
    log_prompts: bool = False

    spaces_zero_gpu: bool = Field(False, description="set by the hub on a ZeroGPU Space")
    zerogpu_size: Literal["large", "xlarge"] = Field("large", description="the slice of a GPU that a request gets")
    zerogpu_memory: float | None = Field(None, gt=0, allow_inf_nan=False, description="its memory in GB, if another")

    slots: int = Field(4, ge=1, le=256, description="requests decoded at once")
    context_length: int = Field(4096, ge=256, le=1_048_576, description="tokens for prompt and answer of one request")
    threads: int = Field(0, ge=0, le=1024, description="threads of the CPU engine; 0: cores minus one")
    draft_tokens: int = Field(16, ge=0, le=64, description="tokens of a draft (transformers engine); 0: no drafts")
    prompt_lookup: bool = Field(True, description="draft out of the prompt and the answer so far")
    draft_history_bits: int = Field(
        21, ge=0, le=26, description="draft out of earlier answers, by a table of 2**bits n-grams, 9 bytes each; 0: no"
    )
    drafter: Annotated[Path | None, BeforeValidator(_blank_is_none)] = Field(
        None, description="a file that `router-backend drafter build` wrote: answers that the history begins with"
    )
    forced_tokens: bool = Field(True, description="write what the grammar forces without asking the model")
    prefix_cache: bool = Field(True, description="keep what a prompt begins with from one request to the next")
    queue_limit: int = Field(64, ge=0, le=100_000, description="requests that may wait for a slot")
    request_timeout: float = Field(300, gt=0, allow_inf_nan=False, description="seconds, waiting included")
    drain_timeout: float = Field(30, ge=0, allow_inf_nan=False)
    watchdog_timeout: float = Field(
        120,
        ge=0,
        allow_inf_nan=False,
        description="seconds without a sign of life after which an engine hangs; 0: never",
    )
    otel_exporter_otlp_endpoint: OptionalStr = Field(None, description="where traces go (extra otel)")
    otel_service_name: str = "router-backend"
    hub_timeout: float = Field(30, gt=0, allow_inf_nan=False)
    trust_remote_code: bool = False

    @model_validator(mode="before")
    @classmethod
    def _blank_is_unset(cls, values: dict[str, Any]) -> dict[str, Any]:
        stripped = {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}
        return {name: value for name, value in stripped.items() if value != ""}

    @field_validator("model_load_strategy")
    @classmethod
    def _strategy_is_known(cls, value: str | None) -> str | None:
        return None if value is None else parse_strategy(value)

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
        return value

    @model_validator(mode="after")
    def _admin_key_is_its_own(self) -> "Settings":
        if self.admin_key and self.admin_key.get_secret_value() in self.api_keys.values():
            raise ValueError("ADMIN_KEY must not be one of ROUTER_API_KEYS")
        return self

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_origins(cls, value: str) -> str:
        wrong = [each for each in split_list(value) if each != "*" and not re.fullmatch(r"https?://[^/\s]+", each)]
        if wrong:
            raise ValueError("give origins like https://app.example, without a path, or *")
        return value

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


_SECRET = {"hf_token", "space_hf_token", "router_api_keys", "admin_key"}


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
    for variable in ("MODEL_REPO", "MODEL_FALLBACKS"):
        for name in split_list(getattr(settings, variable.lower()) or ""):
            _check_name(variable, name)
            _check_path(variable, name)
    return settings


def _explain(error: dict[str, Any]) -> str:
    reason = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:  # of several variables at once, whose values it does not show
        return reason
    name = str(error["loc"][0])
    value = "(hidden)" if name in _SECRET else repr(error.get("input"))
    return f"{name.upper()}={value} is wrong: {reason}"


def looks_like_path(name: str) -> bool:
    """Whether a candidate's name can only mean a place on this machine."""
    return name.startswith(("/", "./", "../", "~")) or (
        name.endswith(".gguf") and ":" not in name and name.count("/") != 1
    )


def _check_name(variable: str, name: str) -> None:
    """Raises SettingsError for what is meant well and names nothing."""
    if found := _HUB_URL.fullmatch(name):
        meant = f"{found['repo']}{'@' + found['revision'] if found['revision'] else ''}"
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
