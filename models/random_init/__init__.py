"""random_init."""
