"""Measuring best-of-N: a pool of judged candidates of the benchmark, and the scaling curve that is replayed from it."""
