"""Checks of the settings: which differ from their defaults, where they come from, and who would be let in."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime

from bestofn.service.api.access import check_binding
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import SECRETS, Settings, misspelt
from bestofn.service.doctor.findings import Finding
from bestofn.service.media.provenance import Signer

RENEW_DAYS = 30  # before the end of a certificate
_SECRET = re.compile(r"key|password|token|secret|header")


def settings_changed(settings: Settings) -> Iterator[Finding]:
    """The settings that are not at their defaults, and whether the server would start with them."""
    changed = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if value == "" or value == field.get_default(call_default_factory=True):  # an empty file or variable is none
            continue
        if _SECRET.search(name):
            value = "(set)"
        changed.append(f"{name}={value}")
    yield Finding("ok", "settings", ", ".join(changed) or "all at their defaults")
    for name, meant in misspelt().items():
        yield Finding("warn", "settings", f"{name} is not a setting and has no effect", f"you may mean {meant}")
    if SECRETS.is_dir():
        # Files of other programs may be there too; only names of ours are shown.
        known = {f"bestofn_{name}" for name in type(settings).model_fields} | {"redis_url"}
        names = sorted(file.name for file in SECRETS.iterdir() if file.name.lower() in known)
        yield Finding("ok", "secrets", f"{SECRETS} has {', '.join(names) or 'no file of ours'}")
    try:
        keyring = check_binding(settings)
    except SetupError as error:
        yield Finding("fail", "access", f"a server would listen on {settings.host}", error.detail)
    else:
        who = f"with one of the {len(keyring)} keys in {keyring.file}" if keyring.on else "without a key"
        yield Finding("ok", "access", f"a server would listen on {settings.host}:{settings.port}, calls {who}")
    yield from _signatures(settings)


def _signatures(settings: Settings) -> Iterator[Finding]:
    """Whether winners are signed, and until when the certificate holds."""
    try:
        signer = Signer.of(settings)
    except SetupError as error:
        yield Finding("fail", "signatures", error.detail, "a worker with these settings would not start")
        return
    if signer is not None:
        left = (signer.expires - datetime.now(UTC)).days
        found = f"winners are signed; the certificate holds until {signer.expires:%Y-%m-%d}"
        soon = left < RENEW_DAYS
        yield Finding("warn" if soon else "ok", "signatures", found, "renew it" if soon else "")
