"""Measures the rate of matrix products in PyTorch, as benchmarks/floor.py does in XLA.

python benchmarks/torch_rate.py W1    # with the Python of TRL's environment
"""

import argparse
import statistics
import time

import torch
import workload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=workload.WORKLOADS)
    work = workload.WORKLOADS[parser.parse_args().workload]
    rates = [rate(work.tokens, *shape) for shape in work.products]
    workload.report("torch's products", gflops=statistics.mean(rates) / 1e9)


def rate(rows: int, inner: int, outer: int) -> float:
    """FLOP/s of a product; the median of 30 calls, after 5 for warm-up."""
    x, w = torch.ones(rows, inner), torch.ones(inner, outer)
    times = []
    for _ in range(35):
        start = time.perf_counter()
        x @ w
        times.append(time.perf_counter() - start)
    return 2 * rows * inner * outer / statistics.median(times[5:])


if __name__ == "__main__":
    main()
