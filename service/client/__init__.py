"""Clients of the HTTP API, blocking and awaited, with typed events and results."""

from bestofn.service.client.client import AsyncClient, Client
from bestofn.service.client.events import Progress
from bestofn.service.client.generation import Generation, Winner

__all__ = ["AsyncClient", "Client", "Generation", "Progress", "Winner"]
