"""The rate of float32 matrix products on this machine, at the workload's shapes.

python -m benchmarks.floor W1
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from benchmarks import workload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=workload.WORKLOADS)
    work = workload.WORKLOADS[parser.parse_args().workload]
    rows, width = work.tokens, work.d_model
    rates = []
    for inner, outer in ((width, width), (width, work.d_ff), (work.d_ff, width)):
        a, b = jnp.ones((rows, inner)), jnp.ones((inner, outer))
        product = jax.jit(lambda a, b: a @ b)
        jax.block_until_ready(product(a, b))
        times = []
        for _ in range(30):
            start = time.perf_counter()
            jax.block_until_ready(product(a, b))
            times.append(time.perf_counter() - start)
        rates.append(2 * rows * inner * outer / statistics.median(times))
    rate = statistics.mean(rates)
    workload.report(
        "floor",
        [1e3 * work.flops(shared=True) / rate],
        gflops=rate / 1e9,
        unshared_ms=1e3 * work.flops(shared=False) / rate,
    )


if __name__ == "__main__":
    main()
