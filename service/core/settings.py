"""The settings: one class, the only reader of the environment (BESTOFN_*, REDIS_URL, files in /run/secrets)."""

from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

SECRETS = Path("/run/secrets")


class Settings(BaseSettings):
    """Every knob of API, worker and command line, with its default. Times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(
        env_prefix="BESTOFN_", secrets_dir=SECRETS if SECRETS.is_dir() else None, extra="ignore", populate_by_name=True
    )

    # Queue
    redis_url: str | None = Field(
        None,
        validation_alias=AliasChoices("BESTOFN_REDIS_URL", "REDIS_URL"),
        description="The queue's server, such as redis://host:6379; that of `bestofn up` if unset.",
    )
    namespace: str = Field("bestofn", description="First word of every Redis key.")
    data_dir: Path = Field(
        Path("~/.local/share/bestofn").expanduser(),
        description="Embedded queue's files and address, and the API's keys.",
    )
    lease_seconds: float = Field(
        15.0, gt=0, description="A heat whose lease was not renewed for this long is taken over."
    )
    heartbeat_seconds: float = Field(3.0, gt=0, description="Leases are renewed and cards published this often.")
    stall_seconds: float = Field(
        60.0, gt=0, description="An engine that finishes nothing for this long stops its leases."
    )
    max_deliveries: int = Field(
        3, ge=1, description="So often a heat may fail, or take its worker with it, beside others; then it runs alone."
    )
    result_ttl_seconds: int = Field(3600, ge=1, description="Results and images are kept this long after a job's end.")
    max_queued_candidates: int = Field(65_536, ge=1, description="More waiting candidates than this are refused: 429.")
    max_queued_candidates_per_key: int | None = Field(
        None, ge=1, description="The same for each API key; none: no limit."
    )
    max_queued_tflops: float | None = Field(None, gt=0, description="More estimated work than this is refused: 429.")
    image_budget_bytes: int = Field(512 * 2**20, description="Winners' images that may stand in Redis together.")
    images_dir: Path | None = Field(
        None,
        description="A folder that API and workers share: winners' images are files there instead, without a budget.",
    )

    # HTTP
    host: str = Field("127.0.0.1", description="Address that the API listens on.")
    port: int = Field(8000, ge=0, le=65_535, description="Its port; 0 takes a free one.")
    published_host: str | None = Field(
        None, description="In a container: the host's address for `port`; `host` if unset."
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Names beside loopback's that a server without keys answers to."
    )
    keys_file: Path | None = Field(
        None, description="Names and hashes of the API's keys (`bestofn keys`); `keys` in the data folder if unset."
    )
    allow_unauthenticated: bool = Field(
        False, description="Serve other machines without keys, on a network that protects it."
    )
    max_wait_seconds: float = Field(120.0, gt=0, description="A waiting call is answered 202 after this long.")
    max_body_bytes: int = Field(64 * 1024, description="A longer body of a request is refused: 413.")

    # Client
    server: str | None = Field(None, description="Address of a server for the command line, such as http://host:8000.")
    api_key: str | None = Field(None, description="The key that the command line sends to it.")

    # Limits of a request
    max_samples: int = Field(4096, ge=1, description="Most candidates of a job.")
    max_steps: int = Field(100, ge=1, description="Most steps of a candidate.")
    max_guidance: float = Field(30.0, ge=0, description="Greatest guidance scale.")
    max_size: int = Field(4096, ge=32, description="Longest side; a model may allow less.")
    max_tflops: float | None = Field(None, description="Estimated work of one job above this is refused.")

    # Worker
    model: str = Field("shapes", description="shapes, a folder, or a hub name with @revision.")
    judge: str = Field("shapes", description="shapes, a folder, or a hub name with @revision.")
    second_judge: str | None = Field(
        None, description="As `judge`: another one, unlike it, that jobs with rule lower_bound ask too; none if unset."
    )
    calibration: Path | None = Field(
        None, description="The judge's calibration (`bestofn calibrate`); calibration.json beside its weights if unset."
    )
    second_calibration: Path | None = Field(None, description="The same of the second judge.")
    judge_max_tiles: int | None = Field(
        None,
        ge=1,
        description="Most tiles the judges cut a picture into; the published judge's 12 if unset. Drafts: 1.",
    )
    pairwise_judge: str | None = Field(
        None,
        description="Pairwise judge of `finals`: openai:<address>#<model>, such as openai:http://host:8000/v1#llava.",
    )
    pairwise_api_key: str | None = Field(None, description="The key that is sent to its server.")
    devices: str = Field("all", description="all, cpu, or a list such as cuda:0,cuda:1.")
    slots: int | None = Field(None, ge=1, description="Candidates denoised together; chosen for the device if unset.")
    reproducible: str | None = Field(None, pattern="^(strict|fast)$", description="strict pins one batch shape.")
    threads: int | None = Field(None, ge=1, description="CPU threads of a worker; all cores if unset.")
    fp8_drafts: bool = Field(
        False,
        description="Drafts with matrix products in 8 bits: a GPU from Ada or Hopper on. Another pair for the queue.",
    )
    cuda_graphs: bool = Field(True, description="On a GPU, record a forward once and replay it.")

    # Telemetry
    log: str | None = Field(None, pattern="^(json|text)$", description="JSON unless stderr is a terminal, if unset.")
    log_prompts: bool = Field(False, description="A submission's line has its prompt; otherwise 12 digits of its hash.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error.")
    metrics_port: int | None = Field(
        None, ge=0, le=65_535, description="A worker's port of /metrics, /livez and /readyz; none if unset."
    )
    metrics_host: str = Field("0.0.0.0", description="Address of that port.")
    metrics_without_key: bool = Field(False, description="The API answers /metrics without a key, where keys are set.")
    otel_endpoint: str | None = Field(
        None,
        validation_alias=AliasChoices("BESTOFN_OTEL_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="OTLP/HTTP collector of traces, such as http://collector:4318; no traces if unset.",
    )


def load_settings(**overrides: object) -> Settings:
    """The settings from the environment, with flags that were given on the command line on top (None: not given)."""
    return Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
