"""The deployment's files agree with each other and with the settings; weights come from a hub as workers need them."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml

from bestofn.service.api.access import check_binding
from bestofn.service.api.api_keys import Keyring
from bestofn.service.api.key_file import new_key
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings, misspelt
from tests.hub import COMMIT, hub
from tests.judge.tiny_models import make_vit, make_vlm

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] not in ("root", "0", "0:0")
    assert service["profiles"], "a service without a profile would start everywhere"
    assert "mem_limit" in service
    assert service["logging"]["options"]["max-size"]


def test_the_queue_is_private_and_loses_nothing() -> None:
    redis = SERVICES["redis"]
    assert "ports" not in redis
    assert redis["networks"] == ["queue"]
    assert COMPOSE["networks"]["queue"]["internal"] is True
    command = " ".join(redis["command"])
    for option in ("--appendonly yes", "--maxmemory-policy noeviction", "--aclfile /run/secrets/redis_acl"):
        assert option in command
    assert all(port.startswith("${") or port.startswith("127.0.0.1:") for port in ports())


def default(text: str) -> str:
    """With each ${NAME:-default} replaced by its default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def ports() -> list[str]:
    return [port for service in SERVICES.values() for port in service.get("ports", [])]


def test_nothing_is_published_beyond_this_machine_unless_a_variable_says_so() -> None:
    assert {default(port).partition(":")[0] for port in ports()} == {"127.0.0.1"}


def test_one_command_works_without_preparation() -> None:
    """The default secrets are in the repository, and every variable has a default."""
    text = (ROOT / "docker-compose.yml").read_text()
    assert set(re.findall(r"\$\{\w+(.{2})", text)) == {":-"}
    cpu = [service for service in SERVICES.values() if "cpu" in service["profiles"]]
    volumes = [volume for service in cpu for volume in service.get("volumes", [])]
    for folder in (default(v["source"]) if isinstance(v, dict) else v.split(":")[0] for v in volumes):
        assert not folder.startswith(".") or (ROOT / folder).is_dir(), f"{folder} is missing"
    for secret in {secret for service in cpu for secret in service.get("secrets", [])}:
        path = default(COMPOSE["secrets"][secret]["file"])
        assert (ROOT / path).is_file(), f"{path} is missing"


def test_plain_commands_see_the_same_services() -> None:
    """`down`, `logs` and `restart` know profiles from .env alone: no page starts services with a flag."""
    assert "\nCOMPOSE_PROFILES=cpu\n" in (ROOT / ".env.example").read_text()
    pages = [ROOT / "README.md", ROOT / "docker-compose.yml", *(ROOT / "docs").rglob("*.md")]
    assert not [page.name for page in pages if "compose --profile" in page.read_text()]


def test_no_service_waits_for_another_to_end() -> None:
    """An `up` that is interrupted while it waits leaves a container that nothing starts later."""
    waits = [on for service in SERVICES.values() for on in dict(service.get("depends_on", {})).values()]
    assert {on["condition"] for on in waits} == {"service_healthy", "service_started"}
    assert SERVICES["worker"]["depends_on"] == {"weights": {"condition": "service_started"}}
    assert SERVICES["worker"]["environment"]["HF_HUB_OFFLINE"] == "1", "only an offline worker waits for its weights"


def test_images_are_built_and_not_asked_for_at_a_registry() -> None:
    assert {service["pull_policy"] for service in SERVICES.values() if "build" in service} == {"never"}


def test_images_get_every_package() -> None:
    """The image's context is a list of folders: one that is missing is missing in the image alone."""
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    packages = {path.name for path in (ROOT / "src" / "bestofn").iterdir() if path.is_symlink()}
    assert {name for name in packages if f"!{name}" not in allowed} == set()


def test_variables_can_be_listed() -> None:
    """`docker compose config --variables` splits a volume's short form at the colon of a default."""
    assert not [v for service in SERVICES.values() for v in service.get("volumes", []) if "${" in v]


def test_health_checks_say_when_a_service_is_of_use() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    for name in ("worker", "worker-cpu"):
        health = SERVICES[name]["healthcheck"]
        assert "/readyz" in health["test"][-1]
        assert health["test"][-1].replace("\n", "") in dockerfile
        assert f"--interval={health['interval']} --timeout=5s --start-period={health['start_period']}" in dockerfile
    door = SERVICES["redis-tls"]
    assert door["stop_signal"] == "SIGTERM"
    address, _, path = door["healthcheck"]["test"][-1].removeprefix("http://").partition("/")
    config = (ROOT / "docker" / "redis-tls.cfg").read_text()
    assert f"bind {address}\n" in config
    assert f"monitor-uri /{path}\n" in config


def test_health_checks_ask_no_proxy() -> None:
    """A host's `http_proxy` reaches the containers, and BusyBox' wget knows no `no_proxy`."""
    checks = [service.get("healthcheck", {}).get("test", []) for service in SERVICES.values()]
    assert [test for test in checks if "wget" in test and test[1:4] != ["wget", "-Y", "off"]] == []


def test_each_kind_of_worker_has_the_names_that_prometheus_looks_up() -> None:
    """A name that nobody has is a warning in its log, every time."""
    jobs = yaml.safe_load((ROOT / "docker" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    wanted = {name for job in jobs for found in job.get("dns_sd_configs", []) for name in found["names"]}
    for service in ("worker", "worker-cpu"):
        aliases = dict(SERVICES[service]["networks"])["queue"]["aliases"] if service != "worker" else []
        assert wanted == {"worker"} <= {service, *aliases}


def test_every_variable_is_explained() -> None:
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert not misspelt(used)
    explained = set(re.findall(r"^#?(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert used <= explained
    assert explained - used == {"COMPOSE_PROFILES"}


def test_healthchecks_take_no_proxy() -> None:
    commands = re.findall(r"^    CMD (\[\"python\".*\])$", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    assert len(commands) == 2
    assert {json.loads(command)[-1] for command in commands} == {
        SERVICES[name]["healthcheck"]["test"][-1] for name in ("api", "worker")
    }
    proxy = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for command in commands:
            here = re.sub(r"127.0.0.1:\d+/\w+", f"127.0.0.1:{server.server_port}/", command)
            _, *arguments = json.loads(here)
            subprocess.run([sys.executable, *arguments], env=proxy, check=True)
        server.shutdown()


def test_environment_names_settings() -> None:
    for service in SERVICES.values():
        for name in service.get("environment", {}):
            if name.startswith("BESTOFN_"):
                assert name.removeprefix("BESTOFN_").lower() in Settings.model_fields


def test_a_published_port_decides_whether_keys_are_needed(tmp_path: Path) -> None:
    inside = {"host": "0.0.0.0", "data_dir": tmp_path}
    check_binding(Settings(**inside, published_host="127.0.0.1"))
    with pytest.raises(SetupError, match=r"could call the server on 10\.0\.0\.1 without a key"):
        check_binding(Settings(**inside, published_host="10.0.0.1"))
    (tmp_path / "keys").write_text(f"ali {'0' * 64}\n")
    check_binding(Settings(**inside, published_host="10.0.0.1"))


def test_kubernetes_runs_what_compose_runs() -> None:
    folder = ROOT / "docker" / "kubernetes"
    about = {path.name: list(yaml.safe_load_all(path.read_text())) for path in folder.glob("*.yaml")}
    (kustomization,) = about["kustomization.yaml"]
    apart = {"kustomization.yaml", "keda.yaml", "monitors.yaml", "ingress.yaml"}
    assert {*kustomization["resources"], *apart} == set(about)
    pod = about["redis.yaml"][1]["spec"]["template"]["spec"]
    as_user = pod["securityContext"]
    assert SERVICES["redis"]["user"] == f"{as_user['runAsUser']}:{as_user['runAsGroup']}"  # Valkey's image has no redis
    (redis,) = pod["containers"]
    assert redis["command"] == [default(part) for part in SERVICES["redis"]["command"]]
    assert redis["image"] == default(SERVICES["redis"]["image"])
    worker = default(SERVICES["worker"]["environment"]["BESTOFN_MODEL"])
    assert f"BESTOFN_MODEL={worker}" in kustomization["configMapGenerator"][0]["literals"]
    secrets = {path.removeprefix("secrets/") for path in kustomization["secretGenerator"][0]["files"]}
    named = {secret for name in ("redis", "api", "worker", "weights") for secret in SERVICES[name]["secrets"]}
    assert secrets == named - {"queue_ca"}
    for name, manifest in (("worker", about["worker.yaml"][0]), ("weights", about["weights.yaml"][1])):
        pod = manifest["spec"]["template"]["spec"]
        assert [*pod.get("initContainers", []), *pod["containers"]][0]["args"] == SERVICES[name]["command"]
        (mounted,) = (volume["secret"] for volume in pod["volumes"] if "secret" in volume)
        assert {item["path"] for item in mounted["items"]} == set(SERVICES[name]["secrets"]) - {"queue_ca"}
        assert {item["key"] for item in mounted["items"]} <= secrets


def test_kubernetes_has_the_alerts_of_prometheus() -> None:
    printed = subprocess.run([ROOT / "docker" / "kubernetes" / "prometheus-rule"], check=True, capture_output=True)
    alerts = yaml.safe_load((ROOT / "docker" / "prometheus" / "alerts.yml").read_text())
    assert yaml.safe_load(printed.stdout)["spec"] == alerts


def test_kubernetes_services_name_the_protocol_of_each_port() -> None:
    """Server-side apply of Kubernetes 1.20 has no default for it, which is part of a port's key."""
    folder = ROOT / "docker" / "kubernetes"
    manifests = [one for path in folder.glob("*.yaml") for one in yaml.safe_load_all(path.read_text()) if one]
    services = [one for one in manifests if one["kind"] == "Service"]
    assert {port["protocol"] for one in services for port in one["spec"]["ports"]} == {"TCP"}


def test_nothing_of_kubernetes_is_immutable_or_open() -> None:
    """A later `kubectl apply` may change every pod, and the policy that denies all names every pod."""
    folder = ROOT / "docker" / "kubernetes"
    manifests = [one for path in folder.glob("[!k]*.yaml") for one in yaml.safe_load_all(path.read_text())]
    assert "Job" not in {one["kind"] for one in manifests}
    pods = [one["spec"]["template"] for one in manifests if one["kind"] in ("Deployment", "StatefulSet")]
    (nothing,) = (one["spec"] for one in manifests if one["metadata"].get("name") == "nothing")
    named = {pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in pods}
    assert set(nothing["podSelector"]["matchExpressions"][0]["values"]) == named
    for pod in pods:
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            assert container["imagePullPolicy"]
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="docker/make-secrets needs openssl")
def test_secrets_are_made_once_and_read_by_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "BESTOFN_REDIS_URL", "BESTOFN_PAIRWISE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "secrets"
    make = [str(ROOT / "docker" / "make-secrets"), str(folder), "queue.example.net"]
    told = subprocess.run(make, check=True, capture_output=True, text=True).stdout
    before = {path: path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert subprocess.run(make, check=True, capture_output=True).stdout == b""
    assert {path: path.read_text() for path in folder.rglob("*") if path.is_file()} == before

    edge = Settings(_secrets_dir=folder)
    assert edge.redis_url is not None
    keyring = Keyring(Settings(data_dir=folder / "api"))
    first = told.split()[-1]
    assert len(first) == len(new_key("ali")[0])
    assert keyring.caller(first) == "first"
    assert keyring.caller((folder / "prometheus_key").read_text().strip()) == "prometheus"
    assert not any(first in text for text in before.values())
    for server in ("judge", "pairwise", "checker"):
        (folder / "gpu-host" / f"bestofn_{server}_api_key").write_text(f"key of {server}\n")
    gpu_host = Settings(_secrets_dir=folder / "gpu-host")
    remote = gpu_host.redis_url or ""
    keys = [(one.judge_api_key, one.pairwise_api_key, one.checker_api_key) for one in (edge, gpu_host)]
    assert keys == [("", "", ""), ("key of judge", "key of pairwise", "key of checker")]
    assert edge.webhook_secret is not None
    assert edge.webhook_secret.startswith("whsec_")
    assert not Settings(_secrets_dir=ROOT / "docker" / "secrets" / "none").webhook_secret
    password = edge.redis_url.removeprefix("redis://bestofn:").removesuffix("@redis:6379/0")
    assert remote == f"rediss://bestofn:{password}@queue.example.net:6380/0?ssl_ca_certs=/run/secrets/queue_ca"
    ipv6 = tmp_path / "ipv6"
    subprocess.run([make[0], str(ipv6), "fd00::1"], check=True, capture_output=True)
    assert "@[fd00::1]:6380/0?" in (ipv6 / "gpu-host" / "bestofn_redis_url").read_text()
    named = ["openssl", "x509", "-noout", "-checkip", "fd00::1", "-in", str(ipv6 / "gpu-host" / "queue_ca")]
    assert "does match" in subprocess.run(named, check=True, capture_output=True, text=True).stdout
    assert folder.stat().st_mode & 0o077 == (folder / "gpu-host").stat().st_mode & 0o077 == 0
    assert {path.name for path in folder.iterdir() if path.is_file()} == set(COMPOSE["secrets"])
    asked = {secret for name in ("worker", "weights") for secret in SERVICES[name]["secrets"]}
    assert {path.name for path in (folder / "gpu-host").iterdir()} == asked


def test_weights_that_workers_would_refuse_are_named_after_their_download(tmp_path: Path) -> None:
    judge = shutil.copytree(ROOT / "judge" / "weights" / "shapes", tmp_path / "judge")
    (judge / "mm_projector" / "config.json").write_text('{"mm_projector_type": "linear"}')
    name = "Efficient-Large-Model/NVILA-test"
    command = [sys.executable, "-P", "-m", "bestofn.cli", *SERVICES["weights"]["command"], name]
    with hub({name: judge}) as address:
        env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, f"{name}@{COMMIT}\n")
    assert "workers would refuse it: mm_projector: mm_projector_type linear" in done.stderr


def test_weights_are_fetched_with_their_licences_and_found_again_without_a_network(tmp_path: Path) -> None:
    model, judge = (f"Efficient-Large-Model/{name}-test" for name in ("SANA", "NVILA"))
    second = "vlm:owner/looker"
    weights = {judge: ROOT / "judge" / "weights" / "shapes", model: ROOT / "models" / "weights" / "shapes"}
    weights["owner/looker"] = make_vlm("paligemma", tmp_path / "looker")
    weights["owner/nsfw"] = make_vit(tmp_path / "nsfw", (0.0, 0.0))
    named = {"BESTOFN_MODEL": f"{model}@main", "BESTOFN_JUDGE": judge, "BESTOFN_SECOND_JUDGE": second}
    named["BESTOFN_IMAGE_CHECKER"] = "owner/nsfw"
    assert named.keys() <= SERVICES["weights"]["environment"].keys()
    command = [sys.executable, "-P", "-m", "bestofn.cli", *SERVICES["weights"]["command"]]

    def download(address: str, *names: str, **more: str) -> "subprocess.CompletedProcess[str]":
        env = {**os.environ, **named, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        env |= more
        return subprocess.run([*command, *names], env=env, check=True, capture_output=True, text=True)

    with hub(weights) as address:
        first = download(address)
    assert first.stdout.split() == [f"{name}@{COMMIT}" for name in (model, judge, second, "vlm:owner/nsfw")]
    assert "owner/looker: its licence is not known" in first.stderr
    assert first.stderr.index("Gemma Terms of Use") < first.stderr.index("GiB to fetch")
    again = download(address, BESTOFN_SECOND_JUDGE="", BESTOFN_IMAGE_CHECKER="")
    assert again.stdout.split() == first.stdout.split()[:2]
    assert "stays in use" in again.stderr
    assert download(address, f"{judge}@{COMMIT}", "shapes").stdout.split() == [f"{judge}@{COMMIT}", "shapes"]
