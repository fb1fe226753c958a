"""What the tests of stop strings share: a vocabulary, stop strings, a policy."""

import fakes
import jax
import jax.numpy as jnp

from rljax.rollout.environment import FREE, Environment

# One token each of "abc", and some that begin or end inside of a stop string.
PIECES = (b"", b"a", b"b", b"c", b"ab", b"ca", b"bca", b"\xc3", b"\xbc", b"aab")
ENDS = ("abc", "bb", "ü", "caab")
STOP = 0
PROMPTS = fakes.prompts(num_prompts=6)
G, T = 5, 12
POLICY = fakes.bandit(num_prompts=6, num_tokens=T, vocab_size=16)
PARAMS = {"logits": 0.5 * jax.random.normal(jax.random.key(1), (6, T, 16))}
KEY = jax.random.key(3)
COMMON = {"num_samples": G, "max_tokens": T}


def forcing():
    """Forces "c" after each "ab", and never anything else."""
    ab, c = PIECES.index(b"ab"), PIECES.index(b"c")
    return Environment(
        lambda prompt, key: ((), FREE),
        lambda state, token: (state, jnp.where(token == ab, c, FREE)),
    )
