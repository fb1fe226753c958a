"""Verifiers on the host: Python functions of text, in a pool of processes.

    pooled   makes a verifier from any function
    pool     runs calls in processes
    worker   the program of these processes
    numeral  reads numbers in plain Python

Define rewards in your own function, not here. `worker` is started by its path and must
import nothing of rljax, so that a worker starts without JAX.
"""
