"""The limit that matrix products set to a step of the workload on this machine.

python -m benchmarks.floor W1

Two limits, attention left out of both. The floor: all of the step's arithmetic at the
rate of the forward products of a whole batch, called one by one. Its products alone:
each at its own shape (decoding has few rows, the gradient of a weight is transposed)
and at its own rate, one after another in one program that computes nothing else.
"""

import argparse
import collections
import functools
import statistics
import time

import jax
import jax.numpy as jnp

from benchmarks import workload

REPEATS = 10  # in one call, which costs as much as a small product
KINDS = {
    "forward": lambda x, w, g: x @ w,
    "of the input": lambda x, w, g: g @ w.T,
    "of the weight": lambda x, w, g: x.T @ g,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=workload.WORKLOADS)
    work = workload.WORKLOADS[parser.parse_args().workload]
    width = work.d_model
    shapes = ((width, width), (width, work.d_ff), (work.d_ff, width))
    rate = statistics.mean(called_rate(work.tokens, *shape) for shape in shapes)
    workload.report(
        "floor",
        [1e3 * work.flops(shared=True) / rate],
        gflops=rate / 1e9,
        unshared_ms=1e3 * work.flops(shared=False) / rate,
        alone_ms=alone(work, shared=True),
        unshared_alone_ms=alone(work, shared=False),
    )


def alone(work: workload.Workload, shared: bool) -> float:
    """Milliseconds of the step's products, each measured alone."""
    products = collections.Counter()
    layer = {
        (work.d_model, work.d_model): 4,
        (work.d_model, work.d_ff): 2,
        (work.d_ff, work.d_model): 1,
    }
    each = {shape: work.num_layers * count for shape, count in layer.items()}
    each[work.d_model, workload.VOCAB] = 1
    rows = work.num_prompts * work.num_samples
    prompts = work.num_prompts * (1 if shared else work.num_samples)
    prompts *= workload.PROMPT_TOKENS
    pieces = work.num_microbatches
    for shape, count in each.items():
        products["forward", prompts, *shape] += count
        products["forward", rows, *shape] += count * (work.new_tokens - 1)
        for kind in KINDS:
            products[kind, prompts // pieces, *shape] += count * pieces
            products[kind, work.tokens // pieces, *shape] += count * pieces
    return 1e3 * sum(count * seconds(*product) for product, count in products.items())


def called_rate(rows: int, inner: int, outer: int) -> float:
    """FLOP/s of forward products, each a call of its own."""
    x, w = jnp.ones((rows, inner)), jnp.ones((inner, outer))
    product = jax.jit(lambda x, w: x @ w)
    return 2 * rows * inner * outer / timed(lambda: product(x, w), 30)


@functools.cache
def seconds(kind: str, rows: int, inner: int, outer: int) -> float:
    """Of one product of [rows, inner] and [inner, outer], or of its gradients."""
    x, w, g = (jnp.ones(s) for s in ((rows, inner), (inner, outer), (rows, outer)))

    @jax.jit
    def repeated(last):
        def once(i, last):  # the barriers keep XLA from doing it once, or in part
            x_, w_, g_, _ = jax.lax.optimization_barrier((x, w, g, last))
            out = jax.lax.optimization_barrier(KINDS[kind](x_, w_, g_))
            return out[0, 0]

        return jax.lax.fori_loop(0, REPEATS, once, last)

    return timed(lambda: repeated(jnp.float32(0)), 15) / REPEATS


def timed(call, times: int) -> float:
    """Median seconds."""
    jax.block_until_ready(call())
    found = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - start)
    return statistics.median(found)


if __name__ == "__main__":
    main()
