"""The doctor: what it finds, what it advises, what it keeps to itself, and that it always ends."""

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from pydantic import ValidationError

import bestofn
from bestofn.cli.commands.doctor import finding_lines
from bestofn.models.cgroups import cpu_quota, memory_limit
from bestofn.models.checkpoint import EMBEDDED, Checkpoint
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.service.client.discovery import address_file
from bestofn.service.core.jobs import Revision
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import WorkerInfo
from bestofn.service.doctor.checkpoints import Located, locate
from bestofn.service.doctor.findings import Finding, examine
from bestofn.service.doctor.memory import GIB, Needs, findings, needs, plan
from bestofn.service.doctor.published_sizes import published
from bestofn.service.doctor.queue import workers
from bestofn.service.doctor.registry import CHECKS
from bestofn.service.engine.fake import FakeEngine
from bestofn.service.engine.loader import generator_bytes
from bestofn.service.engine.memory_share import work_of
from bestofn.service.host.licences import licences, notice
from tests.waiting import PATIENCE

SANA, LARGE = (f"Efficient-Large-Model/SANA1.5_{size}_1024px_diffusers" for size in ("1.6B", "4.8B"))
VERIFIER = "Efficient-Large-Model/NVILA-Lite-2B-Verifier"


def look(*names: str, **fields: Any) -> dict[str, Finding]:
    """The findings of these checks, the last one of a name."""
    settings = Settings(redis_url=None).model_copy(update=fields)
    checks = {name: CHECKS[name] for name in names} or CHECKS
    return {finding.what: finding for _, finding in examine(settings, checks)}


def test_doctor_names_the_setting_that_a_misspelt_variable_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESTOFN_WAIT_SECONDS", "5")
    monkeypatch.setenv("BESTOFN_MAX_WAIT_SECONDS", "5")
    found = look("settings")["settings"]
    assert (found.state, found.found) == ("warn", "BESTOFN_WAIT_SECONDS is not a setting and has no effect")
    assert "BESTOFN_MAX_WAIT_SECONDS" in found.fix


@pytest.mark.parametrize(
    ("named", "meant"),
    [("data", Path("data")), ("~/data", Path.home() / "data"), ("", Path.home() / ".local/share/bestofn")],
)
def test_the_data_folder_is_absolute(monkeypatch: pytest.MonkeyPatch, named: str, meant: Path) -> None:
    monkeypatch.setenv("BESTOFN_DATA_DIR", named)
    assert Settings().data_dir == meant.absolute()


def test_settings_made_with_an_unknown_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="wait_seconds"):
        Settings(wait_seconds=5)  # type: ignore[call-arg]


def test_a_check_that_breaks_or_hangs_is_a_finding() -> None:
    forever = threading.Event()

    def breaks(settings: Settings) -> Iterator[Finding]:
        yield Finding("ok", "first", "fine")
        raise OSError("redis://me:pa/s:w@rd@host/0?password=x&db=1 is gone, open-sesame, " + str(Path.home() / "data"))

    def hangs(settings: Settings) -> Iterator[Finding]:
        forever.wait(PATIENCE)
        yield Finding("ok", "late", "")

    settings = Settings(api_key="open-sesame")
    found = [finding for _, finding in examine(settings, {"breaks": breaks, "hangs": hangs}, patience=1.5)]
    forever.set()
    assert [finding.state for finding in found] == ["ok", "fail", "fail"]
    assert found[1].found == "OSError: redis://***@host/0?password=***&db=1 is gone, ***, ~/data"
    assert "no answer within 1.5 s" in found[2].found


def test_the_whole_report_on_a_host_without_torch(served: Any, queue_server: Path, tmp_path: Path) -> None:
    """As on an API's host; and nothing secret is in it."""
    program = "import sys; sys.modules['torch'] = None; from bestofn.cli.main import app; app()"
    environment = {
        "BESTOFN_REDIS_URL": (queue_server / "queue.address").read_text().strip(),
        "BESTOFN_SERVER": served.url,
        "BESTOFN_DATA_DIR": str(tmp_path),
        "BESTOFN_API_KEY": "open-sesame",
        "HOME": str(tmp_path),
    }
    (tmp_path / "keys").write_text(f"ali {'0' * 64}\n")
    command = [sys.executable, "-P", "-c", program, "doctor", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "open-sesame" not in done.stdout
    found = {f"{finding['check']} {finding['what']}": finding for finding in json.loads(done.stdout)}
    assert "enough for API and client" in found["program for models"]["found"]
    assert "api_key=(set)" in found["settings settings"]["found"]
    assert "one of the 1 keys in ~/keys" in found["settings access"]["found"]
    assert "fake" in found["queue workers"]["found"]
    assert found["server server"]["state"] == "ok"
    assert CHECKS.keys() - {"devices", "memory"} <= {finding["check"] for finding in found.values()}


def test_queue(served: Any, queue_server: Path, tmp_path: Path) -> None:
    running = look("queue", data_dir=queue_server)
    assert running["queue"].state == "ok"
    assert "noeviction, append-only file on" in running["queue"].found
    assert "fake" in running["workers"].found
    assert "candidates wait or run" in running["backlog"].found
    assert "GiB free in" in look("disk", data_dir=tmp_path)["data"].found
    assert look("disk", data_dir=Path("/proc"), redis_url="redis://queue")["data"].state == "ok"
    assert "`bestofn up` would start" in look("queue", data_dir=tmp_path)["queue"].found
    lost = look("queue", redis_url="redis://:secret@127.0.0.1:9")["queue"]
    assert (lost.state, "ConnectionError" in lost.found, "secret" in lost.found) == ("fail", True, False)


def test_workers_of_another_version_or_revision() -> None:
    engine = FakeEngine()
    ours = WorkerInfo(
        worker="one", host="here", pid=1, device="cpu", capacity=1, model=engine.model_info, judge=engine.judge_info,
        started_at=0.0, version=bestofn.__version__,
    )  # fmt: skip
    newer = engine.model_info.model_copy(update={"revision": Revision(name="fake", revision="2")})
    theirs = ours.model_copy(update={"worker": "two", "version": "9.9.9", "model": newer})
    assert [finding.state for finding in workers([ours])] == ["ok"]
    found = list(workers([ours, theirs]))
    assert [(finding.state, finding.what) for finding in found[2:]] == [("warn", "versions"), ("warn", "workers")]
    assert "9.9.9" in found[2].found
    assert "several revisions of model fake" in found[3].found


def test_server(served: Any, tmp_path: Path) -> None:
    address_file(Settings(data_dir=tmp_path)).write_text(json.dumps({"server": served.url}))
    found = look("server", data_dir=tmp_path)
    assert (found["server"].state, found["ready"].state) == ("ok", "ok")
    in_its_container = look("server", data_dir=tmp_path / "empty", port=int(served.url.rpartition(":")[2]))
    assert (in_its_container["server"].state, served.url in in_its_container["server"].found) == ("ok", True)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = look("server", data_dir=tmp_path / "empty", port=other.getsockname()[1])["server"]
    assert (taken.state, "choose another --port" in taken.fix) == ("warn", True)
    elsewhere = look("server", data_dir=tmp_path / "empty", host="192.0.2.1")["server"]  # no machine has this address
    assert (elsewhere.state, elsewhere.fix) == ("warn", "choose another --host")
    assert look("server", server="http://127.0.0.1:9")["server"].state == "fail"
    assert look("settings", host="0.0.0.0")["access"].state == "fail"
    assert "pairwise_api_key" not in look("settings", pairwise_api_key="")["settings"].found


def test_a_checkpoint_that_is_not_whole(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(EMBEDDED["shapes"], broken)
    assert locate(str(broken)).broken == ()
    (broken / "model_index.json").unlink()
    shutil.rmtree(broken / "tokenizer")
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100_000])
    lacks = locate(str(broken)).broken
    assert [lack.partition(" at ")[0] for lack in lacks] == [
        "it has no model_index.json",
        "vae/diffusion_pytorch_model.safetensors is cut off",
        "no tokenizer/",
    ]
    found = look("checkpoints", model=str(broken))["model"]
    assert (found.state, found.fix) == ("fail", "download or copy it again, the whole of it")
    assert look("checkpoints")["judge"].state == "ok"


def test_doctor_with_a_cache_that_cannot_be_made_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    found = look("disk", data_dir=tmp_path)["hub cache"]
    assert (found.state, "cannot be written" in found.found, "nothing is missing" in found.found) == ("ok", True, True)
    found = look("disk", data_dir=tmp_path, model="somebody/model")["hub cache"]
    assert (found.state, "HF_HOME" in found.fix) == ("fail", True)


@pytest.mark.parametrize("width", [30, 40, 59, 60, 100])
def test_finding_fits_a_terminal_of_any_width(width: int) -> None:
    finding = Finding("fail", "memory", f"{'word ' * 40}{'/folder' * 20}", "fix " * 40)
    lines = [row for line in finding_lines(finding, width) for row in re.sub(r"\x1b\[[0-9;]*m", "", line).splitlines()]
    assert max(map(len, lines)) <= width
    assert "".join(lines).replace(" ", "").count("fix") == 40


def test_doctor_downloads_no_missing_weights() -> None:
    found = look("checkpoints", "memory", model=LARGE, judge=VERIFIER, devices="cpu")
    assert (found["model"].state, "16.0 GB to download" in found["model"].found) == ("warn", True)
    assert "text encoder 9.7 GiB, transformer 17.6 GiB" in found["weights"].found


GPU = torch.device("cuda")  # for the sizes of its dtypes: no GPU is asked
FITS: dict[str, tuple[str, float, tuple[str, ...], str]] = {
    "everything": (SANA, 80, ("ok", "ok"), "all parts stay"),
    "4.8B on 24": (LARGE, 24, ("ok", "ok"), "all parts stay"),
    "4.8B on 23 with fewer slots": (LARGE, 23, ("ok", "warn"), "BESTOFN_SLOTS=25"),
    "4.8B on 20": (LARGE, 20, ("ok", "warn"), "text encoder is read again"),
    "1.6B on 8": (SANA, 8, ("ok", "warn"), "a GPU of 24 GiB keeps everything"),
    "nothing": (LARGE, 8, ("ok", "fail"), "the 1.6B checkpoint takes less"),
}


@pytest.mark.parametrize(("model", "gib", "states", "said"), FITS.values(), ids=FITS.keys())
def test_memory(model: str, gib: float, states: tuple[str, ...], said: str) -> None:
    needed = needs(Located(model, None), [Located(VERIFIER, None)], GPU)
    assert needed is not None
    made = list(findings(needed, int(gib * GIB), int(gib * GIB), "cuda"))
    assert tuple(finding.state for finding in made) == states
    assert said in made[-1].found + made[-1].fix


def test_a_second_judge_and_fp8_drafts_are_counted() -> None:
    judges = 2 * [Located(VERIFIER, None)]
    needed = needs(Located(SANA, None), judges, GPU, fp8_drafts=True)
    assert needed is not None
    gib = 24 * GIB
    weights, memory = findings(needed, gib, gib, "cuda")
    assert "transformer 4.5 GiB (1.5 GiB of it in FP8, for drafts), decoder 0.6 GiB, " in weights.found
    assert "judge 3.7 GiB, second judge 3.7 GiB: 17.4 GiB in all" in weights.found
    assert (memory.state, "BESTOFN_SLOTS=26" in memory.fix) == ("warn", True)
    (memory,) = list(findings(needed, 12 * GIB, gib, "cuda"))[1:]
    assert "judge and second judge are read again when needed" in memory.found
    assert "without BESTOFN_FP8_DRAFTS it is 1.5 GiB less" in memory.fix
    slow = look("devices", devices="cpu", fp8_drafts=True)["drafts"]
    assert (slow.state, slow.fix) == ("warn", "unset BESTOFN_FP8_DRAFTS")


def test_the_memory_plan_is_the_engines() -> None:
    """The same sizes as `load_engine` finds, and the slots it would take."""
    needed = needs(locate("shapes"), [locate("shapes", judge=True)], torch.device("cpu"))
    assert needed is not None
    two = needs(locate("shapes"), 2 * [locate("shapes", judge=True)], torch.device("cpu"))
    assert two is not None
    assert two.judges == 2 * needed.judges
    assert (two.least, two.weights) == (needed.least, needed.weights + needed.judges[0])
    drafted = needs(locate("shapes"), [locate("shapes", judge=True)], torch.device("cpu"), fp8_drafts=True)
    assert drafted is not None
    assert drafted.parts == generator_bytes(Checkpoint.resolve("shapes"), torch.device("cpu"), fp8_drafts=True)
    assert (drafted.weights - needed.weights, drafted.slot) == (drafted.fp8, 2 * needed.slot)
    assert drafted.fp8 == needed.parts["transformer"] // 4  # beside float32
    planned = plan(needed, 8 * GIB, "cpu")
    assert (planned.slots, planned.turns, planned.fits) == (16, (), True)
    parts = dict.fromkeys(("text_encoder", "transformer", "decoder"), 10 * GIB)
    small = Needs(parts, [50 * GIB], work_of(LinearDiTConfig.from_dict({}), 1, 1, 1, 1, "cuda"), 2, 0.0)
    assert plan(small, 100 * GIB, "cuda").turns == ()
    assert plan(small, 94 * GIB, "cuda").turns == ("text_encoder",)


def test_limits_of_a_container(tmp_path: Path) -> None:
    own, root = tmp_path / "own", tmp_path / "groups"
    for path, text in {
        "cpu.max": "max 100000",
        "pod/cpu.max": "150000 100000",
        "pod/memory.max": "2048",
        "pod/box/memory.max": "max",
        "memory/old/memory.limit_in_bytes": "9223372036854771712",
        "memory/old/box/memory.limit_in_bytes": "4096",
        "cpu/old/cpu.cfs_quota_us": "50000",
        "cpu/old/cpu.cfs_period_us": "100000",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n")
    own.write_text("0::/pod/box\n")
    assert (cpu_quota(root, own), memory_limit(root, own)) == (1.5, 2048)
    own.write_text("5:memory:/old/box\n4:cpu,cpuacct:/old\n")
    assert (cpu_quota(root, own), memory_limit(root, own)) == (0.5, 4096)
    assert (cpu_quota(root, tmp_path / "none"), memory_limit(root, tmp_path / "none")) == (None, None)


def test_licences() -> None:
    assert notice("shapes") is None
    assert notice("./folder") is None
    said = notice(f"{SANA}@abc")
    assert said is not None
    assert "non-commercial" in said
    assert "Gemma Terms" in said
    assert "\n" not in said
    assert "not known" in str(notice("someone/else"))
    assert [licence.name for licence in licences("shapes")] == ["Apache-2.0"]
    assert "CC BY-NC" in licences(VERIFIER)[0].name
    assert "Open Model" in licences("Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers")[0].name


def test_published_sizes() -> None:
    """What a download takes, and the parameters of diffusers' own module of that shape."""
    from diffusers import SanaTransformer2DModel

    for name, gigabytes in (
        (SANA, 9.7),
        (LARGE, 16.0),
        ("Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers", 7.7),
    ):
        sizes = published(name)
        assert sizes is not None
        assert round(sizes.download / 1e9, 1) == gigabytes
        with torch.device("meta"):
            shape = {"qk_norm": "rms_norm_across_heads", **sizes.transformer}
            transformer = SanaTransformer2DModel(**shape)
        assert sum(p.numel() for p in transformer.parameters()) == sizes.parts["transformer"]
