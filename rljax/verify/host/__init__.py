"""Verifiers on the host: Python functions in a pool of processes, and plain twins."""
