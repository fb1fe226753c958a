"""Trains a real model with rljax, one step of `experiments.real` per line of input.

python -m benchmarks.rljax_real WORK.json --kind "like for like"
`benchmarks.real_model` starts it and explains the kinds.
"""

import argparse
import dataclasses
import json
import pathlib
import resource
import sys
import time

START = time.perf_counter()

import jax  # noqa: E402

from experiments import optimizer, real  # noqa: E402
from rljax import algorithms  # noqa: E402
from rljax.experiment import Experiment  # noqa: E402
from rljax.learn import update  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--kind", required=True)
    args = parser.parse_args()
    config = real.Config(**json.loads(args.work.read_text())["config"])
    out, sys.stdout = sys.stdout, sys.stderr  # keep other output out of the results
    like = args.kind == "like for like"
    experiment = like_trl(config) if like else real.build(config)[0]
    state = jax.jit(experiment.begin, donate_argnums=0)(
        experiment.model.init(None), jax.random.key(config.seed)
    )
    run = experiment.loop()
    while sys.stdin.readline():
        start = time.perf_counter()
        state, metrics = run(state, next(experiment.prompts))
        jax.block_until_ready((state, metrics))
        found = {
            "seconds": time.perf_counter() - start,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "ready_s": start - START,
            "reward": float(metrics["reward/mean"][0]),
            "tokens": float(metrics["samples/tokens"].value[0]),
            "finished": float(metrics["samples/finished_share"][0]),
            "entropy": float(metrics["policy/entropy_nats"][0]),
        }
        print(json.dumps(found), file=out, flush=True)


def like_trl(config: real.Config) -> Experiment:
    """The experiment in float32, with TRL's GRPO."""
    config = dataclasses.replace(config, dtype="float32")
    (made,) = real.build(config)
    rate = optimizer.linear_decay(config.learning_rate, config.num_steps)
    learner = update.learner(
        made.model.policy(config.temperature).measure,
        algorithms.grpo(ddof=1, epsilon=1e-4),
        optimizer.adamw(rate, config.gradient_clip),
        num_microbatches=config.num_microbatches,
    )
    return dataclasses.replace(made, learner=learner)


if __name__ == "__main__":
    main()
