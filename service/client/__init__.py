"""Clients of the HTTP API, blocking and awaited, with typed events and results."""

from bestofn.service.client.client import AsyncClient, Client
from bestofn.service.client.generation import Generation, Winner
from bestofn.service.client.progress import Progress

__all__ = ["AsyncClient", "Client", "Generation", "Progress", "Winner"]
