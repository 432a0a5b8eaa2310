"""Provenance by C2PA: winners carry a signed claim that a model made them; readers of files check it.

Signing and checking are `c2pa-python`'s (`bestofn[provenance]`). The claim has the action `c2pa.created` with IPTC's
source type for media made by a trained model. One assertion of ours has model, judges and, where the file may have it,
the prompt.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from bestofn.service.core.errors import SetupError
from bestofn.service.core.jobs import ImageFormat
from bestofn.service.core.settings import Settings
from bestofn.service.core.version import VERSION
from bestofn.service.host.files import naming
from bestofn.service.media.codec import MEDIA_TYPES, encode, read_header
from bestofn.service.media.metadata import Story

ASSERTION = "org.bestofn.generation"
MADE_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
INSTALL = "pip install 'bestofn[provenance]'"
TRUSTED, INVALID = "Trusted", "Invalid"  # c2pa's states; a third is Valid
_MARK = b"c2pa"  # in every file with a manifest
_OPTIONS = {"builder": {"thumbnail": {"enabled": False}}}  # a thumbnail would be larger than a small winner
_ALGORITHMS: Mapping[str, bytes] = {"secp256r1": b"es256", "secp384r1": b"es384", "secp521r1": b"es512"}

YEAR = timedelta(days=365)
_ROOT, _SIGNER = "bestofn development root", "bestofn development"  # names in certificates for trying out


@dataclass(frozen=True)
class Signer:
    """Signs images with a certificate; safe to call from several threads.

    Attributes:
        certificate: PEM chain, the signer's own certificate first.
        key: PEM private key: P-256, P-384, P-521, Ed25519 or RSA.
        files: certificate and key on disk.
    """

    certificate: bytes
    key: bytes
    files: tuple[Path, Path]

    @classmethod
    def of(cls, settings: Settings) -> "Signer | None":
        """The signer of the settings; None without a certificate.

        Raises:
            SetupError: a file is missing, c2pa is not installed, or certificate and key do not sign.
        """
        if settings.c2pa_certificate is None and settings.c2pa_key is None:
            return None
        if settings.c2pa_certificate is None or settings.c2pa_key is None:
            raise SetupError("BESTOFN_C2PA_CERTIFICATE and BESTOFN_C2PA_KEY go together, and one of them is not set")
        return cls.read(settings.c2pa_certificate, settings.c2pa_key)

    @classmethod
    def read(cls, certificate: Path, key: Path) -> "Signer":
        """The signer of two files, tried once.

        Raises:
            SetupError: a file is missing, c2pa is not installed, or certificate and key do not sign.
        """
        try:
            signer = cls(certificate.read_bytes(), key.read_bytes(), (certificate, key))
        except OSError as error:
            raise SetupError(f"C2PA: {error.filename}: {error.strerror}") from error
        try:
            if signer.expires <= datetime.now(UTC):
                raise SetupError(
                    f"the C2PA certificate {certificate} expired on {signer.expires:%Y-%m-%d}: put a new one there"
                )
            signer._sign(encode(Image.new("RGB", (1, 1)), "png"), "png", _claim("png", {}))
        except ImportError as error:
            raise SetupError(f"signing images needs packages: {INSTALL}") from error
        except (ValueError, TypeError) as error:
            raise SetupError(
                f"{certificate} and {key} do not sign: a PEM chain and its key without a password are needed ({error})"
            ) from error
        return signer

    def current(self) -> "Signer":
        """This signer, or one of the files' present content where its certificate has expired.

        Raises:
            SetupError: as `read`; the certificate was not renewed, for example.
        """
        return self if datetime.now(UTC) < self.expires else Signer.read(*self.files)

    @cached_property
    def expires(self) -> datetime:
        """End of the signer's own certificate."""
        from cryptography.x509 import load_pem_x509_certificates

        return load_pem_x509_certificates(self.certificate)[0].not_valid_after_utc

    @cached_property
    def _private_key(self) -> Any:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        return load_pem_private_key(self.key, None)

    @cached_property
    def _pkcs8(self) -> bytes:
        """The key in the one form that c2pa reads; openssl writes `BEGIN EC PRIVATE KEY` too."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        pem: bytes = self._private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem

    @cached_property
    def _algorithm(self) -> bytes:
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

        match self._private_key:
            case ec.EllipticCurvePrivateKey(curve=curve) if curve.name in _ALGORITHMS:
                return _ALGORITHMS[curve.name]
            case ed25519.Ed25519PrivateKey():
                return b"ed25519"
            case rsa.RSAPrivateKey():
                return b"ps256"
            case other:
                raise ValueError(f"the key is {type(other).__name__}; C2PA takes P-256, P-384, P-521, Ed25519 and RSA")

    def sign(self, image: bytes, format: ImageFormat, story: Story) -> bytes:
        """An image's file with a signed claim; each call gives other bytes, because claims have random names.

        Args:
            image: the file's bytes.
            format: its format.
            story: how it was made; the claim has the prompt if the story has it.

        Raises:
            SetupError: the certificate has expired since the start.
        """
        made = story.model_dump(mode="json", include={"model", "judge", "second_judge", "prompt"}, exclude_none=True)
        try:
            return self._sign(image, format, _claim(format, made))
        except ValueError as error:
            raise SetupError(
                "the image cannot be signed by BESTOFN_C2PA_CERTIFICATE, which holds until "
                f"{self.expires:%Y-%m-%d %H:%M} UTC ({error}): the operator has to put a new certificate there"
            ) from error

    def _sign(self, image: bytes, format: ImageFormat, claim: Mapping[str, Any]) -> bytes:
        """Raises ValueError if the library refuses certificate or key."""
        import c2pa

        signed = io.BytesIO()
        try:
            info = c2pa.C2paSignerInfo(self._algorithm, self.certificate, self._pkcs8, None)
            with (
                c2pa.Context(c2pa.Settings.from_dict(_OPTIONS)) as context,
                c2pa.Builder(json.dumps(claim), context) as builder,
                c2pa.Signer.from_info(info) as signer,
            ):
                builder.sign(signer, MEDIA_TYPES[format], io.BytesIO(image), signed)
        except c2pa.C2paError as error:
            raise ValueError(str(error)) from error
        return signed.getvalue()


@dataclass(frozen=True, slots=True)
class Provenance:
    """What the C2PA manifest of a file says, and whether it holds.

    Attributes:
        state: Trusted, Valid (the issuer is on no trust list) or Invalid; None where c2pa is not installed.
        signer: name in the signer's certificate.
        problems: codes of what does not hold.
        claim: our assertion; empty in files of other programs.
    """

    state: str | None
    signer: str = ""
    problems: tuple[str, ...] = ()
    claim: Mapping[str, Any] | None = None


def read_provenance(data: bytes) -> Provenance | None:
    """The checked C2PA manifest in an image file's bytes; None if it has none. Asks no network."""
    if _MARK not in data:
        return None
    try:
        import c2pa
    except ImportError:
        return Provenance(None)
    try:
        with c2pa.Reader(MEDIA_TYPES[read_header(data).format], io.BytesIO(data)) as reader:
            found = json.loads(reader.json())
    except c2pa.C2paError.ManifestNotFound:
        return None
    except (c2pa.C2paError, ValueError) as error:
        return Provenance(INVALID, problems=(str(error),))
    manifest = found.get("manifests", {}).get(found.get("active_manifest"), {})
    problems = tuple(status["code"] for status in found.get("validation_status", []))
    claims = [one["data"] for one in manifest.get("assertions", []) if one.get("label") == ASSERTION]
    signer = manifest.get("signature_info", {})
    name = signer.get("common_name") or signer.get("issuer") or "unknown"
    return Provenance(found.get("validation_state"), name, problems, claims[0] if claims else {})


def _claim(format: ImageFormat, made: Mapping[str, Any]) -> dict[str, Any]:
    action = {
        "action": "c2pa.created",
        "digitalSourceType": MADE_BY_A_MODEL,
        "softwareAgent": {"name": "bestofn", "version": VERSION},
    }
    return {
        "claim_generator_info": [{"name": "bestofn", "version": VERSION}],
        "format": MEDIA_TYPES[format],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [action]}},
            {"label": ASSERTION, "data": made},
        ],
    }


def write_certificate(folder: Path, lifetime: timedelta = YEAR) -> tuple[Path, Path]:
    """Write a certificate, issued by a root made for it, and its key; for trying out, trusted by no one.

    Args:
        folder: folder of both files, made if need be.
        lifetime: time from now to the certificate's end.

    Returns:
        The file of the chain and the file of the key (mode 600).

    Raises:
        SetupError: cryptography is not installed, or a file exists.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    except ImportError as error:
        raise SetupError(f"making a certificate needs packages: {INSTALL}") from error
    chain, secret = folder / "c2pa.pem", folder / "c2pa.key"
    for file in (chain, secret):
        if file.exists():
            raise SetupError(f"{file} exists: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _certificate(_ROOT, root_key, _ROOT, root_key, YEAR, issuer=True)
    own = _certificate(_SIGNER, key, _ROOT, root_key, lifetime, issuer=False)
    secret.touch(mode=0o600)
    with naming(folder):
        secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        chain.write_bytes(own + root)
    return chain, secret


def _certificate(name: str, key: Any, by: str, by_key: Any, lifetime: timedelta, *, issuer: bool) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.now(UTC)
    others = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    subject, authority = (
        x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "bestofn"), x509.NameAttribute(NameOID.COMMON_NAME, who)]
        )
        for who in (name, by)
    )
    made = (
        x509.CertificateBuilder(authority, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=issuer, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=not issuer, key_cert_sign=issuer, crl_sign=issuer, **others), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by_key.public_key()), critical=False)
    )
    if not issuer:
        made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return made.sign(by_key, SHA256()).public_bytes(Encoding.PEM)
