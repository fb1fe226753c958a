"""Verifiers on the host: Python functions of text, in a pool of processes.

`pooled` makes a verifier of any function; `pool` runs calls in processes, and `worker`
is what runs there. `numeral` reads numbers in plain Python. Change what a reward is in
your own function, not here. `worker` is started by its path and must import nothing of
rljax, so that a worker starts without JAX.
"""
