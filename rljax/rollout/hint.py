"""Hints: samples continue a partial solution, and the hint itself is learned (UFT).

    own = sample_after_hint(sampler(policy, ...))
    row = with_old(hint_as_row(), policy.measure)
    act = reveal_hints(actor(policy, side_by_side(own, row)), cosine_reveal())

A solution is cut into pieces. Each training step reveals a random number of them, fewer
as training goes on; this part is the hint. Samples are drawn after prompt and hint. In
the rollout they belong to the original prompt: a completion holds the tokens of the
hint, outside the mask, and then the continuation. The hint is also a further row of its
group, a demonstration for the likelihood term.

Symbols: `H` tokens of a solution, `N` pieces at most. The prompts carry
`data["solution"]` i32[P, H] and `data["solution_ends"]` i32[P, N]: after how many
tokens each piece ends, 0 for missing pieces. The verifier reads only the continuation,
so a solution should not contain the final answer.

Source: UFT, arXiv:2505.16984; code liumy2010/UFT (PAPER).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rljax import check, keys
from rljax.layout import over_tokens
from rljax.types import Missing, Prompts, Sampler, Samples, Source, require


def cosine_reveal(
    *,
    low: jax.typing.ArrayLike = 0.05,
    high: jax.typing.ArrayLike = 0.95,
    num_steps: int = 300,
) -> Callable[[jax.Array], jax.Array]:
    """step -> probability of revealing a piece: a cosine from high to low, then 0.

    Args:
      low, high: probabilities at step `num_steps` and at step 0.
      num_steps: last training step with hints.
    """
    check.number("low", low, low=0, high=1)
    check.number("high", high, low=0, high=1)
    check.count("num_steps", num_steps)

    falling = optax.cosine_decay_schedule(high - low, num_steps)

    def probability(step):
        return jnp.where(step <= num_steps, low + falling(step), 0.0)

    return probability


def reveal_hints(act: Callable, probability_fn: Callable[[jax.Array], jax.Array]):
    """An act that first draws how much of each solution is revealed.

    The number of pieces is Binomial(pieces of the solution, probability_fn(step)). It
    is drawn from the run's key, the step and the prompt's id.

    Args:
      act: (state, prompts) -> Rollout, with a sampler made by `sample_after_hint`.
      probability_fn: step -> probability of revealing a piece, a fraction.

    Returns:
      An act whose rollouts' prompts carry `data["hint_length"]` i32[P], tokens.
    """
    check.function("act", act, "state, prompts")
    check.function("probability_fn", probability_fn, "step")

    def revealing(state, prompts):
        ends = _require(prompts, "solution_ends")
        key = keys.of_step(state.key, state.step)

        def draw(prompt):
            own = keys.stream(key, keys.Stream.HINT, prompt)
            return jax.random.uniform(own, ends.shape[1:], jnp.float32)

        draws = jax.vmap(draw)(prompts.id)
        revealed = (draws < probability_fn(state.step)) & (ends > 0)
        count = jnp.sum(revealed, -1, keepdims=True, dtype=jnp.int32)
        at = jnp.take_along_axis(ends, jnp.maximum(count - 1, 0), -1)
        length = jnp.where(count > 0, at, 0)[:, 0].astype(jnp.int32)
        return act(state, prompts.replace(data={**prompts.data, "hint_length": length}))

    return revealing


def sample_after_hint(sample: Sampler) -> Sampler:
    """Draws samples after the hints and makes the hints the samples' first tokens.

    Args:
      sample: any sampler; it gets each prompt extended by its hint and draws T tokens.

    Returns:
      A sampler of completions of H + T tokens; tokens of hints are outside the mask.
    """
    check.function("sample", sample, "params, prompts, key")

    def hinting(params, prompts, key):
        solution = _require(prompts, "solution")
        length = _require(prompts, "hint_length")
        H = solution.shape[1]
        tokens = jnp.pad(prompts.tokens, ((0, 0), (0, H)))
        extended = prompts.replace(
            tokens=_shifted_over(tokens, solution, prompts.length),
            length=prompts.length + length,
        )
        samples, old = sample(params, extended, key)
        G = samples.tokens.shape[1]
        shift = jnp.broadcast_to(length[:, None], (length.shape[0], G))

        def move(x):  # [P, G, T, ...] -> [P, G, H + T, ...], shifted by the hint
            wide = jnp.zeros((*x.shape[:2], H + x.shape[2], *x.shape[3:]), x.dtype)
            return _shifted_over(wide, x, shift)

        samples, old = over_tokens(move, (samples, old))
        hint = jnp.broadcast_to(solution[:, None], (*shift.shape, H))
        hint = jnp.pad(hint, ((0, 0), (0, 0), (0, samples.tokens.shape[2] - H)))
        at_hint = jnp.arange(hint.shape[2]) < shift[..., None]
        return samples.replace(tokens=jnp.where(at_hint, hint, samples.tokens)), old

    return hinting


def _shifted_over(base: jax.Array, x: jax.Array, start: jax.Array) -> jax.Array:
    """base [..., U, ...] with x [..., T, ...] written at `start` [...]."""

    def one(base, x, start):
        return jax.lax.dynamic_update_slice_in_dim(base, x, start, 0)

    for _ in range(start.ndim):
        one = jax.vmap(one)
    return one(base, x, start)


def hint_as_row() -> Sampler:
    """A sampler of one row per prompt: the hint as a demonstration, [P, 1, H]."""

    def sample(params, prompts, key):
        del params, key
        tokens = _require(prompts, "solution")[:, None]
        length = _require(prompts, "hint_length")[:, None]
        mask = jnp.arange(tokens.shape[2]) < length[..., None]
        samples = Samples(
            tokens=tokens,
            mask=mask,
            source=jnp.full(length.shape, Source.DEMONSTRATION, jnp.int32),
            finished=jnp.zeros(length.shape, bool),
        )
        how = "measure them: with_old(hint_as_row(), policy.measure)"
        return samples, Missing("old", how)

    return sample


def _require(prompts: Prompts, name: str) -> jax.Array:
    how = "cut the data set's solutions with piece_ends"
    if name == "hint_length":
        how = "wrap the act in reveal_hints(act, cosine_reveal())"
    return jnp.asarray(require(prompts.data, name, how))


def piece_ends(sentence_ends: list[list[int]], num_pieces: int = 5) -> np.ndarray:
    """i32[N, num_pieces]: where the pieces of each solution end, for `solution_ends`.

    A solution of n sentences is cut into min(num_pieces, n) pieces with nearly equal
    numbers of sentences, larger ones first (RECONSTRUCTED); missing pieces are 0.

    Args:
      sentence_ends: for each solution, after how many tokens each sentence ends;
        increasing, above 0.
      num_pieces: largest number of pieces.

    Raises:
      ValueError: if the ends are not increasing or not above 0.
    """
    check.count("num_pieces", num_pieces)
    out = np.zeros((len(sentence_ends), num_pieces), np.int32)
    for row, ends in zip(out, sentence_ends, strict=True):
        if np.any(np.diff([0, *ends]) <= 0):
            raise ValueError(
                f"sentence ends must increase and be above 0, got {ends}; give the"
                " running total of tokens."
            )
        if ends:
            parts = np.array_split(np.asarray(ends), min(num_pieces, len(ends)))
            row[: len(parts)] = [part[-1] for part in parts]
    return out
