"""Calls verifiers, checks what they return, and adds their verdicts to rollouts."""

import functools
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from rljax import check, processes
from rljax.layout import take
from rljax.types import Prompts, Rollout, Samples, Verdict, Verify


def in_graph(verify: Verify | None, rollout: Rollout) -> Rollout:
    """The rollout with the verdict of a traced verifier; unchanged if it is None."""
    if verify is None:
        return rollout
    with jax.named_scope("verify"):
        return rollout.replace(verdict=of(verify, rollout.prompts, rollout.samples))


def on_host(verify: Verify, rollout: Rollout) -> Rollout:
    """The rollout with the verdict of a verifier of NumPy arrays; see `shared`."""
    host = processes.fetch((rollout.prompts, rollout.samples))
    return rollout.replace(verdict=shared(verify, *host))


def of(verify: Verify, prompts: Prompts, samples: Samples) -> Verdict:
    """The verifier's verdict, checked: at trace time, or at each call on the host.

    Rewards of another floating type become float32.

    Raises:
      ValueError: unless it is a `Verdict` of arrays [P, G].
    """
    verdict = verify(prompts, samples)
    shape = samples.tokens.shape[:2]
    xp = np if isinstance(samples.tokens, np.ndarray) else jnp
    if not isinstance(verdict, Verdict):
        _refuse(verify, "a Verdict", verdict, shape)
    arrays = {}
    for field, dtype in _VERDICT.items():
        value = getattr(verdict, field)
        try:
            array = xp.asarray(value)
        except (TypeError, ValueError):  # text, None, lists of different lengths
            _refuse(verify, field, value, shape)
        kind = jnp.floating if field == "reward" else jnp.bool_
        if array.shape != shape or not jnp.issubdtype(array.dtype, kind):
            _refuse(verify, field, value, shape)
        arrays[field] = array.astype(dtype)
    return Verdict(**arrays)


def shared(verify: Verify, prompts: Prompts, samples: Samples) -> Verdict:
    """The verdict on NumPy arrays; with several processes, each verifies a share.

    All processes must hold the same arrays, and all get the same whole verdict, even if
    the verifier times out in one of them.
    """
    if processes.count() == 1:
        return of(verify, prompts, samples)
    rows = np.array_split(np.arange(len(prompts.id)), processes.count())
    rows, mine = rows[processes.index()], {}
    if len(rows):  # fewer prompts than processes leave some without
        part = of(verify, take(prompts, rows), take(samples, rows))
        mine = {field: getattr(part, field).tolist() for field in _VERDICT}
    parts = [part for part in processes.gathered("verdicts", mine) if part]
    return Verdict(
        **{
            field: np.concatenate([np.asarray(part[field], dtype) for part in parts])
            for field, dtype in _VERDICT.items()
        }
    )


_VERDICT = {"reward": "float32", "correct": "bool", "failed": "bool"}


def _refuse(verify: Verify, what: str, got, shape: tuple[int, ...]) -> NoReturn:
    fn = verify.func if isinstance(verify, functools.partial) else verify
    name = getattr(fn, "__qualname__", type(fn).__qualname__)  # an object has none
    size = f"[P, G] = {list(shape)}"
    if what in _VERDICT:
        what += f" as {_VERDICT[what]} {size}"
    fields = ", ".join(f"{field}={dtype}" for field, dtype in _VERDICT.items())
    raise ValueError(
        f"the verifier {fn.__module__}.{name} must return {what}, got"
        f" {check.described(got)}; return Verdict({fields}), each an array {size}, or"
        " Verdict.binary(correct)."
    )
