"""Generators of every other family: diffusers' own text-to-image pipelines."""
