"""Operators of the linear diffusion transformer: plain-torch references, the specification of every fused kernel."""
