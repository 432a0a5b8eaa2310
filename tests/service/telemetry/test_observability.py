"""What API and worker tell of themselves: metrics, lines of the log, traces, conditions; and who reads them."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import promql_parser
import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from bestofn.cli.commands.worker import device_commands
from bestofn.service.api.app import create_app
from bestofn.service.core.errors import SetupError
from bestofn.service.core.jobs import JobSpec, JobStatus
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import FAILS
from bestofn.service.queue.connection import REPLY_SECONDS
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.embedded_server import LocalServer
from bestofn.service.queue.job_queue import Queue
from bestofn.service.queue.stats import ended_jobs, last_ended, read_stats
from bestofn.service.worker.health_server import LIVE, READY, Condition, metrics_port
from tests.waiting import PATIENCE, until

DOCKER = Path(__file__).parents[3] / "docker"
PROMPT = "a most secret star"
WORKER = """
import sys
from bestofn.service.engine.fake import FakeEngine
from bestofn.service.core.settings import Settings
from bestofn.service.telemetry import start
from bestofn.service.worker.worker import run_worker
settings = Settings()
start(settings, "worker")
sys.exit(run_worker(settings, lambda: FakeEngine(slots=8, step_seconds=0.01)))
"""
RESTS = 'bestofn_workers{judge="fake-judge",model="fake",state="ready"}'
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Deployed(NamedTuple):
    """An API and a worker process that have done a job and failed one, the spans that they sent, and their logs."""

    api: str
    worker: str
    job: str
    failed: str
    refused: httpx.Response
    counted: dict[str, float]  # by the API, of these jobs alone
    spans: dict[str, list[Span]]
    logs: dict[str, Path]


class Collector(ThreadingHTTPServer):
    """Takes spans by OTLP/HTTP and keeps them by the name of their service."""

    spans: dict[str, list[Span]]


class _Collect(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == "/v1/traces"
        for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
            (name,) = (a.value.string_value for a in sent.resource.attributes if a.key == "service.name")
            for scope in sent.scope_spans:
                self.server.spans.setdefault(name, []).extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None: ...


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector(("127.0.0.1", 0), _Collect) as server:
        server.spans = {}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def deployed(queue_server: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("logs")
    environment = {
        **os.environ,
        "BESTOFN_DATA_DIR": str(queue_server),
        "REDIS_URL": "",
        "BESTOFN_NAMESPACE": f"test-{uuid.uuid4().hex[:8]}",
        "BESTOFN_HEARTBEAT_SECONDS": "1",
        "BESTOFN_METRICS_PORT": "0",
        "BESTOFN_METRICS_HOST": "127.0.0.1",
        "BESTOFN_LOG_FORMAT": "json",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    commands = {"api": ["-m", "bestofn.cli", "serve", "--port", "0"], "worker": ["-c", WORKER]}
    logs = {name: folder / name for name in commands}
    processes = []
    try:
        for name, arguments in commands.items():
            with logs[name].open("w") as log:
                processes.append(
                    subprocess.Popen([sys.executable, "-P", *arguments], env=environment, stdout=log, stderr=log)
                )
        api = line(logs["api"], event="the API is ready")["address"]
        worker = f"http://127.0.0.1:{line(logs['worker'], event='metrics')['port']}"
        line(logs["worker"], event="ready")
        with httpx.Client(base_url=api, timeout=PATIENCE) as http:
            headers = {"X-Request-ID": "order-66", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
            done = http.post("/generate", json={"prompt": PROMPT, "num_samples": 8}, headers=headers)
            failed = http.post("/generate", json={"prompt": FAILS, "num_samples": 2})
            refused = http.post("/generate", json={"prompt": ""}, headers={"X-Request-ID": "two words"})
            assert (done.status_code, failed.status_code) == (200, 500)
            assert done.headers["x-request-id"] == "order-66"
        # The worker says with its next beat that it rests, and how fast it is.
        until(lambda: {RESTS, "bestofn_backlog_seconds"} <= metrics(api).keys())
        jobs = done.json()["id"], failed.json()["job"]
        yield Deployed(api, worker, *jobs, refused, metrics(api), collector.spans, logs)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def lines(log: Path) -> list[dict[str, Any]]:
    """The lines of a log; a line that is still being written is left out."""
    return [json.loads(text) for text in log.read_text().split("\n")[:-1]]


def line(log: Path, **wanted: object) -> dict[str, Any]:
    """The first line with these values, waited for."""
    return until(lambda: next((found for found in lines(log) if wanted.items() <= found.items()), None))


def metrics(url: str) -> dict[str, float]:
    """Samples by name and labels, as in 'heats_total{outcome="completed"}'; empty families by name and type."""
    answer = httpx.get(f"{url}/metrics", timeout=PATIENCE)
    assert answer.headers["content-type"].startswith("text/plain")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.text):
        for suffix in {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",)):
            found[family.name + suffix] = float("nan")
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_the_api_counts_requests_jobs_and_what_waits(deployed: Deployed) -> None:
    found = deployed.counted
    expected = {
        'bestofn_http_requests_total{method="POST",route="/generate",status="200"}': 1,
        'bestofn_refused_total{code="invalid_request"}': 1,
        'bestofn_refused_total{code="job_failed"}': 1,
        'bestofn_jobs_ended_total{status="succeeded"}': 1,
        'bestofn_jobs_ended_total{status="failed"}': 1,
        'bestofn_job_seconds_count{priority="interactive"}': 1,
        'bestofn_job_queue_seconds_count{priority="interactive"}': 1,
        'bestofn_winner_score_count{judge="fake-judge",model="fake"}': 1,
        'bestofn_backlog_candidates{priority="interactive"}': 0,
        'bestofn_jobs{status="queued"}': 0,
        RESTS: 1,
        "bestofn_dead_heats": 1,
        "bestofn_redis_up": 1,
        "bestofn_ready": 1,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert 0 < found['bestofn_job_seconds_sum{priority="interactive"}'] < PATIENCE
    assert not any(deployed.job in name for name in found), "no ids as labels: they are without number"
    assert httpx.get(
        f"{deployed.api}/metrics", headers={"Accept": "application/openmetrics-text"}, timeout=PATIENCE
    ).text.endswith("EOF\n")


def test_an_open_event_stream_is_counted_until_its_reader_leaves(deployed: Deployed) -> None:
    def is_open(number: int) -> bool:
        return metrics(deployed.api)["bestofn_event_streams_open"] == number

    asked = {"prompt": "p", "num_samples": 4096, "num_inference_steps": 100}
    with httpx.stream(
        "POST", f"{deployed.api}/generate", json=asked, headers={"Accept": "text/event-stream"}, timeout=PATIENCE
    ) as stream:
        assert until(lambda: is_open(1))
        place = stream.headers["location"]
    assert until(lambda: is_open(0))
    assert line(deployed.logs["api"], event="request", job_id=place.rpartition("/")[2])["status"] == 200
    httpx.delete(f"{deployed.api}{place}", timeout=PATIENCE)


def test_the_worker_counts_heats_and_candidates(deployed: Deployed) -> None:
    found = metrics(deployed.worker)
    assert found["bestofn_candidates_generated_total"] >= 8
    assert found['bestofn_heats_total{outcome="completed"}'] >= 1
    assert (found['bestofn_heats_total{outcome="retried"}'], found["bestofn_dead_total"]) == (3, 1)
    assert found['bestofn_heat_deliveries_bucket{le="1.0"}'] == found["bestofn_heat_deliveries_count"] - 3
    assert found['bestofn_judge_verdicts_total{answer="yes"}'] > 0
    assert 0 < found["bestofn_batch_fill_ratio_sum"] / found["bestofn_batch_fill_ratio_count"] <= 1
    assert found["bestofn_slots"] == 8


def test_one_trace_goes_from_the_request_through_the_queue_to_the_heat(deployed: Deployed) -> None:
    trace = bytes.fromhex(TRACE)

    def spans(service: str) -> list[Span]:
        return [span for span in deployed.spans.get(service, []) if span.trace_id == trace]

    (request,) = until(lambda: spans("bestofn-api"))
    (heat,) = until(lambda: spans("bestofn-worker"))
    assert (request.name, heat.name) == ("POST /generate", "heat")
    assert (request.parent_span_id.hex(), heat.parent_span_id) == ("b7ad6b7169203331", request.span_id)
    assert request.start_time_unix_nano < heat.start_time_unix_nano < heat.end_time_unix_nano
    told = {entry.key.removeprefix("bestofn."): entry.value for entry in heat.attributes}
    assert told["job_id"].string_value == deployed.job
    assert (told["candidates"].int_value, told["deliveries"].int_value) == (8, 1)
    assert {"waited_seconds", "denoise_seconds"} <= told.keys()
    failed = until(lambda: [span for span in deployed.spans["bestofn-worker"] if span.status.code == 2])
    assert failed[0].status.message == "the prompt asked for it"
    sent = [span for spans in deployed.spans.values() for span in spans]
    assert not any(PROMPT in str(span) for span in sent)
    assert not any(probe in span.name for span in sent for probe in ("metrics", "readyz"))


def test_every_request_is_one_line_and_no_prompt_is_in_any(deployed: Deployed) -> None:
    told = line(deployed.logs["api"], event="request", request_id="order-66")
    expected = {"method": "POST", "route": "/generate", "status": 200, "job_id": deployed.job, "trace_id": TRACE}
    assert {name: told.get(name) for name in expected} == expected
    heat = line(deployed.logs["worker"], event="heat", job_id=deployed.job)
    assert (heat["trace_id"], heat["outcome"], heat["level"]) == (TRACE, "completed", "info")
    dead = line(deployed.logs["worker"], event="heat", job_id=deployed.failed, outcome="dead_lettered")
    assert (dead["reason"], dead["level"]) == ("the prompt asked for it", "warning")
    body = deployed.refused.json()
    assert re.fullmatch("[0-9a-f]{32}", body["request_id"]), "an id with a space in it is not taken over"
    assert deployed.refused.headers["x-request-id"] == body["request_id"]
    assert line(deployed.logs["api"], request_id=body["request_id"])["code"] == "invalid_request"
    assert not any(PROMPT in log.read_text() for log in deployed.logs.values())


def test_the_status_page_says_what_runs_here(deployed: Deployed) -> None:
    found = httpx.get(f"{deployed.api}/status", timeout=PATIENCE).json()
    assert (found["status"], found["limits"]["max_samples"]) == ("ready", 4096)
    (worker,), (model,) = found["workers"], found["models"]
    assert (worker["slots"], worker["model"], worker["tflops_per_second"] > 0) == (
        8,
        {"name": "fake", "revision": "1"},
        True,
    )
    assert (model["name"], model["revision"], model["workers"], model["num_inference_steps"]) == ("fake", "1", 1, 4)
    assert found["queue"]["by_priority"]["interactive"].keys() == {"jobs", "candidates", "tflops"}
    assert (found["server"]["policy"], found["queue"]["dead_heats"]) == ("noeviction", 1)
    for path in ("livez", "readyz"):
        assert httpx.get(f"{deployed.worker}/{path}", timeout=PATIENCE).status_code == 200
    assert httpx.get(f"{deployed.worker}/nothing", timeout=PATIENCE).status_code == 404


@pytest.mark.parametrize("condition", Condition)
def test_a_worker_that_hangs_is_not_live_and_one_that_loads_is_not_ready(condition: Condition) -> None:
    with metrics_port("127.0.0.1", 0, lambda: condition) as port:
        answers = [httpx.get(f"http://127.0.0.1:{port}/{path}", timeout=PATIENCE) for path in ("livez", "readyz")]
        with pytest.raises(SetupError, match=f"port {port}"), metrics_port("127.0.0.1", port, lambda: condition):
            pass
        heads = [httpx.head(str(answer.url), timeout=PATIENCE) for answer in answers]
    assert [(head.status_code, head.content) for head in heads] == [(answer.status_code, b"") for answer in answers]
    assert [answer.is_success for answer in answers] == [condition in LIVE, condition in READY]
    assert [answer.json() for answer in answers] == 2 * [{"status": condition}]


def test_each_device_of_a_machine_has_a_port_of_its_own() -> None:
    commands = device_commands(["cuda:0", "cuda:1"], {"slots": 8, "model": None}, 9100)
    assert [command[5:] for command in commands] == [
        ["--devices", "cuda:0", "--slots", "8", "--metrics-port", "9100"],
        ["--devices", "cuda:1", "--slots", "8", "--metrics-port", "9101"],
    ]
    assert device_commands(["cpu"], {}, None)[0][5:] == ["--devices", "cpu"]
    free = device_commands(["cuda:0", "cuda:1"], {}, 0)
    assert [command[-2:] for command in free] == [["--metrics-port", "0"]] * 2


def test_api_without_its_queue_still_reports_its_state(
    serving: Callable[[Settings], AbstractContextManager[Any]], keys: Callable[..., Any]
) -> None:
    with serving(Settings(redis_url="redis://127.0.0.1:1", metrics_without_key=True, **keys("k"))) as api:
        found = metrics(api.url)
        assert (found["bestofn_redis_up"], found["bestofn_ready"]) == (0, 0)
        assert httpx.get(f"{api.url}/status", timeout=PATIENCE).status_code == 401
        status = httpx.get(f"{api.url}/status", headers={"Authorization": "Bearer k"}, timeout=PATIENCE).json()
        assert (status["status"], status["queue"], status["workers"]) == ("no queue", None, [])


def test_probes_of_a_queue_that_hangs_are_answered_within_one_bound(
    serving: Callable[[Settings], AbstractContextManager[Any]], tmp_path: Path
) -> None:
    with LocalServer(tmp_path) as server, serving(Settings(redis_url=server.url, data_dir=tmp_path)) as api:
        assert server._process is not None
        server._process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            with ThreadPoolExecutor() as pool:
                ask = partial(httpx.get, timeout=PATIENCE)
                answers = [*pool.map(ask, (f"{api.url}/{path}" for path in ("status", "metrics", "readyz")))]
            assert time.monotonic() - began < 2 * REPLY_SECONDS, "each reply was waited for"
        finally:
            server._process.send_signal(signal.SIGCONT)
    assert [answer.status_code for answer in answers] == [200, 200, 503]
    assert answers[0].json()["status"] == "no queue"
    assert "bestofn_redis_up 0" in answers[1].text


async def _bug() -> None:
    raise RuntimeError("a mistake of ours")


async def _ask(app: Any) -> list[httpx.Response]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        return [await http.get("/bug", headers={"X-Request-ID": "seven"}), await http.get("/no/such/7f3a")]


def test_a_mistake_of_ours_is_answered_with_the_id_under_which_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(Settings())
    app.add_api_route("/bug", _bug)
    answers = asyncio.run(_ask(app))
    assert [(a.status_code, a.json()["code"]) for a in answers] == [(500, "internal"), (404, "not_found")]
    assert answers[0].json()["request_id"] == answers[0].headers["x-request-id"] == "seven"
    (told,) = (record.msg for record in caplog.records if record.levelname == "ERROR")
    assert isinstance(told, dict)
    assert (told["event"], told["request_id"], told["exc_info"]) == ("the server made a mistake", "seven", True)


async def test_a_census_counts_jobs_by_priority_and_notes_how_they_end(
    settings: Settings, make_spec: Callable[..., JobSpec], open_lane: Any
) -> None:
    queue = await Queue.connect(settings)
    lane: QueueConsumer = await open_lane(queue)
    start = await last_ended(queue)
    jobs = [make_spec(num_samples=8), make_spec(num_samples=4, priority="batch")]
    for job in jobs:
        await queue.submit(job, cost=2.0, traceparent="00-1-2-01")
    stats = (await read_stats(queue)).queue
    assert (stats.queued, stats.running, stats.estimated_wait_seconds) == (2, 0, None)
    assert [load.candidates for load in stats.by_priority.values()] == [8, 4]
    assert [load.tflops for load in stats.by_priority.values()] == [2.0, 2.0]
    (claim,) = await lane.claim(1, 0.0)
    assert (claim.traceparent, claim.waited_seconds < PATIENCE) == ("00-1-2-01", True)
    time.sleep(0.02)
    stats = (await read_stats(queue)).queue
    assert (stats.queued, stats.running) == (1, 1)
    assert 0.02 <= stats.oldest_wait_seconds < PATIENCE
    await lane.give_back(claim, "dead_lettered", "no luck")
    await queue.cancel(jobs[1].id)
    stats = (await read_stats(queue)).queue
    assert (stats.queued, stats.running, stats.oldest_wait_seconds, stats.dead_heats) == (0, 0, 0.0, 1)
    assert {(load.jobs, load.candidates, load.tflops) for load in stats.by_priority.values()} == {(0, 0, 0.0)}
    ended, place = await ended_jobs(queue, start)
    assert [(job.status, job.priority, job.model, job.winner) for job in ended] == [
        (JobStatus.FAILED, "interactive", "fake", None),
        (JobStatus.CANCELED, "batch", "fake", None),
    ]
    assert await ended_jobs(queue, place) == ([], place)
    await queue.aclose()


def names_in(expression: str) -> set[str]:
    """The metrics that a PromQL expression reads; raises ValueError if it is none."""
    found: set[str] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.add(node.name)
        return True

    promql_parser.walk(promql_parser.parse(expression.replace("$__rate_interval", "5m")), visit)
    return found


def test_dashboard_and_alerts_read_metrics_that_there_are(deployed: Deployed) -> None:
    dashboard = json.loads((DOCKER / "grafana/dashboards/bestofn.json").read_text())
    rules = yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    expressions += [rule["expr"] for rule in rules]
    read = set().union(*map(names_in, expressions))
    there = {name.partition("{")[0] for found in (deployed.counted, metrics(deployed.worker)) for name in found}
    assert len(expressions) > 60
    assert read <= there, read - there
    described = (DOCKER.parent / "docs/operate/observability.md").read_text()
    ours = {re.sub("_(bucket|sum|count|info)$", "", name) for name in there if name.startswith("bestofn_")}
    assert {name for name in ours if name not in described} == set()


def test_prometheus_and_grafana_are_set_up_for_each_other() -> None:
    config = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    assert (DOCKER / "prometheus" / config["rule_files"][0]).is_file()
    assert {job["job_name"] for job in config["scrape_configs"]} == {"bestofn-api", "bestofn-worker"}
    (source,) = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    dashboard = json.loads((DOCKER / "grafana/dashboards/bestofn.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    everywhere = re.compile(r'\b(?:bestofn|process)_\w+\b(?!\{namespace=~"\$namespace")')
    assert not [found for expression in expressions for found in everywhere.findall(expression)]
    used = {panel["datasource"]["uid"] for panel in dashboard["panels"] if "datasource" in panel}
    assert used == {source["uid"]}
