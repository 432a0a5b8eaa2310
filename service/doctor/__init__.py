"""The checks of `bestofn doctor`: everything that a person would be asked in a bug report, and what to change."""
