"""bestofn worker: one engine a device, fed from the queue."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated

import typer

from bestofn.cli import options
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings, load_settings
from bestofn.service.host.packages import can_draw_here
from bestofn.service.telemetry import start, traces

if TYPE_CHECKING:
    from bestofn.service.engine.heat_engine import HeatEngine

EPILOG = """Examples:

`bestofn worker --redis-url redis://queue:6379 --devices all`

`bestofn worker --model Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers --devices cuda:0`
"""


def worker(
    devices: options.Devices = None,
    model: options.Model = None,
    judge: options.Judge = None,
    second_judge: options.SecondJudge = None,
    pairwise_judge: options.PairwiseJudge = None,
    redis_url: options.RedisUrl = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Candidates drawn together.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores if left out.")] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Of /metrics, /livez and /readyz; of several devices, one each."),
    ] = None,
) -> None:
    """Draw and judge the queue's jobs until SIGTERM or Ctrl-C. With several devices, one process each."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # until the worker has something to hand back
    given = {
        "model": model,
        "judge": judge,
        "second_judge": second_judge,
        "pairwise_judge": pairwise_judge,
        "redis_url": redis_url,
        "slots": slots,
        "threads": threads,
    }
    settings = load_settings(devices=devices, metrics_port=metrics_port, **given)
    start(settings, "worker")
    if not can_draw_here():
        raise SetupError("a worker needs its packages: pip install 'bestofn[worker]'")

    from bestofn.service.engine.loader import devices as found

    names = found(settings)
    if names != ["cpu"]:
        check_kernel_caches(os.environ)
    if len(names) == 1:
        from bestofn.service.engine.weights import missing_weights
        from bestofn.service.worker.worker import run_worker

        settings = settings.model_copy(update={"devices": names[0]})
        status = run_worker(settings, lambda: _engine(settings), lambda: missing_weights(settings))
        traces.flush()
        # All is handed back. The interpreter would look through half a million objects of torch and its kin before it
        # ends: seconds, and on a busy machine more than a supervisor waits.
        os._exit(status)

    from bestofn.service.worker.supervisor import supervise

    commands = device_commands(names, given, settings.metrics_port)
    # One heat can end `max_deliveries` workers and one more before its job fails.
    raise typer.Exit(supervise(commands, lost_after=settings.max_deliveries + 3))


def check_kernel_caches(environment: Mapping[str, str]) -> None:
    """Make the folders of compiled kernels, which the images put at /cache; without them the first job would fail.

    Raises:
        SetupError: a folder cannot be written.
    """
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        folder = environment.get(name)
        if folder is None:
            continue
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=folder).close()
        except OSError as error:
            fix = "mount a volume there that this user can write, or name another folder"
            raise SetupError(f"{name}={folder} cannot be written ({error.strerror}): {fix}") from error


def device_commands(
    devices: Sequence[str], options: Mapping[str, str | int | None], metrics_port: int | None
) -> list[list[str]]:
    """One worker a device, with the options given by name, and ports from `metrics_port` on (0: free ones)."""
    program = [sys.executable, "-P", "-m", "bestofn.cli", "worker"]
    flags = {f"--{name.replace('_', '-')}": str(value) for name, value in options.items() if value is not None}
    given = [part for flag in flags.items() for part in flag]
    ports: list[list[str]] = [[] for _ in devices]
    if metrics_port is not None:
        ports = [["--metrics-port", str(metrics_port + i if metrics_port else 0)] for i in range(len(devices))]
    return [[*program, "--devices", device, *given, *port] for device, port in zip(devices, ports, strict=True)]


def _engine(settings: Settings) -> "HeatEngine":
    """The engine of the settings, its device's memory among the metrics."""
    import torch

    from bestofn.service.engine.loader import load_engine
    from bestofn.service.telemetry.metrics import watch_device

    engine = load_engine(settings)
    device = engine.device
    if device.type == "cuda":
        watch_device(str(device), lambda: torch.cuda.mem_get_info(device), lambda: torch.cuda.memory_allocated(device))
    return engine
