"""Checks of a checkpoint's folder against what the loaders take; no weight is read."""
