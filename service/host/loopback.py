"""Loopback names, and whether the proxies of HTTP_PROXY and ALL_PROXY serve an address."""

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host` (a name or an address)."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def uses_proxies(address: str) -> bool:
    """Whether a call of this address takes the environment's proxies: no proxy reaches this machine's loopback."""
    try:
        parts = urlsplit(address)
        return not (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    except ValueError:  # no address: the HTTP client says so
        return True
