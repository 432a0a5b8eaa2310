"""What docker-compose.yml says of one service, its variables filled in and its image's own configuration beneath."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Service:
    """One service as it is to be run. `secrets` and `configs`: path in the container -> file."""

    name: str
    command: list[str]
    environment: dict[str, str]
    user: str
    read_only: bool
    temporary: list[str]
    volumes: dict[str, tuple[str, bool]]  # path in the container -> volume or folder, read-only
    secrets: dict[str, Path]
    configs: dict[str, Path]
    health: list[str]


def fill_in(value: Any, variables: Mapping[str, str]) -> Any:
    """Replaces ${NAME:-default} in all strings, as compose does."""
    if isinstance(value, dict):
        return {key: fill_in(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [fill_in(inner, variables) for inner in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1]) or found[2], value)
    return value


def read(name: str, image: Mapping[str, Any], variables: Mapping[str, str], extra: Mapping[str, str]) -> Service:
    """A service of docker-compose.yml.

    Args:
        name: of the service.
        image: its image's configuration (Env, Entrypoint).
        variables: what .env would hold.
        extra: environment that the test adds.
    """
    compose = fill_in(yaml.safe_load((ROOT / "docker-compose.yml").read_text()), variables)
    service = compose["services"][name]
    test = (service.get("healthcheck") or {}).get("test", [])
    files = {secret: ROOT / compose["secrets"][secret]["file"] for secret in service.get("secrets", [])}
    volumes = {}
    for line in service.get("volumes", []):
        if isinstance(line, dict):
            volume, path, mode = line["source"], line["target"], ["ro"] if line.get("read_only") else []
        else:
            volume, path, *mode = line.split(":")
        if volume.startswith((".", "/")):  # a folder of the host
            volume = str(ROOT / volume)
        volumes[path] = (volume, mode == ["ro"])
    return Service(
        name=name,
        command=[*(image.get("Entrypoint") or []), *service["command"]],
        environment={
            **dict(line.split("=", 1) for line in image.get("Env") or []),
            **{key: str(value) for key, value in service.get("environment", {}).items()},
            **extra,
        },
        user=service["user"],
        read_only=service["read_only"],
        temporary=[line.partition(":")[0] for line in service["tmpfs"]],
        volumes=volumes,
        secrets={f"/run/secrets/{secret}": file for secret, file in files.items()},
        configs={c["target"]: ROOT / compose["configs"][c["source"]]["file"] for c in service.get("configs", [])},
        health=[] if not test else ["sh", "-c", test[1]] if test[0] == "CMD-SHELL" else test[1:],
    )
