"""The HTTP API; reaches torch by no path."""
