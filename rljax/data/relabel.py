"""Goals from graded feedback: relabels and expands a data set (GCSL).

The feedback r of a sample becomes a goal that its prompt states, in training and at
inference. Training then maximises the likelihood: see `algorithms.gcsl`. This file
works on the host.

Source: arXiv:2605.16345, abstract (PAPER). RECONSTRUCTED, as the method section was not
  readable: goals as thresholds, their inclusive bound, the token mean, the weights.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rljax.data.problem import Problem
from rljax.types import Prompts


class Pairs(NamedTuple):
    """M pairs of a sample and a goal that it reaches.

    sample, goal: i64[M] indices into the feedback and into the goals.
    weight: f32[M] each pair's weight in the loss.
    """

    sample: np.ndarray
    goal: np.ndarray
    weight: np.ndarray


def achieved(feedback: Sequence[float], goals: Sequence[float]) -> Pairs:
    """Classic GCSL: pairs each sample with the highest goal it reaches.

    Samples below the lowest goal are dropped. Arguments are those of `beyond`.
    """
    reached = _reached(feedback, goals)
    (sample,) = np.nonzero(reached.any(1))
    goal = reached.sum(1)[sample] - 1  # goals are increasing
    return Pairs(sample, goal, np.ones(len(sample), np.float32))


def per_pair(reached: np.ndarray) -> np.ndarray:
    """Weight 1 for every pair, so that better samples count more often."""
    return np.ones_like(reached, np.float32)


def per_sample(reached: np.ndarray) -> np.ndarray:
    """Weight 1 / number of goals that the sample reaches: each sample counts once."""
    return np.float32(1) / np.maximum(reached.sum(1, keepdims=True), 1)


def beyond(
    feedback: Sequence[float],
    goals: Sequence[float],
    weight_fn: Callable[[np.ndarray], np.ndarray] = per_pair,
) -> Pairs:
    """GCSL-bey: pairs each sample with every goal it reaches, "at least g".

    Args:
      feedback: N grades.
      goals: increasing thresholds on the grades; r = g reaches g.
      weight_fn: reached bool[N, number of goals] -> weights that broadcast to it:
        `per_pair` (the default, as the paper speaks of pairs) or `per_sample`.

    Raises:
      ValueError: if goals are not increasing, or no sample reaches one.
    """
    reached = _reached(feedback, goals)
    sample, goal = np.nonzero(reached)
    weight = np.broadcast_to(weight_fn(reached), reached.shape)[sample, goal]
    return Pairs(sample, goal, weight.astype(np.float32))


def _reached(feedback, goals) -> np.ndarray:
    feedback, goals = np.asarray(feedback, float), np.asarray(goals, float)
    if goals.ndim != 1 or not goals.size or np.any(np.diff(goals) <= 0):
        raise ValueError(f"goals must increase, got {goals.tolist()}; sort them.")
    if not np.all(np.isfinite(feedback)):
        raise ValueError(
            "feedback must be finite, got NaN or infinity; drop samples without grade."
        )
    reached = feedback[:, None] >= goals
    if not reached.any():
        raise ValueError(
            f"some sample must reach the lowest goal {goals[0]}, but the best feedback"
            f" is {feedback.max(initial=-np.inf)}; lower the goals."
        )
    return reached


def problems(
    pairs: Pairs,
    samples: Sequence[Problem],
    describe_fn: Callable[[str, int], str],
) -> list[Problem]:
    """The M problems of the expanded data set, whose questions state their goals.

    Args:
      samples: the N problems, demonstrations included.
      describe_fn: (question, index of the goal) -> question with the goal. At inference
        state the last goal, the highest (RECONSTRUCTED).
    """
    rows = zip(pairs.sample, pairs.goal, strict=True)
    return [
        samples[i]._replace(question=describe_fn(samples[i].question, int(g)))
        for i, g in rows
    ]


def with_weights(prompts: Prompts, pairs: Pairs) -> Prompts:
    """Adds the pairs' weights as `data["weight"]` f32[N].

    Args:
      prompts: made from `problems` by `encode_prompts`, which may have dropped some;
        `id` is the index of the pair.
    """
    weight = pairs.weight[np.asarray(prompts.id)]
    return prompts.replace(data={**prompts.data, "weight": weight})
