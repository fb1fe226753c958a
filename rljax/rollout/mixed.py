"""Mixed groups: sampled rows and stored answers in one group, by combining samplers.

    actor(policy, side_by_side(sampler(policy, num_samples=4, ...), stored_answers()))

samples four completions per prompt and puts the data set's answers beside them in the
same group. The actor then measures the reference on all rows, and the verifier judges
all rows. `A` is the number of stored answers per prompt.

Stored answers have no `old` statistics, so the combined samples have none. GFT needs
none. Methods that do (PPO's clip, LUFFY's on-policy part) need them measured:

    side_by_side(sampler(...), with_old(stored_answers(), policy.measure))
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax import check, keys
from rljax.layout import over_tokens
from rljax.types import (
    Missing,
    Prompts,
    Sampler,
    Samples,
    Source,
    TokenStats,
    is_measured,
    require_stored_answers,
)

_MEASURE = "wrap the stored answers: with_old(stored_answers(), policy.measure)"


def stored_answers(num_answers: int | None = None) -> Sampler:
    """A sampler that reads the data set's answers instead of sampling.

    It reads `prompts.data["answers"]` i32[P, A, T], `["answers_mask"]` bool[P, A, T]
    and `["answers_source"]` i32[P, A]. If they are missing, it reads the single
    demonstration `["completion"]` i32[P, T] and `["completion_mask"]`. A row with an
    empty mask holds no answer; it counts nowhere.

    Args:
      num_answers: reads only this many answers per prompt, the first ones; None reads
        all.

    Raises:
      ValueError: when traced, if the prompts carry no answers, or of wrong shapes.
    """
    if num_answers is not None:
        check.count("num_answers", num_answers)

    def sample(params, prompts, key):
        del params, key
        tokens, mask, source = (x[:, :num_answers] for x in _answers(prompts))
        if num_answers is not None and tokens.shape[1] < num_answers:
            raise ValueError(
                f"num_answers must be at most the stored answers per prompt,"
                f" {tokens.shape[1]}, got {num_answers}; lower it or store more."
            )
        samples = Samples(
            tokens=tokens, mask=mask, source=source, finished=jnp.any(mask, -1)
        )
        return samples, Missing("old", _MEASURE)

    return sample


def _answers(prompts: Prompts):
    data = prompts.data
    require_stored_answers(prompts, "stored_answers() reads")
    if "answers" in data:
        tokens, mask, source = (
            jnp.asarray(data[name])
            for name in ("answers", "answers_mask", "answers_source")
        )
    else:
        tokens = jnp.asarray(data["completion"])[:, None]
        mask = jnp.asarray(data["completion_mask"])[:, None]
        source = jnp.full(tokens.shape[:2], Source.DEMONSTRATION, jnp.int32)
    if tokens.ndim != 3 or mask.shape != tokens.shape or mask.dtype != bool:
        raise ValueError(
            "stored answers must be i32[P, A, T] with a bool mask of the same shape,"
            f" got {tokens.shape} and {mask.dtype}{mask.shape}; pad them to one length."
        )
    if source.shape != tokens.shape[:2]:
        raise ValueError(
            f"answers_source must be i32[P, A] = {tokens.shape[:2]}, got"
            f" {source.shape}; give each answer a value of `Source`."
        )
    return tokens, mask, source


def with_old(sample: Sampler, measure: Callable[..., TokenStats]) -> Sampler:
    """The sampler whose `old` is measured under the sampling parameters.

    This costs one forward pass over the samples and replaces the sampler's own `old`.

    Args:
      sample: any sampler.
      measure: a policy's `measure`.
    """
    check.function("sample", sample, "params, prompts, key")
    check.function("measure", measure, "params, prompts, samples")

    def measuring(params, prompts, key):
        samples, _ = sample(params, prompts, key)
        return samples, measure(params, prompts, samples)

    return measuring


def side_by_side(*samplers: Sampler) -> Sampler:
    """Concatenates the samples of several samplers along the group axis.

    Shorter completions are padded. If one sampler lacks a statistic, the combined
    samples lack it. The first sampler draws the same samples as it would alone; the
    others have keys of their own.

    Raises:
      ValueError: without samplers; when traced, if they return different statistics.
    """
    if not samplers:
        raise ValueError(
            "side_by_side needs at least one sampler, got none; pass some."
        )
    for i, one in enumerate(samplers):
        check.function(f"samplers[{i}] of side_by_side", one, "params, prompts, key")

    def sample(params, prompts, key):
        others = [
            keys.stream(key, keys.Stream.SOURCE, i) for i in range(1, len(samplers))
        ]
        parts = [
            s(params, prompts, k) for s, k in zip(samplers, [key, *others], strict=True)
        ]
        length = max(samples.tokens.shape[2] for samples, _ in parts)

        def pad(x):  # [P, G, T, ...]
            wide = [(0, 0)] * x.ndim
            wide[2] = (0, length - x.shape[2])
            return jnp.pad(x, wide)

        parts = over_tokens(pad, parts)
        shared = {
            name: _join([getattr(samples, name) for samples, _ in parts])
            for name in ("behaviour", "decode_steps", "environment")
        }
        bare = [samples.replace(**dict.fromkeys(shared)) for samples, _ in parts]
        samples = jax.tree.map(lambda *x: jnp.concatenate(x, 1), *bare)
        return samples.replace(**shared), _join([old for _, old in parts])

    return sample


def _join(stats: list):
    """One statistic of several samplers, concatenated; `Missing` if one lacks it."""
    for part in stats:
        if not is_measured(part):
            return part
    kinds = {jax.tree.structure(part) for part in stats}
    if len(kinds) > 1:
        raise ValueError(
            f"samplers side by side must return the same statistics, got {kinds};"
            " measure all with one function: with_old(sampler, policy.measure)."
        )
    return jax.tree.map(lambda *x: jnp.concatenate(x, 1), *stats)
