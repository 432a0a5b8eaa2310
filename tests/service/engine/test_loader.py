"""From settings to an engine: devices, judges by name, memory shared out, and what the card says."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from bestofn.judge.judge import Judge
from bestofn.models.errors import CheckpointError
from bestofn.service.core.errors import InvalidRequest, SetupError
from bestofn.service.core.schemas import GenerateRequest
from bestofn.service.core.settings import Settings
from bestofn.service.engine.judge_loader import calibration_of, find_judge
from bestofn.service.engine.loader import devices, known_words, load_engine
from bestofn.service.engine.memory_share import share_memory
from bestofn.service.worker.local import local_spec

JUDGE = Path(__file__).parents[2] / "fixtures" / "vila" / "checkpoint"
GIB = 2**30
# float32 on a CPU: SANA-1.5 1.6B with Gemma-2-2B and DC-AE
SANA = {"text_encoder": int(9.7 * GIB), "transformer": int(6.0 * GIB), "decoder": int(0.6 * GIB)}


@pytest.mark.parametrize(
    ("memory", "shared", "least"),
    [(64, True, 16.3), (24, True, 9.7), (16, False, 9.7)],
    ids=["all fit", "the text encoder gives way", "judge and generator take turns"],
)
def test_memory_is_shared_out(memory, shared, least):
    judge = 8 * GIB
    for reserved in (0, 6 * GIB):
        fits, budget = share_memory(SANA, judge, memory * GIB, reserved)
        assert fits is shared
        assert budget >= least * GIB
        assert budget + (judge if shared else 0) <= min(0.8 * memory * GIB, memory * GIB - reserved)
    assert share_memory(SANA, judge, memory * GIB, memory * GIB) == (False, 1)


def test_devices():
    assert devices(Settings(devices="cpu")) == ["cpu"]
    assert devices(Settings(devices="all"))
    with pytest.raises(SetupError, match=r"cuda:99 not found; this machine has .*cpu"):
        devices(Settings(devices="cpu, cuda:99"))
    count = torch.cuda.device_count()
    with nullcontext() if count else pytest.raises(SetupError, match=r"cuda asks for a GPU.*BESTOFN_DEVICES=cpu"):
        assert devices(Settings(devices="cuda")) == [f"cuda:{i}" for i in range(count)]
    with pytest.raises(SetupError, match="none not found"):
        devices(Settings(devices=","))


def test_judges_by_name(tmp_path):
    judge = find_judge(str(JUDGE))
    assert judge.path == JUDGE
    assert judge.revision.revision == find_judge(str(JUDGE)).revision.revision
    with pytest.raises(ValueError, match="not a VILA checkpoint"):
        find_judge(str(tmp_path))
    with pytest.raises(ValueError, match="a hub name looks like owner/name@revision"):
        find_judge("./nowhere")
    assert find_judge(f"vila:{JUDGE}").revision == judge.revision
    with pytest.raises(SetupError, match="a judge is openai:<address>#<model>"):
        find_judge("openai:looker")


def test_fewer_tiles_are_another_revision_of_the_judge():
    few, folders = find_judge(str(JUDGE), 1), find_judge(str(JUDGE))
    assert few.revision.revision == f"{folders.revision.revision}+1-tiles"
    assert few.load(torch.device("cpu")).tiles(1024, 1024) == 1
    assert folders.load(torch.device("cpu")).tiles(1024, 1024) == 10
    assert calibration_of(find_judge("shapes", 1), None) is None
    assert calibration_of(find_judge("shapes"), None) is not None


def test_hub_names_are_looked_up_offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"owner/judge@v2 was not found in the local cache"):
        find_judge("owner/judge@v2")


def test_a_missing_model_is_one_clear_error():
    with pytest.raises(SetupError, match=r"no checkpoint '\./nowhere'"):
        load_engine(Settings(model="./nowhere", threads=1, devices="cpu"))


def test_a_worker_with_fp8_drafts_is_another_revision_to_the_queue():
    engine = load_engine(Settings(threads=1, devices="cpu", fp8_drafts=True))
    revision = engine.model_info.revision
    assert revision.revision == f"{engine.generator.checkpoint.revision}+fp8-drafts"
    assert revision.weights == engine.generator.checkpoint.revision


def test_only_a_tokenizer_of_words_has_known_words():
    words = {"model": {"type": "WordLevel", "vocab": {"<pad>": 0, "star": 1, "a": 2, ",": 3}}}
    assert known_words(json.dumps(words).encode()) == ("a", "star")
    assert known_words(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}}}).encode()) is None


def test_prompt_limit_refuses_what_the_judge_cannot_read_and_nothing_else():
    """The generator's tokenizer of words counts a run of signs as one; the judge's counts each."""
    engine = load_engine(Settings(threads=1, devices="cpu"))
    judge, limit = Judge.load(), engine.judge_info.prompt_limit
    assert limit is not None
    most = limit.tokens - judge.count("a ring ")
    for signs, fits in ((most, True), (most + 1, False)):
        request = GenerateRequest(prompt="a ring " + "!" * signs, num_samples=1)
        said = (
            "" if fits else f"question of {limit.tokens + 1} tokens, but the judge shapes reads {limit.tokens}; shorten"
        )
        with nullcontext() if fits else pytest.raises(InvalidRequest, match=said):
            local_spec(request, engine, Settings())
        with nullcontext() if fits else pytest.raises(ValueError, match="shorten the prompt"):
            judge.ids(request.prompt, judge.tiles(64, 64))
