"""A certificate and key for trying out C2PA signatures."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bestofn.service.core.errors import SetupError
from bestofn.service.media.provenance import INSTALL

YEAR = timedelta(days=365)
ROOT, SIGNER = "bestofn development root", "bestofn development"


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
    root = _certificate(ROOT, root_key, ROOT, root_key, YEAR, issuer=True)
    own = _certificate(SIGNER, key, ROOT, root_key, lifetime, issuer=False)
    secret.touch(mode=0o600)
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
