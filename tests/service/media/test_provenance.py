"""C2PA signatures: what a signed image says, and that no change of it goes unnoticed."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bestofn.judge.verdict import Rule
from bestofn.service.core.errors import SetupError
from bestofn.service.core.jobs import ImageFormat, Revision
from bestofn.service.core.settings import Settings
from bestofn.service.doctor.settings import settings_changed
from bestofn.service.media.codec import decode, encode
from bestofn.service.media.metadata import Story, read_story
from bestofn.service.media.provenance import ASSERTION, Signer, read_provenance, write_certificate

c2pa = pytest.importorskip("c2pa", reason="needs c2pa-python: pip install -e '.[provenance]'")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    chain, key = write_certificate(tmp_path_factory.mktemp("c2pa"))
    assert key.stat().st_mode & 0o777 == 0o600
    return Settings(c2pa_certificate=chain, c2pa_key=key, model="shapes", devices="cpu", threads=1)


def story(prompt: str | None = "a red ring") -> Story:
    return Story(
        prompt=prompt,
        negative_prompt=None,
        seed=7,
        width=32,
        height=32,
        num_inference_steps=4,
        guidance_scale=4.5,
        rule=Rule.MARGIN,
        verdict={"answer": "yes", "yes_logit": 1.0, "no_logit": 0.0, "p_yes": 0.7},
        model=Revision(name="lab/sana", revision="ab12"),
        judge=Revision(name="lab/judge", revision="cd34"),
        software="bestofn 0",
    )


def signed(settings: Settings, format: ImageFormat, made: Story) -> bytes:
    signer = Signer.of(settings)
    assert signer is not None
    return signer.sign(encode(Image.new("RGB", (32, 32), "red"), format, made), format, made)


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_signed_image_says_that_a_model_made_it_and_keeps_its_story(signing: Settings, format: ImageFormat) -> None:
    data = signed(signing, format, story())
    found = read_provenance(data)
    assert found is not None
    assert (found.state, found.signer, found.problems) == (
        "Valid",
        "bestofn development",
        ("signingCredential.untrusted",),
    )
    assert found.claim == {
        "prompt": "a red ring",
        "model": {"name": "lab/sana", "revision": "ab12"},
        "judge": {"name": "lab/judge", "revision": "cd34"},
    }
    with c2pa.Reader(f"image/{format}", io.BytesIO(data)) as reader:
        (manifest,) = json.loads(reader.json())["manifests"].values()
    (action,) = next(one for one in manifest["assertions"] if one["label"] == "c2pa.actions.v2")["data"]["actions"]
    assert (action["action"], action["digitalSourceType"].rpartition("/")[2]) == (
        "c2pa.created",
        "trainedAlgorithmicMedia",
    )
    assert read_story(data) == story()
    assert decode(data).size == (32, 32)


def test_key_as_openssl_ecparam_writes_it_signs(signing: Settings, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )

    assert signing.c2pa_key is not None
    key = load_pem_private_key(signing.c2pa_key.read_bytes(), None)
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    own = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    assert own.startswith(b"-----BEGIN EC PRIVATE KEY-----")
    file = tmp_path / "ec.key"
    file.write_bytes(parameters + own)
    found = read_provenance(signed(signing.model_copy(update={"c2pa_key": file}), "png", story()))
    assert found is not None
    assert found.state == "Valid"


def test_signed_image_without_its_prompt_names_it_nowhere(signing: Settings) -> None:
    data = signed(signing, "png", story(prompt=None))
    found = read_provenance(data)
    assert found is not None
    assert set(found.claim or ()) == {"model", "judge"}
    assert b"red ring" not in data


def test_signed_image_that_was_changed_does_not_hold(signing: Settings) -> None:
    data = signed(signing, "png", story())
    other = signed(signing, "png", story(prompt="another"))
    at = data.index(b"IDAT") + 8
    for changed in (
        data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
        data.replace(b"lab/sana", b"lab/sane"),
        data[:-12] + other[-200:],
    ):
        assert changed != data
        found = read_provenance(changed)
        assert found is not None
        assert found.state == "Invalid"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"c2pa_key": None}, "go together"),
        ({"c2pa_certificate": Path("none.pem")}, "none.pem: No such file"),
        ({"c2pa_certificate": Path(__file__)}, "do not sign"),
        ({"c2pa_key": Path(__file__)}, "do not sign"),
    ],
    ids=["no key", "no file", "no certificate", "no key in it"],
)
def test_signer_that_cannot_sign_is_refused_at_start(signing: Settings, change: dict[str, Any], said: str) -> None:
    settings = signing.model_copy(update=change)
    with pytest.raises(SetupError, match=said):
        Signer.of(settings)
    assert [finding.state for finding in settings_changed(settings)][-1] == "fail"


def test_signer_with_the_key_of_another_certificate_is_refused_at_start(signing: Settings, tmp_path: Path) -> None:
    _, key = write_certificate(tmp_path)
    with pytest.raises(SetupError, match="exists: name another folder"):
        write_certificate(tmp_path)
    settings = signing.model_copy(update={"c2pa_key": key})
    with pytest.raises(SetupError, match="do not sign"):
        Signer.of(settings)


def test_certificate_command_makes_winners_that_inspect_verifies(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("certificate", "c2pa")
    assert status == 0
    settings = dict(line.split("=", 1) for line in out.split())
    options = ("--local", "-n", "2", "--steps", "2")
    assert run("generate", "a red ring", *options, **settings)[0] == 0
    status, out, _ = run("inspect", "best.png")
    assert status == 0
    assert "signature        by bestofn development, whose issuer is on no trust list here; holds" in out
    assert "again: bestofn generate PROMPT --reproduce best.png, or" in out
    (entry,) = json.loads(run("inspect", "best.png", "--json")[1])
    assert (entry["provenance"]["state"], "prompt" in entry["provenance"]["claim"]) == ("Valid", False)
    assert entry["story"]["prompt"] is None, "prompts of signed files are published only if the request says so"
    assert run("generate", "a red ring", *options, "--embed-prompt", "-o", "open.png", **settings)[0] == 0
    (embedded,) = json.loads(run("inspect", "open.png", "--json")[1])
    assert embedded["provenance"]["claim"]["prompt"] == "a red ring"
    data = bytearray((tmp_path / "best.png").read_bytes())
    data[data.index(b"IDAT") + 8] ^= 1
    (tmp_path / "changed.png").write_bytes(data)
    status, out, _ = run("inspect", "changed.png")
    assert (status, "does NOT hold: " in out) == (1, True)
    assert ASSERTION.encode() in data
