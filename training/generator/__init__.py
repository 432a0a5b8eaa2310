"""Training of the generator's parts."""
