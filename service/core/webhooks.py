"""Webhooks: the addresses that they may have, their signature (Standard Webhooks), and the pauses between attempts."""

import base64
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from bestofn.service.core.backoff import asked_delay
from bestofn.service.core.errors import InvalidRequest
from bestofn.service.core.settings import Settings

MAX_LENGTH = 2000  # characters of an address
GIVE_UP_SECONDS = 24 * 3600.0  # after the job's end
FIRST_PAUSE_SECONDS = 1.0  # doubled with every attempt
LONGEST_PAUSE_SECONDS = 3600.0

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_URL = re.compile(r"https?://[^/?#@\\\s]+([/?][!-\"$-~]*)?", re.IGNORECASE)  # neither user nor fragment
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class AllowedHosts:
    """The hosts of the setting `webhook_hosts`: names, addresses and networks."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._names: set[str] = set()
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for host in hosts:
            try:
                self._networks.append(ipaddress.ip_network(host.strip("[]"), strict=False))
            except ValueError:
                self._names.add(host.lower())

    def name(self, host: str) -> bool:
        """Whether a host is named, or is an address of a named network."""
        address = _address(host)
        return host.lower() in self._names or (address is not None and self.address(address))

    def address(self, address: Address) -> bool:
        """Whether an address is in a named network."""
        return any(address in network for network in self._networks)

    def may_connect(self, host: str, address: Address) -> bool:
        """Whether a webhook of this host may be sent to this address, to which the host's name resolves."""
        return is_public(address) or self.name(host) or self.address(address)


def is_public(address: Address) -> bool:
    """Whether an address, or the IPv4 address inside it, is one of the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not address.is_multicast


def check_webhook(url: str, settings: Settings) -> None:
    """Raise InvalidRequest if a job may not have this webhook. Names are resolved when it is sent, not here."""
    if not settings.webhook_secret:
        raise InvalidRequest(
            "webhook needs a secret to sign with, and this server has none: set BESTOFN_WEBHOOK_SECRET there, or poll "
            "GET /jobs/ID",
            field="webhook",
        )
    host = _host(url)
    if host is None:
        raise InvalidRequest(
            f"webhook must be an address like https://example.net/hook, of at most {MAX_LENGTH} ASCII characters, "
            "without user and fragment",
            field="webhook",
        )
    allowed = AllowedHosts(settings.webhook_hosts)
    if allowed.name(host):
        return
    if not url.lower().startswith("https:"):
        raise InvalidRequest(
            f"webhook must be https; the operator may allow http to {host[:100]!a} with BESTOFN_WEBHOOK_HOSTS",
            field="webhook",
        )
    address = _address(host)
    if host == "localhost" or (address is not None and not is_public(address)):
        raise InvalidRequest(
            f"webhook names {host[:100]!a}, which is not a public address; the operator may allow it with "
            "BESTOFN_WEBHOOK_HOSTS",
            field="webhook",
        )


def headers_of(secret: str, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Headers of a webhook, as Standard Webhooks has them.

    Args:
        secret: `whsec_` and the key in base64.
        id: the same for all attempts at one event.
        timestamp: Unix time of this attempt, in seconds.
        body: what is sent.
    """
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = hmac.new(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }


def pause(attempt: int, age_seconds: float, answer: Mapping[str, str]) -> float | None:
    """Seconds until the next attempt; None: there is none, as the webhook is a day old by then.

    Args:
        attempt: number of the attempt that has failed, from 1 on.
        age_seconds: time since the job's end.
        answer: headers of the receiver's answer, whose Retry-After is followed up to an hour.
    """
    seconds = max(FIRST_PAUSE_SECONDS * 2.0 ** min(attempt - 1, 30), asked_delay(answer) or 0.0)
    seconds = min(seconds, LONGEST_PAUSE_SECONDS)
    return seconds if age_seconds + seconds < GIVE_UP_SECONDS else None


def _host(url: str) -> str | None:
    """The host that an address names; None if it is not one that can be called."""
    if len(url) > MAX_LENGTH or not _URL.fullmatch(url) or not url.isascii():
        return None
    try:
        parts = urlsplit(url)
        return parts.hostname if parts.port != 0 else None
    except ValueError:  # a port that is no number, or an unfinished IPv6 address
        return None


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
