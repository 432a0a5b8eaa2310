"""Inference-time scaling of text-to-image as a service: draw N candidates, judge them, return the best."""

from importlib.metadata import version

__version__ = version("bestofn")
