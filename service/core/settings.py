"""Settings: one class, the only reader of the environment (BESTOFN_*, REDIS_URL, files in /run/secrets)."""

import difflib
import json
import os
from collections.abc import Iterable
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from bestofn.service.core.errors import SetupError

SECRETS = Path("/run/secrets")
SIMILAR = 0.84  # ratio of a misspelt variable and its setting: above any two variables of docker-compose.yml

Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s*]+)$")]


def _absolute(path: Path) -> Path:
    """A path from the root: the queue's server, among others, has another working directory."""
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"{path} needs a home folder, which this user does not have: name another folder") from None


def _proxy(text: str) -> str:
    """An address or a network; uvicorn takes anything else for a name that no proxy has."""
    if text != "*":
        ip_network(text)
    return text


def _webhook_host(text: str) -> str:
    """A name, an address or a network, and no address of a page, which no host would equal."""
    if "/" in text:
        ip_network(text, strict=False)
    return text


LocalPath = Annotated[Path, AfterValidator(_absolute)]


class Settings(BaseSettings):
    """Every setting of API, worker and command line. Times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(
        env_prefix="BESTOFN_",
        env_ignore_empty=True,
        secrets_dir=SECRETS if SECRETS.is_dir() else None,
        extra="forbid",
        populate_by_name=True,
        allow_inf_nan=False,
    )

    # Queue
    redis_url: str | None = Field(
        None,
        validation_alias=AliasChoices("BESTOFN_REDIS_URL", "REDIS_URL"),
        description="Queue server, such as redis://host:6379; that of `bestofn up` if unset.",
    )
    namespace: str = Field("bestofn", description="Prefix of every Redis key.")
    data_dir: LocalPath = Field(
        Path(os.path.expanduser("~/.local/share/bestofn")),  # unchanged for a user without a home, unlike Path's
        validate_default=True,
        description="Folder of the embedded queue and of the API keys.",
    )
    lease_seconds: float = Field(
        15.0,
        ge=0.1,
        le=86_400,
        description="Lease of a heat: without a heartbeat for this long, another worker takes over.",
    )
    heartbeat_seconds: float = Field(
        3.0, gt=0, validate_default=True, description="Interval of the workers' heartbeats; at most half of a lease."
    )
    stall_seconds: float = Field(
        60.0, gt=0, description="An engine without progress for this long counts as stalled: its leases expire."
    )
    max_deliveries: int = Field(
        3, ge=1, description="Attempts with other work on the engine; one more runs isolated, then dead letter."
    )
    result_ttl_seconds: int = Field(
        3600, ge=1, le=10**9, description="Lifetime of results and images after a job's end."
    )
    max_queued_candidates: int = Field(
        65_536, ge=1, description="Maximum waiting candidates; submissions beyond it get 429."
    )
    max_queued_candidates_per_key: int | None = Field(
        None, ge=1, description="Maximum waiting candidates of each API key; its share of the other limit if unset."
    )
    max_queued_tflops: float | None = Field(
        None, gt=0, description="Maximum estimated work that waits; submissions beyond it get 429."
    )
    image_budget_bytes: int = Field(
        512 * 2**20, ge=1, description="Maximum bytes of winner images in Redis; submissions beyond it get 429."
    )
    images_dir: LocalPath | None = Field(
        None,
        description="Folder shared by API and workers for winner images, in place of Redis and without a budget.",
    )

    # HTTP
    host: str = Field("127.0.0.1", description="Address that the API listens on.")
    port: int = Field(8000, ge=0, le=65_535, description="Port of the API; 0: any free port.")
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^/?#\s]+(/[^?#\s]*[^/?#\s])?$",
        description="Address that callers use, such as https://example.net/bestofn; addresses in answers begin with "
        "it, and are relative if unset.",
    )
    trusted_proxies: tuple[Annotated[str, AfterValidator(_proxy)], ...] = Field(
        ("127.0.0.1", "::1"),
        description="Addresses or networks of proxies whose X-Forwarded-Proto and X-Forwarded-For are believed.",
    )
    published_host: str | None = Field(
        None, description="In a container: the host's address that publishes `port`; `host` if unset."
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Host names, in addition to loopback names, that a server without keys answers to."
    )
    keys_file: LocalPath | None = Field(
        None, description="File of API keys (`bestofn keys`); `keys` in the data folder if unset."
    )
    allow_unauthenticated: bool = Field(
        False, description="Serve other machines without API keys, on a protected network."
    )
    max_wait_seconds: float = Field(
        25.0, gt=0, description="A waiting call gets 202 after this long: less than proxies wait, often 30 or 60 s."
    )
    max_open_calls_per_key: int = Field(
        256, ge=1, description="Maximum waiting calls and event streams of each API key; more get 429."
    )
    max_connections: int = Field(
        4096,
        ge=32,
        description="Maximum connections of an API process; fewer if it may open fewer files. A new one replaces the "
        "connection that has been idle the longest.",
    )
    max_body_bytes: int = Field(64 * 1024, ge=1024, description="Maximum body of a request; longer ones get 413.")
    cors_origins: tuple[Origin, ...] = Field(
        (),
        description="Origins of other sites whose pages may call the API, such as https://example.net; `*`: all. None "
        "if unset.",
    )

    # OpenAI's API
    model_aliases: dict[str, str] = Field(
        {},
        description='Further names of deployed models under /v1, such as {"gpt-image-1": "shapes", "dall-e-3": '
        '"shapes"}.',
    )
    response_format: Literal["b64_json", "url"] = Field(
        "b64_json", description="Default of `response_format` under /v1: b64_json or url."
    )

    # Webhooks
    webhook_secret: str | None = Field(
        None,
        pattern=r"^(whsec_([A-Za-z0-9+/]{4}){8,20}([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)?$",
        description="Secret that signs webhooks: `whsec_` and 24 to 64 bytes in base64. Without it jobs with a "
        "webhook are refused.",
    )
    webhook_hosts: tuple[Annotated[str, AfterValidator(_webhook_host)], ...] = Field(
        (),
        description="Host names, addresses or networks that webhooks may reach by http or inside the network; others "
        "are reached by https and at public addresses only.",
    )

    # Client
    server: str | None = Field(None, description="Server for the command line, such as http://host:8000.")
    api_key: str | None = Field(None, description="API key that the command line sends.")

    # Limits of a request
    max_samples: int = Field(4096, ge=1, description="Maximum candidates of a job.")
    max_steps: int = Field(100, ge=1, description="Maximum denoising steps of a candidate.")
    max_guidance: float = Field(30.0, ge=0, description="Maximum guidance scale.")
    max_size: int = Field(4096, ge=32, description="Maximum side in pixels; a model may allow less.")
    max_tflops: float | None = Field(None, gt=0, description="Maximum estimated work of one job, in TFLOP.")

    # Worker
    model: str = Field("shapes", description="shapes, a folder, or a hub name with @revision.")
    lora: str = Field(
        "",
        description="LoRAs of the model, by commas: files, folders or hub names with @revision, each with =strength.",
    )
    judge: str = Field(
        "shapes",
        description="shapes, a folder, or a hub name with @revision, of NVILA; of others after vlm: or clip:. Or an "
        "address: openai:<address>#<model>, http://<host>/score. `A + 0.5*B` is a weighted mean of judges.",
    )
    judge_api_key: str | None = Field(None, description="API key of the server of a judge that is an address.")
    second_judge: str | None = Field(
        None, description="Second judge for jobs with rule lower_bound, named as `judge`; none if unset."
    )
    calibration: LocalPath | None = Field(
        None,
        description="Calibration file of the judge (`bestofn calibrate`); calibration.json in its folder if unset.",
    )
    second_calibration: LocalPath | None = Field(None, description="Calibration file of the second judge.")
    judge_max_tiles: int | None = Field(
        None,
        ge=1,
        description="Maximum tiles of an image for the judges; the published judge's 12 if unset. Drafts: 1.",
    )
    pairwise_judge: str | None = Field(
        None,
        description="Pairwise judge of finals: openai:<address>#<model>, such as openai:http://host:8000/v1#llava.",
    )
    pairwise_api_key: str | None = Field(None, description="API key of the pairwise judge's server.")
    prompt_checker: str | None = Field(
        None,
        pattern="^(https?://.*)?$",
        description="Address of the prompt checker, such as http://host:8002/check; prompts are not checked if unset.",
    )
    image_checker: str | None = Field(
        None,
        description="Image checker: a folder or a hub name with @revision of an image classifier or ShieldGemma-2, or "
        "an address. Images are not checked if unset. Changes the judge's revision.",
    )
    checker_api_key: str | None = Field(None, description="API key of the checkers' servers.")
    devices: str = Field(
        "all",
        description="all (the CPU where no GPU is), cuda (every GPU, or an error), cpu, or a list: cuda:0,cuda:1.",
    )
    slots: int | None = Field(None, ge=1, description="Candidates denoised together; chosen for the device if unset.")
    reproducible: Literal["strict", "fast"] | None = Field(
        None, description="strict pins one batch shape; fast on a CPU draws in bfloat16."
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of a worker; all cores if unset.")
    fp8_drafts: bool = Field(
        False,
        description="Drafts with FP8 matrix products, on GPUs from Ada or Hopper on. Changes the model's revision.",
    )
    cuda_graphs: bool = Field(True, description="Record CUDA graphs of the transformer's forward, on a GPU.")

    c2pa_certificate: LocalPath | None = Field(
        None, description="PEM chain with which winners are signed (C2PA); not signed if unset."
    )
    c2pa_key: LocalPath | None = Field(None, description="PEM private key of that certificate.")

    # Telemetry
    log_format: Literal["json", "text"] | None = Field(
        None, description="Log format; if unset, JSON unless stderr is a terminal."
    )
    log_prompts: bool = Field(False, description="Log prompts; otherwise 12 digits of their hash.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error."
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65_535, description="Port of a worker's /metrics, /livez and /readyz; none if unset."
    )
    metrics_host: str = Field("0.0.0.0", description="Address of the worker's metrics port.")
    metrics_without_key: bool = Field(False, description="Answer the API's /metrics without a key.")
    otel_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s]+$",
        validation_alias=AliasChoices("BESTOFN_OTEL_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="OTLP/HTTP collector of traces, such as http://collector:4318; no traces if unset.",
    )

    @field_validator("heartbeat_seconds")
    @classmethod
    def _several_a_lease(cls, seconds: float, known: ValidationInfo) -> float:
        lease = known.data.get("lease_seconds")
        if lease is not None and 2 * seconds > lease:
            raise ValueError(
                f"{seconds:g} s is more than half of the lease ({lease:g} s), so that healthy workers would lose their "
                "heats: lower it, or raise BESTOFN_LEASE_SECONDS"
            )
        return seconds


def local_url(host: str, port: int) -> str:
    """The address of an API that listens on `host`, as seen from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment, overridden by command line flags; None: the flag was not given.

    Raises:
        SetupError: a list or a table is not JSON.
        ValidationError: a value is out of its limits.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except SettingsError as error:
        name = next((name for name in Settings.model_fields if f'"{name}"' in str(error)), "")
        if not name:
            raise
        example = json.dumps({"name": "value"} if name == "model_aliases" else ["one", "two"])
        raise SetupError(f"setting {variable_of(name)} is not JSON, such as {example}") from error


def variable_of(name: str) -> str:
    """The environment variable of a setting, by the name of its field."""
    return f"BESTOFN_{name.upper()}" if name in Settings.model_fields else name


def misspelt(variables: Iterable[str] | None = None) -> dict[str, str]:
    """Variables that are no setting, each with the setting that it seems to mean.

    Others are left out, since docker-compose.yml has BESTOFN_* variables of its own and containers get all of .env.

    Args:
        variables: names; None: the environment's.
    """
    prefix, settings = "BESTOFN_", [name.upper() for name in Settings.model_fields]
    found = {}
    for variable in os.environ if variables is None else variables:
        name = variable.upper().removeprefix(prefix)
        if variable.upper().startswith(prefix) and name not in settings:
            for meant in difflib.get_close_matches(name, settings, 1, SIMILAR):
                found[variable] = prefix + meant
    return found
