"""Proxies that end TLS in front of the API, as docs/operate/deployment.md configures them."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bestofn.service.core.settings import Settings
from tests.service.queue.test_failover import free_ports
from tests.waiting import PATIENCE, until

PAGE = Path(__file__).parents[3] / "docs" / "operate" / "deployment.md"
NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/log;
events {{}}
http {{
    access_log off; client_body_buffer_size 1m; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl; ssl_certificate {folder}/certificate; ssl_certificate_key {folder}/key;
        {location}
    }}
}}
"""
APACHE = """
ServerName localhost
PidFile {folder}/pid
ErrorLog {folder}/log
Mutex sem
User nobody
Group nogroup
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule ssl_module /usr/lib/apache2/modules/mod_ssl.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
LoadModule headers_module /usr/lib/apache2/modules/mod_headers.so
Listen 127.0.0.1:{port}
SSLEngine on
SSLCertificateFile {folder}/certificate
SSLCertificateKeyFile {folder}/key
{location}
"""
HAPROXY = """
defaults
    mode http
    timeout connect 60s
    timeout client 50s
frontend tls
    bind 127.0.0.1:{port} ssl crt {folder}/both
    default_backend api
backend api
{location}
"""
CADDY = """
{{
    admin off
    auto_https off
}}
https://localhost:{port} {{
    tls {folder}/certificate {folder}/key
    {location}
}}
"""
ENVOY = """
static_resources:
  clusters:
  - name: api
    load_assignment:
      cluster_name: api
      endpoints:
      - lb_endpoints: [endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}]
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_certificates:
            - certificate_chain: {{filename: {folder}/certificate}}
              private_key: {{filename: {folder}/key}}
      filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          http_filters:
          - name: router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
{location}
"""
Serving = Callable[[Settings], AbstractContextManager[Any]]


def documented(proxy: str) -> str:
    """The configuration of the documentation."""
    fence = "yaml" if proxy == "envoy" else proxy
    pattern = r"`(handle_path .*?)`" if proxy == "caddy" else rf"```{fence}\n(.*?)```"
    found = re.search(pattern, PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1].replace("{ reverse_proxy", "{\n reverse_proxy").replace(":8000 }", ":8000\n}")


def answers(http: httpx.Client) -> bool:
    try:
        return http.get("/livez").is_success
    except httpx.TransportError:
        return False


def program_of(proxy: str) -> str:
    if (found := shutil.which(proxy, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin")) is None:
        pytest.skip(f"no {proxy} here")
    return found


@pytest.fixture(params=["nginx", "apache", "haproxy", "caddy", "envoy"])
def proxied(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[int, str], httpx.Client]]:
    """A client of a proxy: `proxied(port, "http://127.0.0.1:1")` listens on the port for that upstream."""
    proxy = request.param
    program = program_of("apache2" if proxy == "apache" else proxy)
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["-nodes", "-keyout", tmp_path / "key", "-out", tmp_path / "certificate"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", *subject, *made],
        check=True,
        capture_output=True,
    )
    (tmp_path / "both").write_text("".join((tmp_path / name).read_text() for name in ("certificate", "key")))
    running: list[Any] = []

    def start(port: int, upstream: str) -> httpx.Client:
        location = documented(proxy).replace("127.0.0.1:8000", upstream.removeprefix("http://"))
        location = textwrap.indent(location, " " * 10)
        config = tmp_path / "config"
        template = {"nginx": NGINX, "apache": APACHE, "haproxy": HAPROXY, "caddy": CADDY, "envoy": ENVOY}[proxy]
        upstream_port = upstream.rpartition(":")[2]
        config.write_text(template.format(folder=tmp_path, port=port, upstream=upstream_port, location=location))
        options = {
            "nginx": ["-p", str(tmp_path), "-e", str(tmp_path / "log"), "-c", str(config)],
            "apache": ["-DFOREGROUND", "-d", str(tmp_path), "-f", str(config)],
            "haproxy": ["-db", "-f", str(config)],
            "caddy": ["run", "--adapter", "caddyfile", "--config", str(config)],
            "envoy": ["--disable-hot-restart", "--concurrency", "1", "--config-yaml", config.read_text()],
        }[proxy]
        with (tmp_path / "out").open("wb") as out:
            folders = {"XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
            running.append(subprocess.Popen([program, *options], stdout=out, stderr=out, env=os.environ | folders))
        trust = ssl.create_default_context(cafile=str(tmp_path / "certificate"))
        running.append(
            http := httpx.Client(base_url=f"https://localhost:{port}/bestofn", verify=trust, timeout=PATIENCE)
        )

        def ready() -> bool:
            assert running[0].poll() is None, (tmp_path / "out").read_text()
            return answers(http)

        until(ready)
        return http

    yield start
    process, http = running
    http.close()
    process.terminate()
    process.wait()


def test_documented_proxy_keeps_addresses_and_streams(
    served: Any, serving: Serving, proxied: Callable[[int, str], httpx.Client]
) -> None:
    (port,) = free_ports(1)
    base = f"https://localhost:{port}/bestofn"
    with serving(served.settings.model_copy(update={"public_url": base})) as api:
        http = proxied(port, api.url)
        answer = http.post(
            "/generate", json={"prompt": "p", "num_samples": 4}, headers={"Origin": f"https://localhost:{port}"}
        )
        job = answer.json()
        assert answer.headers["location"] == f"{base}/jobs/{job['id']}"
        assert http.get(job["images"][0]["url"]).headers["content-type"] == "image/png"
        theirs = http.post("/v1/images/generations", json={"prompt": "p", "response_format": "url"}).json()
        assert http.get(theirs["data"][0]["url"]).headers["content-type"] == "image/png"
        assert http.get("/openapi.json").json()["servers"] == [{"url": base}]
        assert [http.get(path).status_code for path in ("/", "/docs")] == [200, 200]
        body = {"prompt": "p", "num_samples": 4096, "num_inference_steps": 100}
        with http.stream("POST", "/generate", json=body, headers={"Accept": "text/event-stream"}) as stream:
            assert next(stream.iter_lines())  # long before the end of the job
            place = stream.headers["location"]
            assert http.get(place).json()["status"] in ("queued", "running")
        assert http.delete(place).json()["status"] == "canceled"


def test_trusted_proxy_says_how_callers_reach_it(
    served: Any, serving: Serving, proxied: Callable[[int, str], httpx.Client]
) -> None:
    (port,) = free_ports(1)
    with serving(served.settings.model_copy(update={"allowed_hosts": ["localhost"]})) as api:
        http = proxied(port, api.url)
        body, theirs = {"prompt": "p", "response_format": "url"}, {"X-Forwarded-Proto": "http"}
        answer = http.post("/v1/images/generations", json=body, headers=theirs).json()
        assert answer["data"][0]["url"].startswith("https://localhost")


def test_documented_proxy_passes_on_a_refusal_before_the_body(
    idle: Settings, serving: Serving, proxied: Callable[[int, str], httpx.Client], tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    size = 100_000
    with serving(idle.model_copy(update={"allowed_hosts": ["localhost"]})) as api:
        proxied(port, api.url)
        trust = ssl.create_default_context(cafile=str(tmp_path / "certificate"))
        head = f"POST /bestofn/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\nConnection: close\r\n"
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE) as plain,
            trust.wrap_socket(plain, server_hostname="localhost") as caller,
        ):
            caller.sendall(f"{head}Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n".encode())
            answer = caller.recv(65536)
            asked = answer.startswith(b"HTTP/1.1 100 ")  # by the proxy itself: nginx, and Caddy as the case may be
            try:
                if asked:
                    caller.sendall(bytes(size))
                while b"payload_too_large" not in answer and (more := caller.recv(65536)):
                    answer += more
            except OSError:
                if not asked:
                    raise
                pytest.skip("the proxy asked for the body, and closed the connection under it")
    assert b"HTTP/1.1 413 " in answer
    assert b"payload_too_large" in answer


def test_cache_keeps_no_answer_that_changes(idle: Settings, serving: Serving, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with serving(idle) as api:
        upstream = api.url.removeprefix("http://")
        command = [
            program_of("varnishd"),
            "-j",
            "none",
            "-F",
            "-n",
            tmp_path,
            "-a",
            f"127.0.0.1:{port}",
            "-b",
            upstream,
        ]
        with (tmp_path / "out").open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as varnish:
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as http:
                    until(lambda: varnish.poll() is not None or answers(http))
                    assert varnish.poll() is None, (tmp_path / "out").read_text()
                    place = http.post("/generate", json={"prompt": "p"}, headers={"Prefer": "respond-async"}).headers
                    for path in ("/livez", "/readyz", "/status", "/v1/models", f"{place['location']}/images/1"):
                        first, second = (http.get(path).headers["x-request-id"] for _ in range(2))
                        assert first != second, path
            finally:
                varnish.terminate()


def test_documented_wait_is_the_default() -> None:
    seconds = Settings.model_fields["max_wait_seconds"].default
    assert f"answers\nwithin {seconds:g} s" in PAGE.read_text(encoding="utf-8")
    assert seconds < 30  # of Google's load balancers, Heroku and h2o
