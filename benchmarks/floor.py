"""Measures the limits that matrix products set for a step of a workload.

python -m benchmarks.floor W1

Attention is left out. It measures the rate of forward products of a whole batch, called
one at a time; the floor is all of the step's arithmetic at this rate. It also measures
the step's products alone, each at its own shape, since decoding has few rows and
weight gradients are transposed, in programs that compute nothing else.
"""

import argparse
import collections
import functools
import statistics

import jax
import jax.numpy as jnp

from benchmarks import clock, workload

REPEATS = 10  # products per call, because a call costs as much as a small product
KINDS = {
    "forward": lambda x, w, g: x @ w,
    "of the input": lambda x, w, g: g @ w.T,
    "of the weight": lambda x, w, g: x.T @ g,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=workload.WORKLOADS)
    work = workload.WORKLOADS[parser.parse_args().workload]
    rates = [called_rate(work.tokens, *shape) for shape in work.products]
    workload.report(
        "XLA's products",
        gflops=statistics.mean(rates) / 1e9,
        alone_ms=alone(work, shared=True),
        unshared_alone_ms=alone(work, shared=False),
    )


def alone(work: workload.Workload, shared: bool) -> float:
    """The sum of milliseconds of all products of a step, each kind measured alone."""
    products = collections.Counter()
    layer = zip(work.products, (4, 2, 1), strict=True)
    each = {shape: work.num_layers * count for shape, count in layer}
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
    """FLOP/s of forward products, with one product per call."""
    x, w = jnp.ones((rows, inner)), jnp.ones((inner, outer))
    product = jax.jit(lambda x, w: x @ w)
    return 2 * rows * inner * outer / clock.median(lambda: product(x, w), 30)


@functools.cache
def seconds(kind: str, rows: int, inner: int, outer: int) -> float:
    """Seconds of a product [rows, inner] x [inner, outer], or of a gradient of it."""
    x, w, g = (jnp.ones(s) for s in ((rows, inner), (inner, outer), (rows, outer)))

    @jax.jit
    def repeated(last):
        def once(i, last):  # the barriers keep XLA from hoisting or pruning the product
            x_, w_, g_, _ = jax.lax.optimization_barrier((x, w, g, last))
            out = jax.lax.optimization_barrier(KINDS[kind](x_, w_, g_))
            return out[0, 0]

        return jax.lax.fori_loop(0, REPEATS, once, last)

    return clock.median(lambda: repeated(jnp.float32(0)), 15) / REPEATS


if __name__ == "__main__":
    main()
