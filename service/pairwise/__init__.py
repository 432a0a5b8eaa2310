"""pairwise."""
