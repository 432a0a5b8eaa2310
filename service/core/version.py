"""Version of the installed bestofn package."""

from importlib.metadata import version

VERSION = version("bestofn")
