"""Goals from graded feedback: relabelling and expansion of a data set (GCSL).

The feedback r becomes a goal that the prompt states, at training and at inference.
Learning is plain likelihood. This file works on the host; the recipe is
`algorithms.gcsl`.

Source: arXiv:2605.16345, abstract (PAPER); that goals are thresholds, the inclusive
bound, the token mean and the weights are RECONSTRUCTED: the method section was not
readable.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rljax.data.problem import Problem
from rljax.types import Prompts


class Pairs(NamedTuple):
    """Samples under goals, M pairs.

    sample, goal: i64[M] places in the feedback and in the goals.
    weight: f32[M] each pair's weight in the loss.
    """

    sample: np.ndarray
    goal: np.ndarray
    weight: np.ndarray


def achieved(feedback: Sequence[float], goals: Sequence[float]) -> Pairs:
    """Classic GCSL: each sample under the highest goal it reaches.

    Samples below the lowest goal are dropped.
    """
    reached = _reached(feedback, goals)
    (sample,) = np.nonzero(reached.any(1))
    goal = reached.sum(1)[sample] - 1  # goals rise
    return Pairs(sample, goal, np.ones(len(sample), np.float32))


def per_pair(reached: np.ndarray) -> np.ndarray:
    """Weight 1 for every satisfied pair: better samples count more often."""
    return np.ones_like(reached, np.float32)


def per_sample(reached: np.ndarray) -> np.ndarray:
    """1 / number of goals a sample reaches: each sample counts once."""
    return np.float32(1) / np.maximum(reached.sum(1, keepdims=True), 1)


def beyond(
    feedback: Sequence[float],
    goals: Sequence[float],
    weight_fn: Callable[[np.ndarray], np.ndarray] = per_pair,
) -> Pairs:
    """GCSL-bey: each sample under every goal it reaches, "at least g".

    Args:
      feedback: N grades.
      goals: rising thresholds on the grades; r = g reaches g.
      weight_fn: bool[N, number of goals], who reaches what -> weights broadcastable to
        it: `per_pair` (chosen, as the expansion is described as pairs), `per_sample`.

    Raises:
      ValueError: if goals do not rise or nothing reaches one.
    """
    reached = _reached(feedback, goals)
    sample, goal = np.nonzero(reached)
    weight = np.broadcast_to(weight_fn(reached), reached.shape)[sample, goal]
    return Pairs(sample, goal, weight.astype(np.float32))


def _reached(feedback, goals) -> np.ndarray:
    feedback, goals = np.asarray(feedback, float), np.asarray(goals, float)
    if goals.ndim != 1 or not goals.size or np.any(np.diff(goals) <= 0):
        raise ValueError(f"goals must rise, got {goals.tolist()}; sort them.")
    if not np.all(np.isfinite(feedback)):
        raise ValueError("feedback must be finite; drop samples without a grade.")
    reached = feedback[:, None] >= goals
    if not reached.any():
        raise ValueError(
            f"no sample reaches the lowest goal {goals[0]}; the best feedback is"
            f" {feedback.max(initial=-np.inf)}; lower the goals."
        )
    return reached


def problems(
    pairs: Pairs,
    samples: Sequence[Problem],
    describe_fn: Callable[[str, int], str],
) -> list[Problem]:
    """The M problems of the expanded data set, goals stated in their questions.

    Args:
      samples: the N problems, demonstrations included.
      describe_fn: (question, place of the goal) -> question with the goal. At inference
        ask for the last goal, the highest (RECONSTRUCTED).
    """
    rows = zip(pairs.sample, pairs.goal, strict=True)
    return [
        samples[i]._replace(question=describe_fn(samples[i].question, int(g)))
        for i, g in rows
    ]


def with_weights(prompts: Prompts, pairs: Pairs) -> Prompts:
    """Adds `data["weight"]` f32[N]: the pairs' weights to their encoded problems.

    Args:
      prompts: from `encode_prompts` of `problems`, so that `id` is the pair's place;
        it may have dropped some.
    """
    weight = pairs.weight[np.asarray(prompts.id)]
    return prompts.replace(data={**prompts.data, "weight": weight})
